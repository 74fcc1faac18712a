"""Progress of long work: a bar where one can move, otherwise a line a minute and one at the end."""

from __future__ import annotations

import io
import sys
from typing import Any

from tqdm import tqdm

EVERY = 60  # seconds between two lines


def in_notebook() -> bool:
    """Whether printed output goes to a notebook."""
    return type(sys.stdout).__module__.startswith("ipykernel")


class Bar(tqdm):
    """A progress bar on stdout, because notebooks show stderr as if something were wrong.

    Args:
        name: label of the work.
        work: number of units; or a range of their numbers to iterate over, where those before its
            start are already done.
        unit: name of one unit, in the singular.
        show: False for neither bar nor line.
    """

    def __init__(self, name: str, work: int | range, unit: str, show: bool):
        self._moves, self._told = sys.stdout.isatty() or in_notebook(), 0.0
        self.many = f"{unit[:-1]}ies" if unit.endswith("y") else f"{unit}s"
        how: dict[str, Any] = {"desc": name, "unit": unit, "disable": not show, "mininterval": 1}
        if isinstance(work, range):
            how |= {"iterable": work, "initial": work.start}
            work = work.stop
        super().__init__(total=work, file=sys.stdout if self._moves else io.StringIO(), **how)

    def display(self, *args: Any, **how: Any) -> Any:
        """Move the bar, or print a line if the last one is a minute old."""
        if self._moves:
            return super().display(*args, **how)
        if (now := self.format_dict["elapsed"]) - self._told >= EVERY:
            self._told = now
            self._tell()

    def close(self) -> None:
        """Leave the bar as it is, or print the line."""
        if not (self.disable or self._moves):
            self._tell()
            self._told = float("inf")  # tqdm displays once more
        super().close()

    def _tell(self) -> None:
        done = self.n if self.n == self.total else f"{self.n} of {self.total}"
        took = self.format_interval(self.format_dict["elapsed"])
        more = f", {self.postfix}" if self.postfix else ""
        print(f"{self.desc}: {done} {self.many} in {took}{more}", flush=True)

"""Progress of long work: a bar where one can move, otherwise one line when the work is done."""

from __future__ import annotations

import io
import sys
from typing import Any

from tqdm import tqdm


def moves() -> bool:
    """Whether a bar can move on stdout: on a terminal or in a notebook."""
    return sys.stdout.isatty() or in_notebook()


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
        self._moves = moves()
        self.many = f"{unit[:-1]}ies" if unit.endswith("y") else f"{unit}s"
        how: dict[str, Any] = {"desc": name, "unit": unit, "disable": not show, "mininterval": 1}
        if isinstance(work, range):
            how |= {"iterable": work, "initial": work.start}
            work = work.stop
        super().__init__(total=work, file=sys.stdout if self._moves else io.StringIO(), **how)

    def close(self) -> None:
        """Leave the bar as it is, or print the line."""
        if not (self.disable or self._moves):
            done = self.n if self.n == self.total else f"{self.n} of {self.total}"
            took = self.format_interval(self.format_dict["elapsed"])
            more = f", {self.postfix}" if self.postfix else ""
            print(f"{self.desc}: {done} {self.many} in {took}{more}", flush=True)
        super().close()

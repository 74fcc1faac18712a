"""How Python shows records: as a line, a small table and a plain figure.

HTML is escaped; a DataFrame needs pandas.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

MOST_ROWS = 10
Brief = tuple[str, Sequence[str], Sequence[Sequence[Any]]]  # a line, names of columns, rows


def visible(text: str) -> str:
    """Escape what a terminal would obey: control characters, and those that change direction."""
    hidden = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
    return re.sub(hidden, lambda found: found[0].encode("unicode_escape").decode(), text)


class Shown:
    """Base class for objects shown as a line and a small table, which `brief` provides."""

    plotted = ("", "")
    """The columns of labels and lengths of `plot`'s bars; no annotation, or it would be a field."""

    def brief(self) -> Brief:
        """Return (a line, column names, rows)."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return _whole(self.brief()[0])

    def _repr_html_(self) -> str:
        title, columns, rows = self.brief()
        head = "".join(f"<th>{escape(name)}</th>" for name in columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(_short(v))}</td>" for v in row) + "</tr>"
            for row in rows[:MOST_ROWS]
        )
        more = f"<p>and {len(rows) - MOST_ROWS:,} more</p>" if len(rows) > MOST_ROWS else ""
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"
        return _whole(f"<p>{escape(title)}</p>{table if rows else ''}")

    def to_frame(self) -> Any:
        """Return the table as a pandas DataFrame. Raises ImportError without pandas."""
        return frame(*self.brief()[1:])

    def plot(self) -> Any:
        """Return the table as a bar chart, a matplotlib Figure; ValueError if it has no bars."""
        if not self.plotted[0]:
            raise ValueError(f"there is nothing to plot of {self!r}: see oelkit.views.plots")
        title, columns, rows = self.brief()
        label, length = (list(columns).index(name) for name in self.plotted)
        return _bars(title, self.plotted[1], [(str(r[label]), r[length]) for r in rows[:20]])


def frame(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Any:
    """Return a pandas DataFrame. Raises ImportError without pandas."""
    import pandas  # pyright: ignore[reportMissingTypeStubs]  # used only here

    return pandas.DataFrame(list(rows), columns=list(columns))


def _whole(text: str) -> str:
    """Replace half emojis, which Jupyter cannot send and no font has."""
    return text.encode("utf-8", "replace").decode()


def plain(text: str) -> str:
    """Escape a text for a figure: a $ would start a formula, a leading _ hide a legend entry."""
    return _whole(f"{' ' * text.startswith('_')}{text}".replace("$", r"\$"))


def _bars(title: str, length: str, rows: Sequence[tuple[str, float]]) -> Any:
    from matplotlib.figure import Figure  # imported here, because it takes a second

    height = max(1, len(rows))
    figure = Figure(figsize=(7, 0.9 + 0.32 * height), layout="constrained")
    axis: Any = figure.subplots()
    names = [plain(_short(name, 50)) for name, _ in rows]
    bars = axis.barh(range(len(rows)), [n for _, n in rows], height=0.6, color="#0072b2")
    axis.bar_label(bars, [_short(n) for _, n in rows], padding=3)
    axis.set_yticks(range(len(rows)), names)
    axis.set(xlabel=length, ylim=(height - 0.5, -0.5))
    axis.set_title(plain(_short(title, 90)), loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.12)
    return figure


def _short(value: Any, most: int = 160) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"

"""Records in a line, a small table and a plain figure: what Python shows of them.

HTML is escaped; a DataFrame needs pandas.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

MOST_ROWS = 10
Brief = tuple[str, Sequence[str], Sequence[Sequence[Any]]]  # a line, names of columns, rows


class Shown:
    """What is shown of itself in a line and a small table: `brief` says which."""

    plotted = ("", "")
    """The columns of labels and lengths of `plot`'s bars; without a type, or it were a field."""

    def brief(self) -> Brief:
        """(a line, names of columns, rows)."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return self.brief()[0]

    def _repr_html_(self) -> str:
        title, columns, rows = self.brief()
        head = "".join(f"<th>{escape(name)}</th>" for name in columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(_short(v))}</td>" for v in row) + "</tr>"
            for row in rows[:MOST_ROWS]
        )
        more = f"<p>and {len(rows) - MOST_ROWS:,} more</p>" if len(rows) > MOST_ROWS else ""
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"
        return f"<p>{escape(title)}</p>{table if rows else ''}"

    def to_frame(self) -> Any:
        """The table as a pandas DataFrame. Raises ImportError without pandas."""
        return frame(*self.brief()[1:])

    def plot(self) -> Any:
        """The table as bars, a matplotlib Figure; ValueError where it has none."""
        if not self.plotted[0]:
            raise ValueError(f"there is nothing to plot of {self!r}: see oelkit.views.plots")
        title, columns, rows = self.brief()
        label, length = (list(columns).index(name) for name in self.plotted)
        return _bars(title, self.plotted[1], [(str(r[label]), r[length]) for r in rows[:20]])


def frame(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Any:
    """A pandas DataFrame. Raises ImportError without pandas."""
    import pandas  # pyright: ignore[reportMissingTypeStubs]  # for this alone

    return pandas.DataFrame(list(rows), columns=list(columns))


def plain(text: str) -> str:
    """A text as a figure's label: a $ would begin a formula, a _ hide it from the legend."""
    return f"{' ' * text.startswith('_')}{text}".replace("$", r"\$")


def _bars(title: str, length: str, rows: Sequence[tuple[str, float]]) -> Any:
    from matplotlib.figure import Figure  # only here: it takes a second

    figure = Figure(figsize=(7, 0.9 + 0.32 * max(1, len(rows))), layout="constrained")
    axis: Any = figure.subplots()
    names = [plain(_short(name, 50)) for name, _ in rows]
    bars = axis.barh(range(len(rows)), [n for _, n in rows], height=0.6, color="#0072b2")
    axis.bar_label(bars, [_short(n) for _, n in rows], padding=3)
    axis.set_yticks(range(len(rows)), names)
    axis.set(xlabel=length, ylim=(len(rows) - 0.5, -0.5))
    axis.set_title(plain(_short(title, 90)), loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.12)
    return figure


def _short(value: Any, most: int = 160) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"

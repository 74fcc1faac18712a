"""Records as a small table: escaped HTML for a notebook, a pandas DataFrame for whoever asks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

MOST_ROWS = 10


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """HTML of a line and the first rows, each cell escaped and at most 160 characters."""
    cells = lambda tag, values: "".join(f"<{tag}>{escape(_short(v))}</{tag}>" for v in values)  # noqa: E731
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows[:MOST_ROWS])
    more = f"<p>and {len(rows) - MOST_ROWS:,} more</p>" if len(rows) > MOST_ROWS else ""
    head = f"<thead><tr>{cells('th', columns)}</tr></thead>" if rows else ""
    return f"<p>{escape(title)}</p><table>{head}<tbody>{body}</tbody></table>{more}"


def frame(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Any:
    """A pandas DataFrame. Raises ImportError without pandas."""
    import pandas  # pyright: ignore[reportMissingTypeStubs]  # for this alone

    return pandas.DataFrame(list(rows), columns=list(columns))


def _short(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 160 else f"{text[:159]}…"

"""Items in the same words as one statement: by how many draws it was written, on what evidence, and
in which draw's text it stands, what it is worth.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from .operations import CuratedItem
from .records import Evidence, ExperienceItem, Fields, read_jsonl
from .text import MARKER, wording

Item = TypeVar("Item", bound=ExperienceItem)


@dataclass(frozen=True)
class Statement:
    """What several items say in the same words (see `text.wording`)."""

    text: str
    """In the words of the first that is kept, else of the first."""
    status: str
    """accepted where one of them is; else pending, skipped, rejected, the first that one is."""
    ids: tuple[str, ...]
    draws: tuple[int, ...]
    """Which draws wrote it; none of what a person added."""
    evidence: tuple[Evidence, ...]
    """Each turn once."""


def statements(items: Iterable[CuratedItem]) -> list[Statement]:
    """The items by what they say, in the order of the first of each."""
    groups: dict[tuple[str, ...], list[CuratedItem]] = {}
    for item in items:
        groups.setdefault(wording(item.text), []).append(item)
    return [_statement(group) for group in groups.values()]


def _statement(group: list[CuratedItem]) -> Statement:
    first = {item.status: item for item in reversed(group)}
    order = "accepted", "pending", "skipped", "rejected"
    shown = next(first[status] for status in order if status in first)
    return Statement(
        shown.text,
        shown.status,
        tuple(item.id for item in group),
        tuple(sorted({draw for item in group for draw in item.draws})),
        tuple(dict.fromkeys(seen for item in group for seen in item.evidence)),
    )


def said_once(items: Iterable[CuratedItem]) -> list[CuratedItem]:
    """What a person accepted for every draw once, in place of the first item in its words.

    All others stay: a log from before one could do so gives the texts that it gave then.
    """
    items = list(items)
    every, said = {wording(i.text) for i in items if i.every_draw}, set[tuple[str, ...]]()
    found: list[CuratedItem] = []
    for item in items:
        words = wording(item.text)
        if words not in said:
            found.append(replace(item, every_draw=True) if words in every else item)
        said |= {words} & every
    return found


def for_every_draw(item: ExperienceItem) -> bool:
    """Whether an item stands in each draw's text: what a person accepted or added, and what was
    merged.
    """
    every = getattr(item, "every_draw", False) or not item.model
    return every or len(getattr(item, "parents", ())) > 1


def items_for_draw(items: Iterable[Item], draw: int, known: str = "") -> list[Item]:
    """The items of a draw's text: its own, and those for every draw (see `for_every_draw`).

    known: text that they will stand behind; what a line of it says in the same words is left out.
    """
    lines = {wording(line.removeprefix(MARKER)) for line in known.splitlines()}
    mine = [item for item in items if item.draw == draw or for_every_draw(item)]
    return [item for item in mine if wording(item.text) not in lines]


def read_worth(path: str | Path) -> dict[str, tuple[float, float, float]]:
    """What `leave_one_out` wrote, by an item's text; {} where there is no such file."""
    return worth_of(read_jsonl(path) if Path(path).exists() else [])


def worth_of(rows: Iterable[Fields]) -> dict[str, tuple[float, float, float]]:
    """The same of rows that were read."""
    return {row["text"]: (row["worth"], row["low"], row["high"]) for row in rows}

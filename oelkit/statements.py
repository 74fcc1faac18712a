"""Statements: items in the same words, with the draws that wrote them and all their evidence.

Also which items belong to a draw's text, and what `leave_one_out` found each to be worth.
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
    """Items in the same words (see `text.wording`)."""

    text: str
    """The text of the first item with the statement's status."""
    status: str
    """The first of accepted, pending, skipped and rejected that one of the items has."""
    ids: tuple[str, ...]
    draws: tuple[int, ...]
    """The draws that wrote it; empty if a person added it."""
    evidence: tuple[Evidence, ...]
    """Each turn once."""


def statements(items: Iterable[CuratedItem]) -> list[Statement]:
    """Group items by their wording, in the order of the first item of each group."""
    return [_statement(group) for group in by_wording(items).values()]


def by_wording(items: Iterable[CuratedItem]) -> dict[tuple[str, ...], list[CuratedItem]]:
    """Return the items in the same words, in order, by their `text.wording`."""
    groups: dict[tuple[str, ...], list[CuratedItem]] = {}
    for item in items:
        groups.setdefault(wording(item.text), []).append(item)
    return groups


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
    """Keep what was accepted for every draw only once, as the first item in the same words.

    All other items stay, so a log older than `every_draw` still gives the same texts.
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
    """Whether an item belongs to every draw's text: accepted for all draws, added or merged."""
    every = getattr(item, "every_draw", False) or not item.model
    return every or len(getattr(item, "parents", ())) > 1


def items_for_draw(items: Iterable[Item], draw: int, known: str = "") -> list[Item]:
    """Return the items of a draw's text: its own, and those for every draw (`for_every_draw`).

    known: the text that precedes them; items in the same words as one of its lines are left out.
    """
    lines = {wording(line.removeprefix(MARKER)) for line in known.splitlines()}
    mine = [item for item in items if item.draw == draw or for_every_draw(item)]
    return [item for item in mine if wording(item.text) not in lines]


def read_worth(path: str | Path) -> dict[str, tuple[float, float, float]]:
    """Read (worth, low, high) by item text from a file of `leave_one_out`; {} if it is missing."""
    try:
        return worth_of(read_jsonl(path) if Path(path).exists() else [])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a file of `leave_one_out` ({error!r})") from error


def worth_of(rows: Iterable[Fields]) -> dict[str, tuple[float, float, float]]:
    """Return (worth, low, high) by item text, from rows of `leave_one_out`."""
    return {row["text"]: (row["worth"], row["low"], row["high"]) for row in rows}

"""The operations of a curation: what can be done to experience items, and the effect of each.

An operation is one line of the log; `apply` returns the state after it. Nothing here keeps state or
writes files; `curation` does.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from .records import Evidence, ExperienceItem, Fields, RecordError, from_dict, read_jsonl, to_line
from .text import one_line


class Op(StrEnum):
    """The operations, as the log names them."""

    ACCEPT = "accept"
    REJECT = "reject"
    SKIP = "skip"
    RESTORE = "restore"
    EDIT = "edit"
    MOVE = "move"
    MERGE = "merge"
    SPLIT = "split"
    ADD = "add"
    UNDO = "undo"
    REDO = "redo"
    EXPLAIN = "explain"


STATUS = {
    Op.ACCEPT: "accepted",
    Op.REJECT: "rejected",
    Op.SKIP: "skipped",
    Op.RESTORE: "pending",
    Op.MERGE: "merged",
    Op.SPLIT: "split",
}
"""The status that an operation gives to its items. Other operations leave the status unchanged."""
GONE = ("merged", "split")
"""Items with these statuses leave the view, but stay in the state."""
MAKES = (Op.MERGE, Op.SPLIT, Op.ADD)
"""Operations that make one item per text."""


@dataclass(frozen=True)
class CuratedItem(ExperienceItem):
    """An experience item in its current state; `text` is one line."""

    status: str = "pending"
    """pending, skipped (seen, undecided), accepted, rejected; merged or split if other items
    replaced it."""
    parents: tuple[str, ...] = ()
    original: str = ""
    """The text as first written, byte for byte."""
    draws: tuple[int, ...] = ()
    """The draws that wrote it or the items it was made from; empty for a person's own item."""
    every_draw: bool = False
    """Whether it was accepted for every draw's text, and not only for its own draw's."""
    author: str = ""
    """Author of the last operation on it; `auto` is `auto_curate`."""


@dataclass(frozen=True)
class Operation:
    """One line of the log."""

    n: int
    """Counts from 1 without gaps; a gap shows that the log is damaged."""
    op: str
    author: str
    time: str
    reason: str = ""
    ids: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    """The texts of `ids` at that time; a log cannot be applied to items with other texts."""
    new: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    to: int | None = None
    """The target index of a move, or the number of the operation that a reason explains."""
    every_draw: bool = False
    """For accept: whether the item goes into every draw's text or only into its own draw's. For
    edit, merge and split: whether the new text is also accepted, for every draw."""
    evidence: tuple[Evidence, ...] = ()
    extra: Fields = field(default_factory=Fields, hash=False)


State = dict[str, CuratedItem]  # by id, in order


def read_log(path: Path) -> list[Operation]:
    """Read the operations of a log file; warn about a line cut off by a crash and skip it."""
    try:
        return read_jsonl(path, Operation)
    except RecordError as e:
        many = not e.records and len(e.bad) > 1  # such as UTF-16
        if many or any(field is not None for _, field, _ in e.bad):
            raise
        # Not JSON: the remains of a crash. Any other damage leaves a gap in the numbering.
        lines = ", ".join(str(line) for line, _, _ in e.bad)
        warnings.warn(f"{path}: line {lines} was cut off by a crash and is left out", stacklevel=4)
        return e.records


def as_read(op: Operation) -> Operation:
    """Return an operation as a log gives it back; ValueError names a field of a wrong type."""
    return from_dict(Operation, json.loads(to_line(op)))


def start(items: Iterable[ExperienceItem]) -> State:
    """Return the state of items before any operation."""
    fields = ("id", "evidence", "model", "round", "draw", "extra")
    return {
        i.id: CuratedItem(
            text=one_line(i.text),
            original=i.text,
            draws=(i.draw,) if i.model else (),
            **{name: getattr(i, name) for name in fields},
        )
        for i in items
    }


def fold(
    items: Iterable[ExperienceItem], operations: Iterable[Operation], place: str = ""
) -> State:
    """Return the state after operations. ValueError names the operation that does not fit."""
    state = start(items)
    for op in operations:
        try:
            state = apply(state, op)
        except ValueError as e:
            what = f"{place}operation {op.n} does not fit these items: {e}"
            todo = "Use the items that the log was made for, or move the log away to start again"
            raise ValueError(f"{what}. {todo}") from None
    return state


def undo_and_redo(
    log: Iterable[Operation], done: Iterable[Operation] = (), undone: Iterable[Operation] = ()
) -> tuple[list[Operation], list[Operation]]:
    """Return (operations in effect, operations that can be redone) after those of `log`.

    `done` and `undone` are the two lists before `log`. Undo and redo move the last operation from
    one list to the other.
    """
    done, undone = list(done), list(undone)
    for op in log:
        if op.op == Op.EXPLAIN:
            continue
        if op.op in (Op.UNDO, Op.REDO):
            source, target = (done, undone) if op.op == Op.UNDO else (undone, done)
            if not source:
                raise ValueError(f"there is nothing to {op.op}")
            target.append(source.pop())
        else:
            done.append(op)
            undone.clear()
    return done, undone


def apply(state: State, op: Operation) -> State:
    """Return the ordered state after one more operation; ValueError if it does not fit."""
    items, texts = _checked(state, op)
    status = STATUS.get(Op(op.op))
    changed = {i.id: replace(i, status=status or i.status, author=op.author) for i in items}
    accepted: Fields = {"status": "accepted", "every_draw": True} if op.every_draw else {}
    match op.op:
        case Op.ACCEPT:
            changed = {id: replace(i, every_draw=op.every_draw) for id, i in changed.items()}
        case Op.RESTORE:
            changed = {id: replace(i, text=one_line(i.original)) for id, i in changed.items()}
        case Op.EDIT:
            changed = {id: replace(i, text=texts[0], **accepted) for id, i in changed.items()}
        case Op.MOVE:
            return _moved(state, items, op.to)
        case Op.ADD:
            new = CuratedItem(op.new[0], texts[0], op.evidence, "", 0, 0, original=op.texts[0])
            item = replace(new, status="accepted", author=op.author)
            return state | {item.id: item}
        case Op.MERGE | Op.SPLIT:
            first = next(i for i in state if i in op.ids)
            evidence = tuple(dict.fromkeys(e for i in items for e in i.evidence))
            draws = tuple(sorted({draw for i in items for draw in i.draws}))
            made = replace(state[first], parents=op.ids, author=op.author, extra={})
            made = replace(made, evidence=evidence, draws=draws)
            if len({i.status for i in items}) > 1:
                made = replace(made, status="pending")
            new = [
                replace(made, id=id, text=text, original=original, **accepted)
                for id, text, original in zip(op.new, texts, op.texts, strict=True)
            ]
            return _inserted(state | changed, new, first)
        case _:
            pass
    return state | changed  # in the old order


def _checked(state: State, op: Operation) -> tuple[list[CuratedItem], list[str]]:
    """Return the items and texts of an operation; ValueError if it does not fit the state."""
    if op.op not in set(Op) - {Op.UNDO, Op.REDO, Op.EXPLAIN}:  # those act on the log
        raise ValueError(f"unknown operation {op.op!r}")
    items, texts = len(op.ids), len(op.texts)
    fits = {
        Op.ADD: items == 0 and texts == 1,
        Op.EDIT: items >= 1 and texts == 1,
        Op.MERGE: items >= 2 and texts == 1,
        Op.SPLIT: items >= 1 and texts >= 2,
    }.get(Op(op.op), items >= 1 and texts == 0)
    made = texts if op.op in MAKES else 0
    distinct = len(set(op.ids)) == items == len(op.before) and len(set(op.new)) == len(op.new)
    if not (fits and distinct and len(op.new) == made):
        raise ValueError(f"{op.op} cannot take {len(set(op.ids))} item(s) and {texts} text(s)")
    if wrong := [i for i in op.ids if i not in state]:
        raise ValueError(f"no item has the id {wrong[0]!r}")
    if wrong := [i for i in op.new if i in state]:
        raise ValueError(f"{op.op}: an item with the id {wrong[0]!r} already exists")
    lines = [one_line(text) for text in op.texts]
    if not all(lines):
        raise ValueError(f"{op.op}: the text is empty; reject the item instead")
    old = [state[i] for i in op.ids]
    for item, before in zip(old, op.before, strict=True):
        if item.text != before:
            raise ValueError(f"item {item.id!r} says {item.text[:60]!r}, not {before[:60]!r}")
        if item.status in GONE and op.op != Op.RESTORE:
            raise ValueError(f"item {item.id!r} was {item.status}; restore it first")
    return old, lines


def _moved(state: State, items: list[CuratedItem], to: int | None) -> State:
    moved = {item.id for item in items}
    others = {id: i for id, i in state.items() if id not in moved}
    view = [id for id, i in others.items() if i.status not in GONE]
    if to is None or not 0 <= to <= len(view):
        raise ValueError(f"move: the index must be 0 to {len(view)}, got {to}")
    return _inserted(others, items, [*view, None][to])


def _inserted(state: State, new: list[CuratedItem], before: str | None) -> State:
    """Insert items in front of another one (None: at the end)."""
    items = list(state.values())
    place = next((n for n, item in enumerate(items) if item.id == before), len(items))
    return {item.id: item for item in items[:place] + new + items[place:]}

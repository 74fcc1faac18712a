"""What may be done to experience items: the operations of a curation, and what each does.

An operation is a line of the log; `apply` gives the state that follows. Nothing here has a state or
writes a file (that is `curation`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from .records import Evidence, ExperienceItem, Fields, RecordError, read_jsonl
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
"""The status of the items that an operation takes; with the others it stays as it is."""
GONE = ("merged", "split")
"""Out of the view, never out of the state."""
MAKES = (Op.MERGE, Op.SPLIT, Op.ADD)
"""These make an item of each text."""
BESIDE = (Op.UNDO, Op.REDO, Op.EXPLAIN)
"""These change no item, but what is done, or what is said of it."""


@dataclass(frozen=True)
class CuratedItem(ExperienceItem):
    """An experience item as it stands now; `text` is one line."""

    status: str = "pending"
    """pending, skipped (seen, undecided), accepted, rejected; merged and split once others took its
    place."""
    parents: tuple[str, ...] = ()
    original: str = ""
    """What was first written, to the byte."""
    draws: tuple[int, ...] = ()
    """The draws that wrote it, those of what it was made of among them; none of a person's own."""
    every_draw: bool = False
    """Whether a person accepted it, which is for every draw's text."""
    author: str = ""
    """Who did something to it last; `auto` is `auto_curate`."""


@dataclass(frozen=True)
class Operation:
    """One line of the log."""

    n: int
    """Counts from 1 without a gap: a gap shows that the log was damaged."""
    op: str
    author: str
    time: str
    reason: str = ""
    ids: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    """The texts of `ids` when it was done: no log is applied to items that say something else."""
    new: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    to: int | None = None
    """The place of a move; the operation that a reason is for."""
    every_draw: bool = False
    """Of an accept: for every draw's text. Without it, for that of the draw that wrote it."""
    evidence: tuple[Evidence, ...] = ()
    extra: Fields = field(default_factory=Fields, hash=False)


State = dict[str, CuratedItem]  # by id, in order


def read_log(path: Path) -> list[Operation]:
    """The operations of a log file, but for a line that a crash has cut off: a warning."""
    try:
        return read_jsonl(path, Operation)
    except RecordError as e:
        if any(field is not None for _, field, _ in e.bad):
            raise
        # Not JSON: the remains of a crash. Were it anything else, the count of the operations
        # around it had a gap.
        lines = ", ".join(str(line) for line, _, _ in e.bad)
        warnings.warn(f"{path}: line {lines} was cut off by a crash and is left out", stacklevel=4)
        return e.records


def start(items: Iterable[ExperienceItem]) -> State:
    """The state of items to which nothing was done."""
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
    """The state after operations; ValueError where one does not fit, which says in which place."""
    state = start(items)
    for op in operations:
        try:
            state = apply(state, op)
        except ValueError as e:
            what = f"{place}operation {op.n} does not fit these items: {e}"
            todo = "Give the items that the log was made for, or move the log away to start anew"
            raise ValueError(f"{what}. {todo}") from None
    return state


def undo_and_redo(
    log: Iterable[Operation], done: Iterable[Operation] = (), undone: Iterable[Operation] = ()
) -> tuple[list[Operation], list[Operation]]:
    """(what makes the state, what can be done again) after these that were so before: undo and redo
    move the last one over.
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
    """The ordered state after one more operation; ValueError where it does not fit."""
    items, texts = _checked(state, op)
    status = STATUS.get(Op(op.op))
    changed = {i.id: replace(i, status=status or i.status, author=op.author) for i in items}
    match op.op:
        case Op.ACCEPT:
            changed = {id: replace(i, every_draw=op.every_draw) for id, i in changed.items()}
        case Op.RESTORE:
            changed = {id: replace(i, text=one_line(i.original)) for id, i in changed.items()}
        case Op.EDIT:
            changed = {id: replace(i, text=texts[0]) for id, i in changed.items()}
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
                replace(made, id=id, text=text, original=original)
                for id, text, original in zip(op.new, texts, op.texts, strict=True)
            ]
            return _inserted(state | changed, new, first)
        case _:
            pass
    return state | changed  # in the old order


def _checked(state: State, op: Operation) -> tuple[list[CuratedItem], list[str]]:
    """The items and the texts of an operation; ValueError where it does not go with the state."""
    if op.op not in set(Op) - {*BESIDE}:
        raise ValueError(f"unknown operation {op.op!r}")
    items, texts = len(op.ids), len(op.texts)
    match op.op:
        case Op.ADD:
            fits = (items, texts) == (0, 1)
        case Op.EDIT:
            fits = items >= 1 and texts == 1
        case Op.MERGE:
            fits = items >= 2 and texts == 1
        case Op.SPLIT:
            fits = items >= 1 and texts >= 2
        case _:
            fits = items >= 1 and texts == 0
    made = texts if op.op in MAKES else 0
    distinct = len(set(op.ids)) == items == len(op.before) and len(set(op.new)) == len(op.new)
    if not (fits and distinct and len(op.new) == made):
        raise ValueError(f"{op.op} does not go with {len(set(op.ids))} item(s) and {texts} text(s)")
    if wrong := [i for i in op.ids if i not in state]:
        raise ValueError(f"no item is called {wrong[0]!r}")
    if wrong := [i for i in op.new if i in state]:
        raise ValueError(f"{op.op}: an item is called {wrong[0]!r} already")
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
        raise ValueError(f"move: the place must be 0 to {len(view)}, got {to}")
    return _inserted(others, items, [*view, None][to])


def _inserted(state: State, new: list[CuratedItem], before: str | None) -> State:
    """With new items in front of one (None: at the end)."""
    items = list(state.values())
    place = next((n for n, item in enumerate(items) if item.id == before), len(items))
    return {item.id: item for item in items[:place] + new + items[place:]}

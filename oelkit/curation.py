"""Curate experience items: accept, reject, edit, merge … through an append-only log.

The state is a fold over the log. Undo and redo are log entries like any other, and the extracted
items never change, so nothing that a person did or a model wrote is ever lost. Every operation is
on disk before the state changes. The user interface is in `views.widgets`. No model is used:
near-duplicates are found by their words. Departure: the paper feeds every extracted item to the
teacher; see `auto_curation`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import given, operations
from .operations import GONE, MAKES, CuratedItem, Op, Operation
from .records import AnyPath, Evidence, ExperienceItem, RecordError, append_jsonl, read_jsonl
from .statements import Statement, by_wording, items_for_draw, said_once, statements
from .tables import Brief, Shown, frame
from .text import experience_text, one_line, over_budget, word_diff

Ids = str | Sequence[str]


class Curation(Shown):
    """Items, their log and the state that follows from both.

    If `log_path` exists, that log is loaded; without a path nothing is kept on disk. Operations
    take one id or a list of ids; a list is undone in one step. A wrong call raises ValueError and
    changes nothing. If another editor has written to the log in the meantime, an operation raises
    `records.ConflictError` and changes nothing: call `reload`.
    """

    def __init__(
        self,
        items: Iterable[ExperienceItem],
        log_path: AnyPath | None = None,
        *,
        author: str = "user",
    ):
        self.author = author
        self.log_path = given.path("log_path", log_path) if log_path is not None else None
        self._source = tuple(given.records("items", items, ExperienceItem))
        if double := [i for i, n in Counter(item.id for item in self._source).items() if n > 1]:
            raise ValueError(
                f"items need distinct ids; {double[0]!r} occurs more than once: extract all draws "
                "in one call (num_draws=2), or use another round= when you extract again"
            )
        self._size: int | None = None
        self.load([])
        self.reload()

    @classmethod
    def open(cls, items_path: AnyPath, log_path: AnyPath, *, author: str = "user") -> Curation:
        """Open the curation of an items.jsonl and its log, which the first operation creates."""
        return cls(read_jsonl(items_path, ExperienceItem), log_path, author=author)

    def reload(self) -> None:
        """Read the log again, for example after another editor has written to it."""
        if self.log_path is not None:
            there = self.log_path.exists()
            # take the size first, so that a line written while we read becomes a conflict
            size = self.log_path.stat().st_size if there else 0
            self.load(operations.read_log(self.log_path) if there else [])
            self._size = size  # not that of a log that cannot be read: nothing is appended to it

    def load(self, log: Sequence[Operation]) -> None:
        """Replace the state by that of these operations; the log file does not change."""
        place = self.log_path or "log"
        todo = "Restore the log from a copy, or move it away to start again"
        if [op.n for op in log] != list(range(1, len(log) + 1)):
            what = f"{place}: an operation is missing or repeated (`n` must count 1, 2, 3 …)"
            raise RecordError(f"{what}. {todo}", log)
        try:
            done, undone = operations.undo_and_redo(log)
        except ValueError as error:
            raise RecordError(f"{place}: {error}. {todo}", log) from None
        self._state = operations.fold(self._source, done, f"{place}: ")
        self._log, self._done, self._undone = list(log), done, undone

    # -- operations

    def accept(
        self, id: Ids, reason: str = "", author: str | None = None, *, every_draw: bool = True
    ) -> None:
        """Keep items for the model to learn, in every draw or (every_draw=False) in their own."""
        self._do(Op.ACCEPT, id, reason, author, every_draw=every_draw)

    def reject(self, id: Ids, reason: str = "", author: str | None = None) -> None:
        """Leave items out."""
        self._do(Op.REJECT, id, reason, author)

    def skip(self, id: Ids, reason: str = "", author: str | None = None) -> None:
        """Mark items as seen but undecided."""
        self._do(Op.SKIP, id, reason, author)

    def restore(self, id: Ids, reason: str = "", author: str | None = None) -> None:
        """Reset items to their original text and to pending.

        A merged or split item returns to the view, beside the items made from it.
        """
        self._do(Op.RESTORE, id, reason, author)

    def edit(self, id: Ids, text: str, reason: str = "", author: str | None = None) -> None:
        """Change the text and keep the status. Line breaks become spaces."""
        self._do(Op.EDIT, id, reason, author, texts=(text,))

    def move(self, id: Ids, to: int, reason: str = "", author: str | None = None) -> None:
        """Move items to index `to` among the others. A token budget cuts from the top."""
        self._do(Op.MOVE, id, reason, author, to=to)

    def merge(
        self, ids: Ids, text: str | None = None, reason: str = "", author: str | None = None
    ) -> str:
        """Replace several items by one with all their evidence; return its id.

        It takes the place of the first of them, and their status if they share one (otherwise
        pending). By default `text` joins their texts, without repeating the same words.
        """
        if text is None:
            groups = by_wording(self.item(id) for id in _ids(ids)).values()
            text = " ".join(group[0].text for group in groups)
        return self._do(Op.MERGE, ids, reason, author, texts=(text,))[0]

    def split(
        self, id: Ids, texts: Sequence[str], reason: str = "", author: str | None = None
    ) -> list[str]:
        """Replace an item by several, each with its evidence and status; return their ids."""
        return list(self._do(Op.SPLIT, id, reason, author, texts=_ids(texts)))

    def rewrite(self, op: str, id: Ids, texts: Sequence[str], reason: str = "") -> tuple[str, ...]:
        """Do an edit, merge or split, and accept its texts unless all it replaces was rejected.

        The editor does this with what a person wrote. It is one operation, so one undo is enough.
        Return the ids of the items that it made; none for an edit.
        """
        accept = any(self.item(i).status != "rejected" for i in _ids(id))
        return self._do(Op(op), id, reason, None, texts=_ids(texts), every_draw=accept)

    def add(
        self,
        text: str,
        evidence: Iterable[Evidence] = (),
        reason: str = "",
        author: str | None = None,
    ) -> str:
        """Add an accepted item of your own at the end; return its id."""
        return self._do(Op.ADD, (), reason, author, texts=(text,), evidence=tuple(evidence))[0]

    def undo(self, reason: str = "", author: str | None = None) -> Operation:
        """Undo the last operation that is not undone yet; return it."""
        self._do(Op.UNDO, (), reason, author)
        return self._undone[-1]

    def redo(self, reason: str = "", author: str | None = None) -> Operation:
        """Redo what was undone last; return it. Any other operation in between ends this."""
        self._do(Op.REDO, (), reason, author)
        return self._done[-1]

    def explain(self, reason: str, author: str | None = None) -> Operation:
        """Give the last operation a reason afterwards; return that operation."""
        if not self._done:
            raise ValueError("there is nothing to explain")
        self._do(Op.EXPLAIN, (), reason, author, to=self._done[-1].n)
        return self._done[-1]

    def _do(
        self, op: Op, id: Ids, reason: str, author: str | None, **fields: Any
    ) -> tuple[str, ...]:
        n, ids, new = len(self._log) + 1, _ids(id), list[str]()
        if op in MAKES:
            count = len(fields["texts"])
            new = [f"{op}-{n}.{k + 1}" if op == Op.SPLIT else f"{op}-{n}" for k in range(count)]
        while self._state.keys() & new:  # items from an earlier curation can have such an id
            new = [f"{i}'" for i in new]
        before = tuple(self.item(i).text for i in ids)
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        author = self.author if author is None else author
        line = Operation(n, op.value, author, time, reason, ids, before, tuple(new), **fields)
        # one that no log could give back, or that cannot be done, fails before a byte is written
        line = operations.as_read(line)
        done, undone = operations.undo_and_redo([line], self._done, self._undone)
        state = self._state
        if op == Op.UNDO:
            state = operations.fold(self._source, done)
        elif op != Op.EXPLAIN:
            state = operations.apply(state, done[-1])
        if self.log_path is not None:
            self._size = append_jsonl(self.log_path, line, expected_size=self._size)
        self._log, self._done, self._undone, self._state = [*self._log, line], done, undone, state
        return line.new

    # -- the state

    @property
    def items(self) -> list[CuratedItem]:
        """The current view, in order, without items that were merged or split."""
        return [item for item in self._state.values() if item.status not in GONE]

    @property
    def log(self) -> list[Operation]:
        """Every operation so far, including undo and redo."""
        return list(self._log)

    @property
    def can_undo(self) -> bool:
        """Whether there is an operation to undo."""
        return bool(self._done)

    @property
    def can_redo(self) -> bool:
        """Whether there is an operation to redo."""
        return bool(self._undone)

    def item(self, id: str) -> CuratedItem:
        """Return one item, even if it was merged or split."""
        if id not in self._state:
            raise ValueError(f"no item has the id {id!r}")
        return self._state[id]

    def history(self, id: str) -> list[Operation]:
        """Return the operations in effect that made, changed or replaced an item, with reasons."""
        return self.histories().get(id, [])

    def histories(self) -> dict[str, list[Operation]]:
        """Return the `history` of every item that has one, by its id, in one pass over the log."""
        why = {op.to: op.reason for op in self._log if op.op == Op.EXPLAIN}
        found: dict[str, list[Operation]] = {}
        for op in self._done:
            op = replace(op, reason=why[op.n]) if op.n in why else op
            for id in op.ids + op.new:
                found.setdefault(id, []).append(op)
        return found

    plotted = "item", "draws"

    def brief(self) -> Brief:
        """Count the items by status; one row per statement."""
        counts = Counter(item.status for item in self.items)
        parts = ", ".join(f"{n} {status}" for status, n in counts.items())
        rows = [(s.status, s.text, len(s.draws), len(s.evidence)) for s in self.statements()]
        columns = ("status", "item", "draws", "evidence")
        return f"Curation({len(self.items)} items: {parts})", columns, rows

    def kept(self, draw: int | None = None) -> list[CuratedItem]:
        """Return the accepted items of all draws or one, in order; those for every draw once."""
        kept = said_once(item for item in self.items if item.status == "accepted")
        return kept if draw is None else items_for_draw(kept, draw)

    def within_budget(
        self, budget_tokens: int, tokenizer: Any, draw: int | None = None
    ) -> tuple[list[CuratedItem], list[CuratedItem]]:
        """Split the kept items into (those that fit, those cut); the oldest are cut first (paper).

        `tokenizer`: from Transformers or tokenizers, or a function that counts a text's tokens.
        """
        if tokenizer is None or budget_tokens < 0:
            raise ValueError("a token budget needs a tokenizer and must not be negative")
        kept = self.kept(draw)
        cut = over_budget([experience_text([item]) for item in kept], budget_tokens, tokenizer)
        return kept[cut:], kept[:cut]

    def experience(
        self, budget_tokens: int | None = None, tokenizer: Any = None, draw: int | None = None
    ) -> str:
        """Return the text that the teacher reads: the kept items, one per line, within a budget."""
        if budget_tokens is None:
            return experience_text(self.kept(draw))
        return experience_text(self.within_budget(budget_tokens, tokenizer, draw)[0])

    def statements(self) -> list[Statement]:
        """Return the view as statements, those written by most draws first."""
        return sorted(statements(self.items), key=lambda s: (-len(s.draws), -len(s.ids)))

    def diff(self) -> dict[str, list[tuple[str, str]]]:
        """Return, by id, the `text.word_diff` from original to text of each edited item."""
        edited = [item for item in self.items if item.text != one_line(item.original)]
        return {item.id: word_diff(item.original, item.text) for item in edited}

    def to_frame(self) -> Any:
        """Return the view as a pandas DataFrame, a row per item. Raises ImportError without it."""
        columns = ["id", "status", "text", "original", "evidence", "parents"]
        columns += ["model", "round", "draw"]
        return frame(columns, [[getattr(item, c) for c in columns] for item in self.items])


def replay(items: Iterable[ExperienceItem], log: AnyPath | Sequence[Operation]) -> Curation:
    """Replay a recorded session on its items. `log` (a file or its operations) is not changed."""
    curation = Curation(items)
    curation.load(operations.read_log(Path(log)) if isinstance(log, str | os.PathLike) else log)
    return curation


def _ids(ids: Ids) -> tuple[str, ...]:
    return (ids,) if isinstance(ids, str) else tuple(given.records("ids", ids, str))

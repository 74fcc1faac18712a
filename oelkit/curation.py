"""Curate experience items: accept, reject, edit, merge … through an append-only log that can always
be undone.

The state is a fold over the log, undo and redo are records like any other, and the extracted items
are never changed, so nothing that a person did or a model wrote is ever lost. Every operation is on
disk before the state changes. No user interface here (that is `widgets`), and no model:
near-duplicates are found by the words they share. Departure: the paper feeds every extracted item
to the teacher. That is `auto_curate`, less its literal duplicates."""

from __future__ import annotations

import bisect
import difflib
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .records import Evidence, ExperienceItem, RecordError, append_jsonl, read_jsonl
from .text import MARKER, count_tokens, experience_text, one_line

_STATUS = {
    "accept": "accepted",
    "reject": "rejected",
    "skip": "skipped",
    "restore": "pending",
    "merge": "merged",
    "split": "split",
}  # of the items that an operation takes
_GONE = ("merged", "split")  # out of the view, never out of the state
_MAKES = ("merge", "split", "add")  # these make an item of each text
_NONE, _ONE, _SOME, _MANY = range(1), range(1, 2), range(1, 10**9), range(2, 10**9)
_SHAPE = dict.fromkeys(_STATUS, (_SOME, _NONE)) | {  # how many items and texts an operation takes
    "edit": (_ONE, _ONE),
    "move": (_ONE, _NONE),
    "merge": (_MANY, _ONE),
    "split": (_ONE, _MANY),
    "add": (_NONE, _ONE),
}


@dataclass(frozen=True)
class CuratedItem(ExperienceItem):
    """An experience item as it stands now: `text` is one line, `original` what was first written,
    to the byte.
    """

    status: str = "pending"
    """pending, skipped (seen, undecided), accepted, rejected; merged and split once others took its
    place.
    """
    parents: tuple[str, ...] = ()
    original: str = ""


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
    """The texts of `ids` when it was done: a log is never applied to items that say something else.
    """
    new: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    to: int | None = None
    evidence: tuple[Evidence, ...] = ()
    extra: dict = field(default_factory=dict, hash=False)


class Curation:
    """Items, their log and the state that follows from both.

    If `log_path` exists, that log is loaded; without a path nothing is kept on disk. Where an
    operation takes ids, it takes one or a list, and a list is one step of undo. A wrong call raises
    ValueError and changes nothing; so does `records.ConflictError`, raised if another editor has
    written to the log since: `reload` it."""

    def __init__(
        self,
        items: Iterable[ExperienceItem],
        log_path: str | os.PathLike | None = None,
        *,
        author: str = "user",
    ):
        self.author = author
        self.log_path = Path(log_path) if log_path is not None else None
        self._source = tuple(items)
        double = [i for i, count in Counter(item.id for item in self._source).items() if count > 1]
        if double:
            raise ValueError(f"items need distinct ids; more than one is called {double[0]!r}")
        self._load([])
        self.reload()

    @classmethod
    def open(
        cls, items_path: str | os.PathLike, log_path: str | os.PathLike, *, author: str = "user"
    ) -> Curation:
        """The curation of an items.jsonl with its log (created by the first operation)."""
        return cls(read_jsonl(items_path, ExperienceItem), log_path, author=author)

    def reload(self) -> None:
        """Read the log again, after somebody else has written to it; without a file there is
        nothing to read.
        """
        if self.log_path is not None:
            there = self.log_path.exists()
            self._size = (
                self.log_path.stat().st_size if there else 0
            )  # first: a line in between is then a conflict
            self._load(_read_log(self.log_path) if there else [])

    def _load(self, log: Sequence[Operation]) -> None:
        place = self.log_path or "log"
        if [op.n for op in log] != list(range(1, len(log) + 1)):
            raise RecordError(
                f"{place}: an operation is missing or doubled (`n` must count 1, 2, 3 …). Restore the "
                "log from a copy, or move it away to start anew",
                list(log),
            )
        done, undone = _stacks(log)
        self._state = _fold(self._source, done, f"{place}: ")
        self._log, self._done, self._undone = list(log), done, undone

    # -- operations

    def accept(self, id: str | Sequence[str], reason: str = "", author: str | None = None) -> None:
        """Keep: the teacher will read it."""
        self._do("accept", id, reason, author)

    def reject(self, id: str | Sequence[str], reason: str = "", author: str | None = None) -> None:
        """Leave out."""
        self._do("reject", id, reason, author)

    def skip(self, id: str | Sequence[str], reason: str = "", author: str | None = None) -> None:
        """Seen, not decided."""
        self._do("skip", id, reason, author)

    def restore(self, id: str | Sequence[str], reason: str = "", author: str | None = None) -> None:
        """Back to the original text, pending; a merged or split item is in the view again, beside
        what came of it.
        """
        self._do("restore", id, reason, author)

    def edit(self, id: str, text: str, reason: str = "", author: str | None = None) -> None:
        """Another text, the same status. Line breaks become spaces."""
        self._do("edit", id, reason, author, texts=(text,))

    def move(self, id: str, to: int, reason: str = "", author: str | None = None) -> None:
        """To index `to` of `items`. The first are the oldest: a token budget cuts from the top."""
        self._do("move", id, reason, author, to=to)

    def merge(
        self,
        ids: Sequence[str],
        text: str | None = None,
        reason: str = "",
        author: str | None = None,
    ) -> str:
        """One item in place of several, with all their evidence; returns its id. Default text:
        theirs, joined, the same words only once.

        It stands where the first of them stood, and keeps their status if they share one (else:
        pending)."""
        if text is None:
            texts = [self.item(i).text for i in _ids(ids)]
            text = " ".join(
                {_words(t): t for t in reversed(texts)}[w]
                for w in dict.fromkeys(map(_words, texts))
            )
        return self._do("merge", ids, reason, author, texts=(text,))[0]

    def split(
        self, id: str, texts: Sequence[str], reason: str = "", author: str | None = None
    ) -> list[str]:
        """Several items in place of one, each with its evidence and status; returns their ids."""
        return list(self._do("split", id, reason, author, texts=_ids(texts)))

    def add(
        self,
        text: str,
        evidence: Iterable[Evidence] = (),
        reason: str = "",
        author: str | None = None,
    ) -> str:
        """An item of one's own, at the end and accepted; returns its id."""
        return self._do("add", (), reason, author, texts=(text,), evidence=tuple(evidence))[0]

    def undo(self, reason: str = "", author: str | None = None) -> Operation:
        """Take back the last operation that is not undone yet; returns it."""
        self._do("undo", (), reason, author)
        return self._undone[-1]

    def redo(self, reason: str = "", author: str | None = None) -> Operation:
        """Do again what was undone last, and return it; any other operation in between ends this."""
        self._do("redo", (), reason, author)
        return self._done[-1]

    def _do(
        self, op: str, id: str | Sequence[str], reason: str, author: str | None, **fields: Any
    ) -> tuple[str, ...]:
        n, ids = len(self._log) + 1, _ids(id)
        new = [
            f"{op}-{n}.{k}" if op == "split" else f"{op}-{n}"
            for k, _ in enumerate(fields.get("texts", ()), 1)
        ]
        while (
            set(new) & self._state.keys()
        ):  # items that an earlier curation made may bear such a name
            new = [f"{i}'" for i in new]
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = Operation(
            n,
            op,
            self.author if author is None else author,
            now,
            reason,
            ids,
            tuple(self.item(i).text for i in ids),
            tuple(new) if op in _MAKES else (),
            **fields,
        )
        # All that can go wrong with the operation goes wrong here, on copies, before a byte is
        # written.
        done, undone = _stacks([*self._log, line])
        state = _fold(self._source, done) if op == "undo" else _step(self._state, done[-1])
        if self.log_path is not None:
            self._size = append_jsonl(self.log_path, line, expected_size=self._size)
        self._log, self._done, self._undone, self._state = [*self._log, line], done, undone, state
        return line.new

    # -- what follows from them

    @property
    def items(self) -> list[CuratedItem]:
        """The current view, in order; without the items that others took the place of."""
        return [item for item in self._state.values() if item.status not in _GONE]

    @property
    def log(self) -> list[Operation]:
        """Every operation ever, undo and redo among them."""
        return list(self._log)

    @property
    def can_undo(self) -> bool:
        return bool(self._done)

    @property
    def can_redo(self) -> bool:
        return bool(self._undone)

    def item(self, id: str) -> CuratedItem:
        """One item, also one that was merged or split."""
        if id not in self._state:
            raise ValueError(f"no item is called {id!r}")
        return self._state[id]

    def history(self, id: str) -> list[Operation]:
        """What was done to an item, made it or replaced it, and is not undone."""
        return [op for op in self._done if id in op.ids or id in op.new]

    def __repr__(self) -> str:
        counts = Counter(item.status for item in self.items)
        return (
            f"Curation({len(self.items)} items: "
            + ", ".join(f"{n} {status}" for status, n in counts.items())
            + ")"
        )

    def kept(self, draw: int | None = None) -> list[CuratedItem]:
        """The accepted items in order: all, or those of one draw's text (see `items_for_draw`)."""
        kept = [item for item in self.items if item.status == "accepted"]
        return kept if draw is None else items_for_draw(kept, draw)

    def within_budget(
        self, budget_tokens: int, tokenizer: Any, draw: int | None = None
    ) -> tuple[list[CuratedItem], list[CuratedItem]]:
        """(what fits, what was cut) of the kept items: the oldest, on top, go first (as in the
        paper).

        `tokenizer`: a Transformers or tokenizers one, or a function from a text to its number of
        tokens."""
        if tokenizer is None or budget_tokens < 0:
            raise ValueError("a token budget needs a tokenizer and must not be negative")
        kept = self.kept(draw)
        cut = bisect.bisect_left(
            range(len(kept)),
            True,
            key=lambda first: (
                count_tokens(experience_text(kept[first:]), tokenizer) <= budget_tokens
            ),
        )
        return kept[cut:], kept[:cut]

    def experience(
        self, budget_tokens: int | None = None, tokenizer: Any = None, draw: int | None = None
    ) -> str:
        """The text that the teacher reads: the kept items, one a line; see `within_budget` for what
        a budget cuts.
        """
        kept = (
            self.kept(draw)
            if budget_tokens is None
            else self.within_budget(budget_tokens, tokenizer, draw)[0]
        )
        return experience_text(kept)

    def diff(self) -> dict[str, list[tuple[str, str]]]:
        """For each edited item of the view the runs of words ("=" kept, "-" removed, "+" new) from
        original to text.
        """
        return {
            i.id: _word_diff(i.original, i.text)
            for i in self.items
            if i.text != one_line(i.original)
        }

    def duplicates(self, threshold: float = 0.8) -> list[list[str]]:
        """Groups of ids whose items share words: Jaccard overlap of at least `threshold` (0 to 1),
        also by a chain.

        Only a hint for a reader: "H is a hole, G is not." and "G is a hole, H is not." overlap
        wholly."""
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must lie in (0, 1], got {threshold}")
        words, groups = {i.id: set(_words(i.text)) for i in self.items}, []
        order = {id: k for k, id in enumerate(words)}
        for id, mine in words.items():
            near = [
                g
                for g in groups
                if any(len(mine & words[i]) >= threshold * len(mine | words[i]) for i in g)
            ]
            groups = [g for g in groups if g not in near] + [[id, *(i for g in near for i in g)]]
        return sorted(
            (sorted(g, key=order.get) for g in groups if len(g) > 1), key=lambda g: order[g[0]]
        )

    def to_frame(self) -> Any:
        """The view as a pandas DataFrame, one row an item. Raises ImportError without pandas."""
        import pandas  # no requirement of anything else here

        columns = [
            "id",
            "status",
            "text",
            "original",
            "evidence",
            "parents",
            "model",
            "round",
            "draw",
        ]
        return pandas.DataFrame(
            [[getattr(item, c) for c in columns] for item in self.items], columns=columns
        )


def replay(
    items: Iterable[ExperienceItem], log: str | os.PathLike | Sequence[Operation]
) -> Curation:
    """A recorded session (a log file or its operations) on the same items; later operations are not
    written to it.
    """
    curation = Curation(items)
    curation._load(_read_log(Path(log)) if isinstance(log, (str, os.PathLike)) else log)
    return curation


def items_for_draw(
    items: Iterable[ExperienceItem], draw: int, known: str = ""
) -> list[ExperienceItem]:
    """The items that belong to a draw's text: its own, a person's, and what was merged.

    known: text that they will stand behind; what a line of it says in the same words is left out.
    """
    mine = [i for i in items if i.draw == draw or not i.model or len(getattr(i, "parents", ())) > 1]
    said = {_words(line.removeprefix(MARKER)) for line in known.splitlines()}
    return [i for i in mine if _words(i.text) not in said]


def _ids(ids: str | Sequence[str]) -> tuple[str, ...]:
    return (ids,) if isinstance(ids, str) else tuple(ids)


def _read_log(path: Path) -> list[Operation]:
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


def _stacks(log: Iterable[Operation]) -> tuple[list[Operation], list[Operation]]:
    """(what makes the state, what can be done again): undo and redo move operations between the
    two.
    """
    done, undone = [], []
    for op in log:
        if op.op in ("undo", "redo"):
            source, target = (done, undone) if op.op == "undo" else (undone, done)
            if not source:
                raise ValueError(f"there is nothing to {op.op}")
            target.append(source.pop())
        else:
            done.append(op)
            undone.clear()
    return done, undone


def _fold(
    items: Iterable[ExperienceItem], ops: Iterable[Operation], place: str = ""
) -> dict[str, CuratedItem]:
    state = {
        i.id: CuratedItem(
            i.id, one_line(i.text), i.evidence, i.model, i.round, i.draw, i.extra, original=i.text
        )
        for i in items
    }
    for op in ops:
        try:
            state = _step(state, op)
        except ValueError as e:
            raise ValueError(
                f"{place}operation {op.n} does not fit these items: {e}. Give the items that the log "
                "was made for, or move the log away to start anew"
            ) from None
    return state


def _step(state: dict[str, CuratedItem], op: Operation) -> dict[str, CuratedItem]:
    """The ordered state after one more operation; ValueError where it does not fit."""
    if op.op not in _SHAPE:
        raise ValueError(f"unknown operation {op.op!r}")
    takes, says = _SHAPE[op.op]
    if not (
        len(op.ids) in takes
        and len(op.texts) in says
        and len(set(op.ids)) == len(op.ids) == len(op.before)
        and len(set(op.new)) == len(op.new) == (len(op.texts) if op.op in _MAKES else 0)
    ):
        raise ValueError(
            f"{op.op} does not go with {len(set(op.ids))} item(s) and {len(op.texts)} text(s)"
        )
    if wrong := [i for i in op.ids if i not in state]:
        raise ValueError(f"no item is called {wrong[0]!r}")
    if wrong := [i for i in op.new if i in state]:
        raise ValueError(f"{op.op}: an item is called {wrong[0]!r} already")
    old, texts = [state[i] for i in op.ids], [one_line(text) for text in op.texts]
    if not all(texts):
        raise ValueError(f"{op.op}: the text is empty; reject the item instead")
    for item, before in zip(old, op.before):
        if item.text != before:
            raise ValueError(f"item {item.id!r} says {item.text[:60]!r}, not {before[:60]!r}")
        if item.status in _GONE and op.op != "restore":
            raise ValueError(f"item {item.id!r} was {item.status}; restore it first")
    changed = {i.id: replace(i, status=_STATUS.get(op.op, i.status)) for i in old}
    new, at = [], None  # what is put in, and before which item (None: at the end)
    match op.op:
        case "restore":
            changed = {id: replace(i, text=one_line(i.original)) for id, i in changed.items()}
        case "edit":
            changed = {i.id: replace(i, text=texts[0]) for i in old}
        case "move":
            view = [i.id for i in state.values() if i.status not in _GONE and i is not old[0]]
            if op.to is None or not 0 <= op.to <= len(view):
                raise ValueError(f"move: the place must be 0 to {len(view)}, got {op.to}")
            state, changed, new, at = (
                {i: state[i] for i in state if i != old[0].id},
                {},
                old,
                [*view, None][op.to],
            )
        case "add":
            new = [
                CuratedItem(
                    op.new[0],
                    texts[0],
                    op.evidence,
                    "",
                    0,
                    0,
                    status="accepted",
                    original=op.texts[0],
                )
            ]
        case "merge" | "split":
            at = next(i for i in state if i in op.ids)
            same = len({i.status for i in old}) == 1
            made = replace(
                state[at],
                parents=op.ids,
                extra={},
                status=old[0].status if same else "pending",
                evidence=tuple(dict.fromkeys(e for i in old for e in i.evidence)),
            )
            new = [
                replace(made, id=i, text=text, original=raw)
                for i, text, raw in zip(op.new, texts, op.texts)
            ]
    state = state | changed  # in the old order
    if not new:
        return state
    items = list(state.values())
    place = next((n for n, i in enumerate(items) if i.id == at), len(items))
    return {i.id: i for i in items[:place] + new + items[place:]}


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.casefold())) or (
        text,
    )  # an item of nothing but signs is a word of its own


def _word_diff(old: str, new: str) -> list[tuple[str, str]]:
    a, b = old.split(), new.split()
    runs = [
        run
        for tag, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
        for run in ([("=", a[i:j])] if tag == "equal" else [("-", a[i:j]), ("+", b[k:m])])
    ]
    return [(sign, " ".join(words)) for sign, words in runs if words]

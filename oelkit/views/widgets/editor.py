"""An anywidget for curating experience items with keyboard or mouse, as a view of a `Curation`.

A row is a statement: the items in the same words. The editor owns no state. Each action becomes an
operation of the `Curation`, and the rows that change are sent to the browser, which keeps only
cursor, selection and filter. `editor_rows` builds the rows and their evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from typing import Any

from ... import given
from ...curation import Curation
from ...exchange import bring_in, export
from ...records import ConflictError, Fields, Trajectory, from_dict
from ...text import MARKER, count_tokens, counted, experience_text
from .base import LiveView, source
from .editor_rows import detail, rows_of


@dataclass(frozen=True)
class _Asked:
    """A message of the browser; `from_dict` checks its types."""

    op: str
    ids: tuple[str, ...] = ()
    """Of rows."""
    texts: tuple[str, ...] = ()
    to: int | None = None
    reason: str = ""
    said: str | None = None
    """Comes back as a notice once it is done."""
    extra: Fields = field(default_factory=Fields)


class ExperienceEditor(LiveView):
    """Editor to accept, reject, edit, merge and reorder items; each operation is logged at once.

    The view updates itself when it gets the focus; `refresh` shows changes by Python code earlier.

    Args:
        curation: The items and their decisions.
        tokenizer: A Transformers tokenizer, or a function from a text to its number of tokens
            (None: words are counted).
        budget_tokens: Most tokens of the experience; the oldest items over it are marked as cut.
        prompt: Builds the teacher's whole prompt from an experience, for the preview.
        games: Trajectories in which evidence is looked up.
        on_turn: Called with trajectory id and turn (from 0) to show a turn, such as
            `TrajectoryViewer.show`.
        worth: The effect of each item's text with its interval, as `leave_one_out` returns it;
            shown only for unchanged texts.
        on_change: Called at the start and after each operation. A returned text is shown in the
            footer, such as what an edit makes out of date.

    Raises:
        ValueError: A budget is given without a tokenizer, or is below 0.
    """

    _esm = source("board.js", "editor_rows.js", "editor_panels.js", "editor_page.js", "editor.js")
    _css = source("editor.css", "editor_rows.css")

    # why: each is an option of the view that most callers leave out
    def __init__(
        self,
        curation: Curation,
        *,
        tokenizer: Any = None,
        budget_tokens: int | None = None,
        prompt: Callable[[str], str] | None = None,
        games: Sequence[Trajectory] = (),
        on_turn: Callable[[str, int], Any] | None = None,
        worth: Mapping[str, Sequence[float]] | None = None,
        on_change: Callable[[], Any] | None = None,
    ):
        given.one("curation", curation, Curation, ", such as Curation(items)")
        super().__init__()
        if budget_tokens is not None and tokenizer is None:
            raise ValueError("a token budget needs a tokenizer")
        self.curation, self.budget, self.prompt = curation, _budget(budget_tokens), prompt or str
        games = given.records("games", games, Trajectory)
        self.games, self.on_turn = {game.id: game for game in games}, on_turn
        self.worth = dict(worth or {})
        self.on_change, self.unit = on_change, "words" if tokenizer is None else "tokens"
        tokenizer = tokenizer or (lambda text: len(text.replace(MARKER, "").split()))
        self.count = lru_cache(1 << 15)(lambda text: count_tokens(text, tokenizer))
        self.draw: int | None = None  # the draw whose text is previewed
        self._shown: str | None = None  # the last item passed to `show`
        self._rows, self._state = {}, {}
        self._groups: dict[str, tuple[str, ...]] = {}  # ids of the items in each row
        self._hint: Any = on_change() if on_change else ""
        self.on_msg(lambda _, message, buffers: self._receive(message))

    @property
    def static_html(self) -> str:
        """The items and what the teacher reads, as HTML."""
        left = 'style="text-align:left;overflow-wrap:break-word"'
        rows = "".join(
            f"<tr><td>{escape(s.status)}</td><td {left}>{escape(s.text)}</td>"
            f"<td>{len(s.draws) or 'by hand'}</td></tr>"
            for s in self.curation.statements()
        )
        table = f"<table><tr><th>status</th><th>item</th><th>draws</th></tr>{rows}</table>"
        reads = escape(self.curation.experience() or "(nothing is accepted yet)")
        wrap = 'style="white-space:pre-wrap;overflow-wrap:anywhere"'
        return f"{table}<p>What the teacher reads:</p><pre {wrap}>{reads}</pre>"

    def show(self, id: str) -> None:
        """Move the cursor to an item and scroll the editor into view; ValueError for an unknown id.

        An editor that is not displayed yet moves the cursor once it is.
        """
        self.curation.item(id)
        self._shown = id
        self.refresh(at=id, reveal=True)

    def refresh(self, **more: Any) -> None:
        """Send the browser what has changed since the last call."""
        rows, state = self._now()
        if more.get("at"):
            more["at"] = self._row_of(more["at"])
        news = {key: value for key, value in state.items() if self._state.get(key, self) != value}
        changed = {id: row for id, row in rows.items() if self._rows.get(id) != row}
        self._rows, self._state = rows, state
        self.send_json(**news, rows=changed, **more)

    def _row_of(self, id: str) -> str | None:
        """The row of an item, or of the item that it became."""
        rows = {item: row for row, ids in self._groups.items() for item in ids}
        while id not in rows:
            made = [op.new[0] for op in self.curation.history(id) if id in op.ids and op.new]
            if not made:
                return None
            id = made[-1]
        return rows[id]

    def _receive(self, message: Any) -> None:
        before, asked = len(self.curation.log), _Asked("")
        try:
            asked = from_dict(_Asked, message, "message")
            answer = ({"notice": asked.said} if asked.said else {}) | self._do(asked)
            if self.on_change and len(self.curation.log) != before:
                self._hint = self.on_change()
        # an empty text, a budget of 1e30, a concurrent write, a full disk
        except (ValueError, TypeError, RuntimeError, OSError) as error:
            answer = {"error": str(error), "conflict": isinstance(error, ConflictError)}
        # the page keeps a form's text until it knows
        if asked.op in ("edit", "merge", "split", "add"):
            answer["saved"] = len(self.curation.log) > before
        self.refresh(**answer)

    def _do(self, asked: _Asked) -> dict:
        """Handle a browser message; "at" in the answer moves the cursor."""
        op, ids, texts, to = asked.op, asked.ids, asked.texts, asked.to
        c, items = self.curation, [id for row in ids for id in self._groups.get(row, (row,))]
        match op:
            case "hello":  # from a new view, which has no rows yet
                self._rows, self._state = {}, {}
                return {"at": self._shown} if self._shown else {}
            case "refresh":  # the caller refreshes anyway
                pass
            case "look" if ids:
                return {"detail": detail(ids[0], items, c, self.games, whole=to is not None)}
            case "turn" if self.on_turn and ids and to is not None:
                self.on_turn(ids[0], to)
            case "accept" | "reject" | "skip" | "restore":
                getattr(c, op)(items)
            case "edit" | "merge" | "split" if items and texts:
                return {"at": [*c.rewrite(op, items, texts), items[0]][0]}
            case "move" if items and texts:  # right above or below another row's first item
                others = [i.id for i in c.items if i.id not in items]
                beside = [others.index(i) for i in self._groups.get(texts[0], texts) if i in others]
                if not beside:
                    raise ValueError(f"no other row has the id {texts[0]!r}")
                c.move(items, min(beside) + bool(to))
                return {"at": items[0]}
            case "add" if texts:
                return {"at": c.add(texts[0])}
            case "undo" | "redo":
                was = getattr(c, op)()
                return {"at": next((i.id for i in c.items if i.id in was.ids + was.new), None)}
            case "explain":
                c.explain(asked.reason)
            case "draw":
                self.draw = to
            case "budget":  # for this view only; a run uses its own setting
                self.budget = _budget(to)
            case "author" if texts:
                c.author = texts[0].strip() or c.author
            case "reload":
                c.reload()
            case "export" if texts:
                return {"file": [f"curation.{texts[0]}", export(c, texts[0])]}
            case "import" if texts:
                n = bring_in(c, texts[0])
                done = f"Imported {counted(n, 'operation')}"
                return {"notice": done if n else "Imported: no changes"}
            case _:
                about = f"{counted(len(items), 'item')} and {counted(len(texts), 'text')}"
                raise ValueError(f"the editor knows no operation {op!r} with {about}")
        return {}

    def _now(self) -> tuple[dict[str, dict], dict[str, Any]]:
        """The rows by id, and the rest of the state to show."""
        c, items = self.curation, self.curation.items
        draws = sorted({i.draw for i in items if i.model})
        self.draw = self.draw if self.draw in draws else next(iter(draws), None)
        reads, cut = c.kept(self.draw), []
        if self.budget is not None:
            reads, cut = c.within_budget(self.budget, self.count, self.draw)
        text = experience_text(reads)
        try:
            prompt = self.prompt(text)
        except Exception as error:  # a chat template can raise anything on what it does not take
            prompt = f"The whole prompt cannot be shown: {error}\n{text}"
        before, found, after = prompt.partition(text) if text else (prompt, "", "")
        rows, self._groups = rows_of(c, items, {i.id for i in cut}, self.count)
        for row in rows.values():
            row["worth"] = self.worth.get(row["text"])
        return rows, {
            "measured": bool(self.worth),
            "order": list(rows),
            "draws": draws,
            "draw": self.draw,
            "before": before,
            "after": after,
            "reads": found.split("\n") if found else [],
            "cut": [i.text for i in cut],
            "edge": self._row_of(reads[0].id) if cut and reads else None,
            "tokens": self.count(text),
            "prompt_tokens": self.count(prompt),
            "budget": self.budget,
            "unit": self.unit,
            "can": [c.can_undo, c.can_redo],
            "viewer": self.on_turn is not None,
            "author": c.author,
            "log": [None if c.log_path is None else str(c.log_path), len(c.log)],
            "hint": self._hint if isinstance(self._hint, str) else "",
        }


def _budget(tokens: int | None) -> int | None:
    return None if tokens is None else given.count("budget_tokens", tokens, 0)

"""Curate experience items with keyboard or mouse: one anywidget, a view on a `Curation`.

It owns no state: what a person does goes as an operation to the `Curation`, and what is shown is
what has come back from there (the rows that differ from what the browser has). The browser side,
editor.js, keeps only where the person is: cursor, selection, filter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from html import escape
from typing import Any

from ...curation import CuratedItem, Curation
from ...records import ConflictError, Evidence, Trajectory
from ...text import count_tokens, experience_text
from .base import LiveView, board_of, pre, source


class ExperienceEditor(LiveView):
    """Go through the items: accept, reject, edit, merge, reorder …; each operation is in the log at
    once. The view asks for news when it gets the focus; `refresh` shows what Python code did.

    Args:
        tokenizer: A Transformers one, or a function from a text to its number of tokens (None:
            words are counted).
        budget_tokens: What the experience may have; the oldest items over it are marked as cut.
        prompt: Makes of an experience the whole prompt that the teacher reads, for the preview.
        games: Where the evidence is looked up.
        on_turn: Gets trajectory id and turn (from 0) where a person wants to see it, as
            `TrajectoryViewer.show` does.
        on_change: Called after each operation.

    Raises:
        ValueError: There is a budget, and no tokenizer.
    """

    _esm, _css = source("board.js", "editor.js"), source("editor.css")

    # why: each is an option of the view that most do without
    def __init__(
        self,
        curation: Curation,
        *,
        tokenizer: Any = None,
        budget_tokens: int | None = None,
        prompt: Callable[[str], str] | None = None,
        games: Sequence[Trajectory] = (),
        on_turn: Callable[[str, int], Any] | None = None,
        on_change: Callable[[], Any] | None = None,
    ):
        super().__init__()
        if budget_tokens is not None and tokenizer is None:
            raise ValueError("a token budget needs a tokenizer")
        self.curation, self.budget, self.prompt = curation, budget_tokens, prompt or str
        self.games, self.on_turn = {game.id: game for game in games}, on_turn
        self.on_change, self.unit = on_change, "words" if tokenizer is None else "tokens"
        tokenizer = tokenizer or (lambda text: len(text.split()))
        self.count = lru_cache(4096)(lambda text: count_tokens(text, tokenizer))
        self.draw: int | None = None  # whose text is previewed
        self._shown: str | None = None  # the item that `show` was asked for last
        self._rows, self._state, self._alike = {}, {}, ({}, {})
        self.on_msg(lambda _, message, buffers: self._receive(message))

    @property
    def static_html(self) -> str:
        """The items and what the teacher reads."""
        left = 'style="text-align:left;overflow-wrap:anywhere"'
        rows = "".join(
            f"<tr><td>{escape(i.status)}</td><td {left}>{escape(i.text)}</td></tr>"
            for i in self.curation.items
        )
        table = f"<table><tr><th>status</th><th>item</th></tr>{rows}</table>"
        reads = self.curation.experience() or "(nothing is accepted yet)"
        return f"{table}<p>What the teacher reads:</p>{pre(reads)}"

    def show(self, id: str) -> None:
        """Put the cursor on an item, and the editor into sight, also where it is not on the page
        yet; ValueError where there is no item of that id.
        """
        self.curation.item(id)
        self._shown = id
        self.refresh(at=id, reveal=True)

    def refresh(self, **more: Any) -> None:
        """Send what has changed since the last time."""
        rows, state = self._now()
        news = {key: value for key, value in state.items() if self._state.get(key, self) != value}
        changed = {id: row for id, row in rows.items() if self._rows.get(id) != row}
        self._rows, self._state = rows, state
        self.send_json(**news, rows=changed, **more)

    def _receive(self, message: dict) -> None:
        before = len(self.curation.log)
        try:
            answer = self._do(**message)
            if self.on_change and len(self.curation.log) != before:
                self.on_change()
        # an empty text, somebody else's write, a full disk
        except (ValueError, RuntimeError, OSError) as error:
            answer = {"error": str(error), "conflict": isinstance(error, ConflictError)}
        self.refresh(**answer)

    def _do(
        self,
        op: str,
        ids: Sequence[str] = (),
        texts: Sequence[str] = (),
        to: int = 0,
        reason: str = "",
        draw: int | None = None,
    ) -> dict:
        """One message of the browser; "at" in the answer is where the cursor should go."""
        c = self.curation
        match op:
            case "hello":  # from a new view, which has heard nothing of before
                self._rows, self._state = {}, {}
                return {"at": self._shown} if self._shown else {}
            case "refresh":  # all that follows an operation does it
                pass
            case "draw":
                self.draw = draw
            case "look":
                return {"detail": self._detail(ids[0])}
            case "turn" if self.on_turn:
                self.on_turn(ids[0], to)
            case "accept" | "reject" | "skip" | "restore":
                getattr(c, op)(ids, reason)
            case "edit":
                c.edit(ids[0], texts[0], reason)
            case "move":
                c.move(ids[0], to, reason)
            case "merge":
                return {"at": c.merge(ids, None, reason)}
            case "split":
                return {"at": c.split(ids[0], texts, reason)[0]}
            case "add":
                return {"at": c.add(texts[0], (), reason)}
            case "undo" | "redo":
                was = getattr(c, op)(reason)
                return {"at": next((i.id for i in c.items if i.id in was.ids + was.new), None)}
            case "reload":
                c.reload()
            case _:
                raise ValueError(f"the editor knows no operation {op!r}")
        return {}

    def _now(self) -> tuple[dict[str, dict], dict[str, Any]]:
        """What is shown: a row for each item, and all the rest."""
        c, items = self.curation, self.curation.items
        draws = sorted({i.draw for i in items if i.model})
        self.draw = self.draw if self.draw in draws else next(iter(draws), None)
        reads, cut = c.kept(self.draw), []
        if self.budget is not None:
            reads, cut = c.within_budget(self.budget, self.count, self.draw)
        text = experience_text(reads)
        prompt = self.prompt(text)
        before, found, after = prompt.partition(text) if text else (prompt, "", "")
        return self._items(items, {i.id for i in cut}), {
            "order": [i.id for i in items],
            "draws": draws,
            "draw": self.draw,
            "before": before,
            "after": after,
            "reads": found.split("\n") if found else [],
            "cut": [i.text for i in cut],
            "edge": reads[0].id if cut and reads else None,
            "tokens": self.count(text),
            "prompt_tokens": self.count(prompt),
            "budget": self.budget,
            "unit": self.unit,
            "can": [c.can_undo, c.can_redo],
        }

    def _items(self, items: Sequence[CuratedItem], cut: set[str]) -> dict[str, dict]:
        if self._alike[0] != (texts := {i.id: i.text for i in items}):
            same = enumerate(self.curation.duplicates())
            self._alike = texts, {id: n for n, ids in same for id in ids}
        several, diff = len({i.round for i in items if i.model}) > 1, self.curation.diff()

        def source(item: CuratedItem) -> str:
            if len(item.parents) > 1 or not item.model:
                return "merged" if item.parents else "by hand"
            return f"round {item.round}, " * several + f"draw {item.draw}"

        return {
            i.id: {
                "text": i.text,
                "status": i.status,
                "source": source(i),
                "tokens": self.count(i.text),
                "cut": i.id in cut,
                "alike": self._alike[1].get(i.id),
                "seen": len(i.evidence),
                "diff": diff.get(i.id),
            }
            for i in items
        }

    def _detail(self, id: str) -> dict:
        """Where an item comes from: the turns, the items it was made of, what was done to it."""
        c, item = self.curation, self.curation.item(id)
        return {
            "id": id,
            "original": item.original,
            "viewer": self.on_turn is not None,
            "evidence": [self._turn(seen) for seen in item.evidence],
            "parents": [[parent, c.item(parent).text] for parent in item.parents],
            "history": [[op.op, op.author, op.time, op.reason] for op in c.history(id)],
        }

    def _turn(self, seen: Evidence) -> dict:
        game = self.games.get(seen.trajectory_id)
        if game is None or seen.turn >= len(game.turns):
            return {"game": seen.trajectory_id, "turn": seen.turn + 1}
        t = game.turns[seen.turn]
        place = {"game": game.id, "turn": seen.turn + 1, "of": len(game.turns)}
        board = {**board_of(t.observation), "action": t.action}
        played = {"reply": t.reply, "move": t.action, "feedback": t.feedback}
        return {**place, "outcome": game.outcome, "text": t.observation, "board": board, **played}

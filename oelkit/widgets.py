"""Plain ipywidgets: look at games turn by turn, and accept, reject or edit experience items.

The views hold no state: every click calls a method of `Curation`, and what is shown is drawn from it again. Text of
models is escaped. A saved notebook keeps plain HTML in place of the live view.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

import ipywidgets as w
from matplotlib.figure import Figure

from .curate import Curation, _count
from .envs import parse_board
from .envs.picture import draw_board
from .records import Trajectory


class _View(w.VBox):
    still = ""  # HTML for where no kernel runs

    def _repr_mimebundle_(self, **options: Any) -> dict:
        return {**super()._repr_mimebundle_(**options), "text/html": self.still}


def _pre(text: str) -> str:
    return f'<pre style="white-space:pre-wrap;overflow-wrap:anywhere;margin:0 0 .6em">{escape(text)}</pre>'


def trajectory_viewer(trajectories: Sequence[Trajectory]) -> w.VBox:
    """Games to leaf through: board with the move, reply, feedback of a turn. ValueError where there is no turn."""
    games = [game for game in trajectories if game.turns]
    if not games:
        raise ValueError("nothing to view: there is no trajectory with a turn")
    menu = w.Dropdown(options=[(f"{t.id}: {t.outcome}", i) for i, t in enumerate(games)], description="game")
    slider = w.IntSlider(value=1, min=1, max=len(games[0].turns), description="turn")
    board, text = w.Image(format="png"), w.HTML(layout=w.Layout(flex="1 1 0", margin="0 0 0 16px"))

    def draw(change: Any = None) -> None:
        if change and change["owner"] is menu:
            slider.max = len(games[menu.value].turns)
            slider.value = 1
        turn = games[menu.value].turns[slider.value - 1]
        cells, png = parse_board(turn.observation), io.BytesIO()
        if cells:
            figure = Figure(figsize=(2.6, 2.6), facecolor="white")
            draw_board(figure.add_axes((0.02, 0.02, 0.96, 0.96)), cells, turn.action)
            figure.savefig(png, dpi=100)
        board.value, board.layout.display = png.getvalue(), "" if cells else "none"
        parts = {"reply": turn.reply, "move": turn.action or "none found", "feedback": turn.feedback}
        parts = parts if cells else {"observation": turn.observation, **parts}
        text.value = "".join(f"<b>{name}</b>{_pre(value)}" for name, value in parts.items())

    for control in (menu, slider):
        control.observe(draw, "value")
    draw()
    view = _View([w.HBox([menu, slider]), w.HBox([board, text])])
    view.still = text.value
    return view


def curation_table(curation: Curation, tokenizer: Any = None) -> w.VBox:
    """A row an item: status, accept, reject, the text to edit; then undo and redo, how much is kept, how it reads.

    tokenizer: a Transformers one, or a function from a text to its number of tokens; without one, words are counted.
    """
    rows: dict[str, w.HBox] = {}
    table, line, preview, wrong = w.VBox(), w.HTML(), w.HTML(), w.HTML()
    undo, redo = (w.Button(description=name, layout=w.Layout(width="80px")) for name in ("undo", "redo"))
    view = _View([table, w.HBox([undo, redo, line]), wrong, preview])

    def do(operation: str, *arguments: str) -> None:
        wrong.value = ""
        try:
            getattr(curation, operation)(*arguments)
        except (ValueError, RuntimeError, OSError) as error:  # an empty text, somebody else's write, a full disk
            wrong.value = f'<b style="color:#b3401c">{escape(str(error))}</b>'
        draw()

    def row(id: str) -> w.HBox:
        yes, no = (w.Button(description=name, layout=w.Layout(width="72px")) for name in ("accept", "reject"))
        field = w.Text(continuous_update=False, layout=w.Layout(flex="1 1 0"))
        yes.on_click(lambda _: do("accept", id))
        no.on_click(lambda _: do("reject", id))
        field.observe(lambda c: c["new"] != curation.item(id).text and do("edit", id, c["new"]), "value")
        return w.HBox([w.HTML(layout=w.Layout(width="76px")), yes, no, field])

    def draw() -> None:
        items = curation.items
        for item in items:
            if item.id not in rows:
                rows[item.id] = row(item.id)
            status, yes, no, field = rows[item.id].children
            status.value, field.value = escape(item.status), item.text
            yes.button_style = "success" if item.status == "accepted" else ""
            no.button_style = "danger" if item.status == "rejected" else ""
        table.children = [rows[item.id] for item in items]
        undo.disabled, redo.disabled = not curation.can_undo, not curation.can_redo
        text, counts = curation.experience(), Counter(item.status for item in items)
        size = f"{_count(text, tokenizer)} tokens" if tokenizer else f"{len(text.split())} words"
        line.value = f"<b>{counts['accepted']} of {len(items)} items kept, {size}</b>"
        preview.value = _pre(text or "(nothing accepted yet: the teacher would read nothing)")
        cells = "".join(f"<tr><td>{escape(i.status)}</td><td>{escape(i.text)}</td></tr>" for i in items)
        view.still = f"<table>{cells}</table><p>{line.value}</p>"

    undo.on_click(lambda _: do("undo"))
    redo.on_click(lambda _: do("redo"))
    draw()
    return view

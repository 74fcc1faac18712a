"""Games turn by turn: board, reply, move, feedback. A view: it changes nothing, and keeps nothing."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import ipywidgets as w
from matplotlib.figure import Figure

from ..envs import parse_board
from ..envs.picture import draw_board
from ..records import Trajectory
from .base import pre


class Box(w.VBox):
    still = ""

    def _repr_mimebundle_(self, **options: Any) -> dict:
        return {**super()._repr_mimebundle_(**options), "text/html": self.still}


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
        text.value = "".join(f"<b>{name}</b>{pre(value)}" for name, value in parts.items())

    for control in (menu, slider):
        control.observe(draw, "value")
    draw()
    view = Box([w.HBox([menu, slider]), w.HBox([board, text])])
    view.still = text.value
    return view

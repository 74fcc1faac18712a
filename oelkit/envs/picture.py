"""Boards as pictures: one matplotlib drawing for notebooks, reports and `render(mode='rgb_array')`.

The symbols are drawn as what they stand for, holes and goals with their own letter, so that picture
and text can be read side by side; a letter of unknown meaning is a letter on a coloured tile.
Matplotlib is imported where it is used."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import frozen_lake, sokoban

_ICE, _ICE_EDGE, _FLOOR, _FLOOR_EDGE = "#e3f1fa", "#c3deee", "#f1e9dc", "#e0d3bf"
_TILES = (
    "#c9a7eb",
    "#f6c177",
    "#8fd3c1",
    "#f2a6b8",
    "#a8b8f0",
    "#d5cf7a",
)  # unknown letters, by code point
_GOAL, _WATER, _DEEP, _WOOD, _PLAYER = "#cdeecb", "#3d6f9e", "#16324f", "#b9793a", "#e4572e"
_BRICKS = (
    ((0.02, 0.21), (0.27, 0.46), (0.77, 0.21)),
    ((0.02, 0.46), (0.52, 0.46)),
)  # start, width in a course
_STEPS = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}  # x, y on a board with row 0 on top


def _kinds(cells: list[list[str]]) -> dict[str, str]:
    """What the symbols mean by default: Sokoban's where there is a wall, else Frozen Lake's."""
    walled = any("#" in row for row in cells)
    return {
        symbol: kind
        for kind, symbol in (sokoban.SYMBOLS if walled else frozen_lake.SYMBOLS).items()
    }


def draw_board(
    ax: Any,
    cells: list[list[str]],
    move: str | None = None,
    title: str | None = None,
    kinds: dict[str, str] | None = None,
) -> None:
    """Draw a board (rows of symbols, as `parse_board` gives them) on a matplotlib axis, which it
    takes over.

    `move` ('left' …) adds an arrow at the player; `kinds` (symbol -> 'hole', 'goal', …; names as in
    the SYMBOLS of the worlds) says what the symbols mean where they are renamed."""
    from matplotlib.patches import Circle, Ellipse, FancyBboxPatch, Polygon, Rectangle
    from matplotlib.patheffects import withStroke

    if not cells or any(len(row) != len(cells[0]) for row in cells):
        raise ValueError("draw_board needs a board: rows of symbols, all of one length")
    kinds = _kinds(cells) if kinds is None else kinds
    rows, columns = len(cells), len(cells[0])
    size = ax.get_position().transformed(ax.figure.transFigure)
    point = min(size.width / columns, size.height / rows) * 72 / ax.figure.dpi  # a tile's width
    indoors = any(kinds.get(symbol) == "wall" for row in cells for symbol in row)
    player = None

    def letter(x: float, y: float, text: str, share: float, colour: str) -> None:
        ax.text(
            x,
            y,
            text,
            size=share * point,
            color=colour,
            ha="center",
            va="center_baseline",
            weight="bold",
        )

    def tile(x: int, y: int, face: str, edge: str) -> None:
        box = FancyBboxPatch(
            (x + 0.07, y + 0.07), 0.86, 0.86, boxstyle="round,pad=0,rounding_size=0.1"
        )
        box.set(facecolor=face, edgecolor=edge, linewidth=point * 0.025)
        ax.add_patch(box)

    def add(shape: Any, face: str, edge: str = "none", width: float = 0.0) -> None:
        shape.set(facecolor=face, edgecolor=edge, linewidth=width * point)
        ax.add_patch(shape)

    def person(x: int, y: int) -> None:
        add(Ellipse((x + 0.5, y + 0.86), 0.46, 0.1), "#00000022")
        add(
            FancyBboxPatch(
                (x + 0.35, y + 0.48), 0.3, 0.34, boxstyle="round,pad=0,rounding_size=0.13"
            ),
            _PLAYER,
        )
        add(Circle((x + 0.5, y + 0.33), 0.155), "#f7d3b1", "#7a4a2b", 0.02)
        add(
            Polygon([(x + 0.33, y + 0.29), (x + 0.5, y + 0.09), (x + 0.67, y + 0.29)], closed=True),
            _PLAYER,
        )

    def crate(x: int, y: int, face: str, edge: str) -> None:
        add(Rectangle((x + 0.16, y + 0.16), 0.68, 0.68), face, edge, 0.06)
        ax.plot(
            [x + 0.2, x + 0.8],
            [y + 0.2, y + 0.8],
            color=edge,
            lw=0.05 * point,
            solid_capstyle="butt",
        )
        ax.plot(
            [x + 0.2, x + 0.8],
            [y + 0.8, y + 0.2],
            color=edge,
            lw=0.05 * point,
            solid_capstyle="butt",
        )

    for y, row in enumerate(cells):
        for x, symbol in enumerate(row):
            kind = kinds.get(symbol, "unknown")
            if kind == "wall":
                add(Rectangle((x, y), 1, 1), "#6f6a75", "#6f6a75", 0.01)
                for course in range(4):
                    for start, width in _BRICKS[course % 2]:
                        add(
                            Rectangle((x + start, y + course * 0.25 + 0.02), width, 0.21), "#8b8592"
                        )
                continue
            tile(x, y, _FLOOR if indoors else _ICE, _FLOOR_EDGE if indoors else _ICE_EDGE)
            if kind == "free" and not indoors:  # a glint on the ice
                for d in (0.0, 0.14):
                    ends = [x + 0.24, x + 0.42 + d / 2], [y + 0.46 + d, y + 0.28 + d / 2]
                    ax.plot(*ends, color="white", lw=0.05 * point, solid_capstyle="round")
            elif kind == "hole":
                add(Ellipse((x + 0.5, y + 0.5), 0.78, 0.7), _WATER, "white", 0.03)
                add(Ellipse((x + 0.5, y + 0.54), 0.64, 0.54), _DEEP)
                letter(x + 0.5, y + 0.54, symbol, 0.36, "#9cc4e4")
            elif kind == "goal":
                tile(x, y, _GOAL, "#8fce8b")
                ax.plot(
                    [x + 0.34, x + 0.34], [y + 0.2, y + 0.84], color="#5b4636", lw=0.055 * point
                )
                flag = [(x + 0.36, y + 0.18), (x + 0.88, y + 0.38), (x + 0.36, y + 0.58)]
                add(Polygon(flag, closed=True), "#2f9e44")
                letter(x + 0.5, y + 0.4, symbol, 0.22, "white")
            elif kind in ("target", "player on target"):
                add(Circle((x + 0.5, y + 0.5), 0.27), "none", "#d6336c", 0.07)
                add(Circle((x + 0.5, y + 0.5), 0.1), "#d6336c")
            elif kind == "box":
                crate(x, y, "#d99a55", _WOOD)
            elif kind == "done":
                crate(x, y, "#8ccf8a", "#2f8f46")
            elif kind not in ("free", "player"):
                tile(x, y, _TILES[ord(symbol) % len(_TILES)], "white")
                letter(x + 0.5, y + 0.5, symbol, 0.5, "#333333")
            if kind in ("player", "player on target"):
                player = (x, y)
                person(x, y)
    if player and move in _STEPS:
        (x, y), (dx, dy) = player, _STEPS[move]
        tail, head = (
            (x + 0.5 + 0.34 * dx, y + 0.5 + 0.34 * dy),
            (x + 0.5 + 0.8 * dx, y + 0.5 + 0.8 * dy),
        )
        look = dict(
            arrowstyle="-|>",
            color="#212529",
            lw=0.06 * point,
            mutation_scale=0.42 * point,
            shrinkA=0,
            shrinkB=0,
        )
        look["path_effects"] = [
            withStroke(linewidth=0.12 * point, foreground="white")
        ]  # or it is lost on a hole
        ax.annotate("", head, tail, arrowprops=look, annotation_clip=False, zorder=5)
    ax.set(xlim=(-0.03, columns + 0.03), ylim=(rows + 0.03, -0.03), aspect="equal")
    ax.set_axis_off()
    if title:
        ax.set_title(title, fontsize=8)


def board_image(
    cells: list[list[str]], kinds: dict[str, str] | None = None, tile: int = 64
) -> np.ndarray:
    """A board as an RGB picture, uint8 [rows * tile, columns * tile, 3]; symbols as in
    `draw_board`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not cells:
        raise ValueError("board_image needs a board: rows of symbols")
    figure = Figure(
        figsize=(len(cells[0]), len(cells)), dpi=tile, facecolor="white"
    )  # not pyplot: no global state
    canvas = FigureCanvasAgg(figure)
    draw_board(figure.add_axes((0, 0, 1, 1)), cells, kinds=kinds)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

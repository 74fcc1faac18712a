"""Boards as pictures: one matplotlib drawing for notebooks, reports and `render_mode='rgb_array'`.

Symbols are drawn as what they stand for, holes and goals with their own letter, so you can read
picture and text side by side. A letter of unknown meaning is a letter on a coloured tile.
Importing this file loads matplotlib, so `text_env` does it only to draw.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, FancyBboxPatch, Polygon, Rectangle
from matplotlib.patheffects import withStroke

from ..text import well_formed
from .board import STEPS, symbol_kinds

_ICE, _FLOOR = ("#e3f1fa", "#c3deee"), ("#f1e9dc", "#e0d3bf")  # face, edge
_TILES = ("#c9a7eb", "#f6c177", "#8fd3c1", "#f2a6b8", "#a8b8f0", "#d5cf7a")  # by code point
_GOAL, _WATER, _DEEP, _WOOD, _PLAYER = "#cdeecb", "#3d6f9e", "#16324f", "#b9793a", "#e4572e"
_BRICKS = (((0.02, 0.21), (0.27, 0.46), (0.77, 0.21)), ((0.02, 0.46), (0.52, 0.46)))
"""Start and width of the bricks in the even and odd courses of a wall."""
_Ends = tuple[float, float]


class _Tile:
    """Draws on one tile. Lengths are shares of the tile, and y points down."""

    def __init__(self, ax: Any, x: int, y: int, point: float):
        self.ax, self.x, self.y, self.point = ax, x, y, point

    def add(self, shape: Any, face: str, edge: str = "none", width: float = 0.0) -> None:
        shape.set(facecolor=face, edgecolor=edge, linewidth=width * self.point)
        self.ax.add_patch(shape)

    def line(self, x: _Ends, y: _Ends, color: str, width: float, cap: str = "butt") -> None:
        style = {"color": color, "lw": width * self.point, "solid_capstyle": cap}
        self.ax.plot([self.x + v for v in x], [self.y + v for v in y], **style)

    def letter(self, x: float, y: float, text: str, size: float, color: str) -> None:
        style = {"ha": "center", "va": "center_baseline", "weight": "bold", "color": color}
        style |= {"parse_math": False}  # symbols are no formulas
        self.ax.text(self.x + x, self.y + y, well_formed(text), size=size * self.point, **style)

    def ellipse(self, x: float, y: float, width: float, height: float, *look: Any) -> None:
        self.add(Ellipse((self.x + x, self.y + y), width, height), *look)

    def box(self, x: float, y: float, width: float, height: float, *look: Any) -> None:
        self.add(Rectangle((self.x + x, self.y + y), width, height), *look)

    def rounded(self, x: float, y: float, w: float, h: float, radius: float, *look: Any) -> None:
        style = f"round,pad=0,rounding_size={radius}"
        self.add(FancyBboxPatch((self.x + x, self.y + y), w, h, boxstyle=style), *look)

    def triangle(self, corners: list[tuple[float, float]], face: str) -> None:
        self.add(Polygon([(self.x + x, self.y + y) for x, y in corners], closed=True), face)

    def ground(self, face: str, edge: str) -> None:
        self.rounded(0.07, 0.07, 0.86, 0.86, 0.1, face, edge, 0.025)

    def wall(self) -> None:
        self.box(0, 0, 1, 1, "#6f6a75", "#6f6a75", 0.01)
        for course in range(4):
            for start, width in _BRICKS[course % 2]:
                self.box(start, course * 0.25 + 0.02, width, 0.21, "#8b8592")

    def ice(self) -> None:
        for d in (0.0, 0.14):  # two glints
            ends = (0.24, 0.42 + d / 2), (0.46 + d, 0.28 + d / 2)
            self.line(*ends, "white", 0.05, "round")

    def hole(self, symbol: str) -> None:
        self.ellipse(0.5, 0.5, 0.78, 0.7, _WATER, "white", 0.03)
        self.ellipse(0.5, 0.54, 0.64, 0.54, _DEEP)
        self.letter(0.5, 0.54, symbol, 0.36, "#9cc4e4")

    def goal(self, symbol: str) -> None:
        self.ground(_GOAL, "#8fce8b")
        self.line((0.34, 0.34), (0.2, 0.84), "#5b4636", 0.055, "projecting")
        self.triangle([(0.36, 0.18), (0.88, 0.38), (0.36, 0.58)], "#2f9e44")
        self.letter(0.5, 0.4, symbol, 0.22, "white")

    def key(self, symbol: str) -> None:
        self.ground("#fff3cd", "#e0b93b")
        self.ellipse(0.32, 0.66, 0.26, 0.26, "none", "#b8860b", 0.07)
        self.line((0.44, 0.84), (0.66, 0.66), "#b8860b", 0.07)
        for x in (0.7, 0.81):
            self.line((x, x), (0.66, 0.8), "#b8860b", 0.07)
        self.letter(0.5, 0.32, symbol, 0.3, "#7a5c00")

    def target(self) -> None:
        self.ellipse(0.5, 0.5, 0.54, 0.54, "none", "#d6336c", 0.07)
        self.ellipse(0.5, 0.5, 0.2, 0.2, "#d6336c")

    def crate(self, face: str, edge: str) -> None:
        self.box(0.16, 0.16, 0.68, 0.68, face, edge, 0.06)
        for y in ((0.2, 0.8), (0.8, 0.2)):
            self.line((0.2, 0.8), y, edge, 0.05)

    def person(self) -> None:
        self.ellipse(0.5, 0.86, 0.46, 0.1, "#00000022")
        self.rounded(0.35, 0.48, 0.3, 0.34, 0.13, _PLAYER)
        self.ellipse(0.5, 0.33, 0.31, 0.31, "#f7d3b1", "#7a4a2b", 0.02)
        self.triangle([(0.33, 0.29), (0.5, 0.09), (0.67, 0.29)], _PLAYER)

    def key_in_hand(self) -> None:
        self.ellipse(0.78, 0.5, 0.16, 0.16, "none", "#b8860b", 0.05)
        self.line((0.78, 0.78), (0.58, 0.82), "#b8860b", 0.05)
        self.line((0.78, 0.88), (0.79, 0.79), "#b8860b", 0.05)

    def arrow(self, move: str) -> None:
        dy, dx = STEPS[move]
        tail = self.x + 0.5 + 0.34 * dx, self.y + 0.5 + 0.34 * dy
        head = self.x + 0.5 + 0.8 * dx, self.y + 0.5 + 0.8 * dy
        look: dict[str, Any] = {"arrowstyle": "-|>", "color": "#212529", "shrinkA": 0, "shrinkB": 0}
        look |= {"lw": 0.06 * self.point, "mutation_scale": 0.42 * self.point}
        # a white edge keeps it visible on a hole
        look["path_effects"] = [withStroke(linewidth=0.12 * self.point, foreground="white")]
        self.ax.annotate("", head, tail, arrowprops=look, annotation_clip=False, zorder=5)


def draw_board(
    ax: Any,
    cells: list[list[str]],
    move: str | None = None,
    title: str | None = None,
    kinds: dict[str, str] | None = None,
) -> None:
    """Draw a board on a matplotlib axis, which it takes over.

    Args:
        ax: the axis.
        cells: rows of symbols, as `parse_board` gives them.
        move: an action such as 'left', drawn as an arrow at the player.
        title: text above the board.
        kinds: meaning of renamed symbols: symbol -> 'hole', 'goal', … (see board.LAKE_SYMBOLS).
    """
    if not cells or any(len(row) != len(cells[0]) for row in cells):
        raise ValueError("draw_board needs a board: rows of symbols, all of one length")
    kinds = symbol_kinds(cells) if kinds is None else kinds
    size = ax.get_position().transformed(ax.figure.transFigure)
    width = min(size.width / len(cells[0]), size.height / len(cells))
    point = width * 72 / ax.figure.dpi  # a tile's width in points
    indoors = any(kinds.get(symbol) == "wall" for row in cells for symbol in row)
    for y, row in enumerate(cells):
        for x, symbol in enumerate(row):
            tile, kind = _Tile(ax, x, y, point), kinds.get(symbol, "unknown")
            _draw_tile(tile, kind, symbol, indoors)
            if kind.startswith("player") and move in STEPS:
                tile.arrow(move)
    ax.set(xlim=(-0.03, len(cells[0]) + 0.03), ylim=(len(cells) + 0.03, -0.03), aspect="equal")
    ax.set_axis_off()
    if title:
        ax.set_title(well_formed(title), fontsize=8, parse_math=False)


def _draw_tile(tile: _Tile, kind: str, symbol: str, indoors: bool) -> None:
    if kind == "wall":
        return tile.wall()
    tile.ground(*(_FLOOR if indoors else _ICE))
    match kind:
        case "free":
            if not indoors:
                tile.ice()
        case "hole":
            tile.hole(symbol)
        case "goal":
            tile.goal(symbol)
        case "key":
            tile.key(symbol)
        case "target":
            tile.target()
        case "box":
            tile.crate("#d99a55", _WOOD)
        case "done":
            tile.crate("#8ccf8a", "#2f8f46")
        case "player":
            tile.person()
        case "player with key":
            tile.person()
            tile.key_in_hand()
        case "player on target":
            tile.target()
            tile.person()
        case _:
            tile.ground(_TILES[ord(symbol[0]) % len(_TILES)], "white")
            tile.letter(0.5, 0.5, symbol, 0.5, "#333333")


def board_image(
    cells: list[list[str]], kinds: dict[str, str] | None = None, tile: int = 64
) -> np.ndarray:
    """Return a board as an RGB picture, uint8 [rows * tile, columns * tile, 3] (`draw_board`)."""
    if not cells:
        raise ValueError("board_image needs a board: rows of symbols")
    # not pyplot: no global state
    figure = Figure(figsize=(len(cells[0]), len(cells)), dpi=tile, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    draw_board(figure.add_axes((0, 0, 1, 1)), cells, kinds=kinds)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

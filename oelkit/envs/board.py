"""Boards and moves as text: how a board is written and read, and what its symbols mean.

Cells are rows of symbols; "." is a free cell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType

ACTIONS = ("left", "down", "right", "up")  # gymnasium's FrozenLake order
STEPS = {"left": (0, -1), "down": (1, 0), "right": (0, 1), "up": (-1, 0)}  # row, column
BOARDS = ("labelled", "grid")
LAKE_SYMBOLS = {"hole": "H", "goal": "G", "decoy": "X", "player": "P", "free": "."}
SOKOBAN_SYMBOLS = {
    "wall": "#",
    "free": ".",
    "target": "O",
    "box": "X",
    "done": "√",
    "player": "P",
    "player on target": "S",
}
# Descent: the roles of a board's letters, in order, and the letters of its levels.
DESCENT_ROLES = ("hole", "key", "goal", "hole")
DESCENT_LETTERS = "TMRBFCWLEYNVJSKOUZAIQDHG"
DESCENT_PLAYER = {"free": ".", "player": "@", "player with key": "P"}
CHARSET = "".join(map(chr, range(32, 127))) + "\n√"
_ALIASES = {"a": "left", "s": "down", "d": "right", "w": "up"}


def parse_action(reply: str, moves: Sequence[str] = ACTIONS) -> str | None:
    """Return the last bracketed legal action of a reply, or None.

    moves: the words for the four moves, in the order of ACTIONS. Unless they are renamed, [a] [s]
    [d] [w] are legal too.
    """
    aliases = _ALIASES if tuple(moves) == ACTIONS else {}
    actions = dict(zip(map(str.lower, moves), ACTIONS, strict=True)) | aliases
    words = [word.lower() for word in re.findall(r"\[\s*(\w+)\s*\]", reply)]
    return next((actions[word] for word in reversed(words) if word in actions), None)


@cache  # asked about a million times to draw and judge the boards of a run
def neighbours(size: int, cell: int) -> Mapping[str, int]:
    """Return the cells next to a cell, by action, without those outside the board.

    Cells are numbered from 0, row by row, on a size x size board.
    """
    row, column = divmod(cell, size)
    steps = {a: (row + STEPS[a][0], column + STEPS[a][1]) for a in ACTIONS}
    inside = range(size)
    ends = {a: r * size + c for a, (r, c) in steps.items() if r in inside and c in inside}
    return MappingProxyType(ends)


def label(row: int, column: int) -> str:
    """Return the name of a cell on a labelled board: row letter and column number ('b3')."""
    return f"{chr(ord('a') + row)}{column + 1}"


def render_board(cells: list[list[str]], board: str) -> str:
    """Return a board as text: 'labelled', or 'grid' for the paper's boxes.

    'labelled' is the size, then each occupied cell on a line with its symbol ('H a3'), so a small
    model can find either from the other. Symbols are in the order in which they first appear, row
    by row, so their order reveals nothing about their roles.
    """
    if board == "labelled":
        places: dict[str, list[str]] = {}
        for r, row in enumerate(cells):
            for c, symbol in enumerate(row):
                places.setdefault(symbol, []).append(f"{symbol} {label(r, c)}")
        lines = [line for symbol, group in places.items() if symbol != "." for line in group]
        return "\n".join([f"{len(cells)}x{len(cells[0])}", *lines])
    line = "+" + "+".join(["-----"] * len(cells[0])) + "+"
    rows = ["|" + "|".join(f" {' ' if x == '.' else x:^3} " for x in row) + "|" for row in cells]
    return "\n".join([line] + [part for row in rows for part in (row, line)])


def parse_board(text: str) -> list[list[str]]:
    """Return the cells of the first board in a text, in either rendering; [] if none is whole."""
    rows: list[list[str]] = []
    labelled = False
    for line in text.split("\n"):
        if not rows and (size := re.fullmatch(r"([1-9]|1\d|2[0-6])x([1-9]\d?)", line)):
            rows, labelled = [["."] * int(size[2]) for _ in range(int(size[1]))], True
        elif labelled and (cell := re.fullmatch(r"(\S) ([a-z])(\d+)", line)):
            r, c = ord(cell[2]) - ord("a"), int(cell[3]) - 1
            if r < len(rows) and c < len(rows[0]):
                rows[r][c] = cell[1]
        elif not labelled and re.fullmatch(r"\|(.....\|)+", line):
            rows.append([cell.strip() or "." for cell in line.strip("|").split("|")])
        elif labelled or (rows and not line.startswith("+")):
            break
    return rows if len({len(row) for row in rows}) == 1 else []


def symbol_kinds(cells: list[list[str]]) -> dict[str, str]:
    """Return what symbols mean by default: Sokoban's if the board has a wall, Descent's if all
    symbols belong to one of its levels, otherwise Frozen Lake's.
    """
    there = {symbol for row in cells for symbol in row}
    n = len(DESCENT_ROLES)
    for i in range(0, len(DESCENT_LETTERS), n):
        roles = dict(zip(DESCENT_LETTERS[i : i + n], DESCENT_ROLES, strict=True))
        kinds = {symbol: kind for kind, symbol in DESCENT_PLAYER.items()} | roles
        own = there & set(roles)
        if there <= set(kinds) and own and ("@" in there or not own <= set(LAKE_SYMBOLS.values())):
            return kinds
    symbols = SOKOBAN_SYMBOLS if "#" in there else LAKE_SYMBOLS
    return {symbol: kind for kind, symbol in symbols.items()}

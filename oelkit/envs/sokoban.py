"""Sokoban as text: push every box onto a target.

The generator is our own, because gymnasium has none; the symbols are those of TextArena 0.7.4. A
room is made by reverse play. It starts solved, the player walks and pulls, and one of the positions
just after a pull is kept in which the boxes are farthest from their targets. So every room is
solvable, though not always within the turns of a game, as in the paper. Departure: TextArena
searches depth first and draws other rooms for a seed. These are as hard as its own (random policy
16 %, solvable in 5 moves 88 %; tests/test_textarena.py compares).
"""

from __future__ import annotations

import zlib
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..given import whole
from ..records import Outcome
from .board import ACTIONS, SOKOBAN_SYMBOLS, STEPS
from .text_env import TextEnv

# Shapes that the digger clears in one step: a row, a column, two corners, a block (row and column
# offsets from the digger).
BRUSHES = (
    ((0, -1), (0, 0), (0, 1)),
    ((-1, 0), (0, 0), (1, 0)),
    ((0, -1), (0, 0), (1, 0)),
    ((0, 1), (0, 0), (1, 0)),
    ((0, -1), (0, 0), (1, -1), (1, 0)),
)
Position = tuple[int, tuple[int, ...]]  # the player's cell and the boxes' cells, sorted


@dataclass(frozen=True)
class Room:
    """Where things are: cell numbers from 0, row by row, on a size x size board with a border."""

    size: int
    walls: frozenset[int]
    targets: tuple[int, ...]
    boxes: tuple[int, ...]
    player: int

    @property
    def unseen(self) -> bool:
        """Whether the room is in the held-out quarter (by a checksum of the whole room)."""
        parts = (sorted(self.walls), self.targets, self.boxes, self.player)
        return zlib.crc32(repr(parts).encode()) % 4 == 0

    def __post_init__(self) -> None:
        for name in ("targets", "boxes"):  # compared as tuples
            object.__setattr__(self, name, tuple(sorted(getattr(self, name))))

    def move(self, position: Position, action: str) -> Position | None:
        """Return the position after an action; None if a wall or blocked box is in the way."""
        player, boxes = position
        step = STEPS[action][0] * self.size + STEPS[action][1]
        to, behind = player + step, player + 2 * step
        if to in self.walls or (to in boxes and (behind in self.walls or behind in boxes)):
            return None
        return to, tuple(sorted(behind if b == to else b for b in boxes)) if to in boxes else boxes

    def cells(self, position: Position, symbols: dict[str, str]) -> list[list[str]]:
        """Return the board as rows of symbols."""
        player, boxes = position
        flat = [symbols["wall" if i in self.walls else "free"] for i in range(self.size**2)]
        for cell in self.targets:
            flat[cell] = symbols["target"]
        for cell in boxes:
            flat[cell] = symbols["done" if cell in self.targets else "box"]
        flat[player] = symbols["player on target" if player in self.targets else "player"]
        return [flat[i : i + self.size] for i in range(0, len(flat), self.size)]


def dig(rng: np.random.Generator, size: int) -> frozenset[int]:
    """Return the walls of a random room, dug out of a solid block by a randomly walking digger."""
    at, step, floor = rng.integers(1, size - 1, 2), (0, 1), set[tuple[int, int]]()
    for _ in range(int(3.4 * size)):
        if rng.random() < 0.35:
            step = STEPS[ACTIONS[rng.integers(4)]]
        at = np.clip(at + step, 1, size - 2)
        brush = BRUSHES[rng.integers(len(BRUSHES))]
        floor |= {(int(at[0]) + r, int(at[1]) + c) for r, c in brush}
    inside = {r * size + c for r, c in floor if 0 < r < size - 1 and 0 < c < size - 1}
    return frozenset(range(size * size)) - inside


def play_back(solved: Room, limit: int = 20_000) -> list[Position]:
    """Return the positions just after a pull when a solved room is played backwards.

    The search is breadth first. Box i starts on target i, and the player pulls whenever a box is
    behind it. limit: most positions to visit; only rooms with many boxes reach it.
    """
    start = (solved.player, solved.targets)
    queue, seen, pulled = deque([start]), {start}, set[Position]()
    while queue and len(seen) < limit:
        player, boxes = queue.popleft()
        for r, c in STEPS.values():
            step = r * solved.size + c
            to, behind = player + step, player - step
            if to in solved.walls or to in boxes:
                continue
            before = (to, tuple(player if b == behind else b for b in boxes))
            if behind in boxes:
                pulled.add(before)
            if before not in seen:
                seen.add(before)
                queue.append(before)
    return sorted(pulled)


def draw_room(rng: np.random.Generator, size: int = 6, boxes: int = 1) -> Room:
    """Draw one solvable room with a NumPy generator."""
    while True:
        walls = dig(rng, size)
        free = sorted(set(range(size * size)) - walls)
        if len(free) <= boxes + 1:
            continue
        player, *rest = (int(x) for x in rng.permutation(free)[: boxes + 1])
        targets = tuple(sorted(rest))
        pulled = play_back(Room(size, walls, targets, targets, player))
        # neither the player nor a box on a target
        away = [p for p in pulled if not {p[0], *p[1]} & set(targets)]
        if away:
            distances = [_distance(p[1], targets, size) for p in away]
            most = max(distances)
            farthest = [p for p, d in zip(away, distances) if d == most]
            player, boxes_at = farthest[rng.integers(len(farthest))]
            return Room(size, walls, targets, boxes_at, player)


def _distance(boxes: tuple[int, ...], targets: tuple[int, ...], size: int) -> int:
    pairs = zip(boxes, targets, strict=True)
    return sum(abs(b // size - t // size) + abs(b % size - t % size) for b, t in pairs)


class SokobanEnv(TextEnv):
    """Sokoban as text, with 1 to 3 boxes on a size x size board. Other arguments: see TextEnv."""

    SYMBOLS = SOKOBAN_SYMBOLS

    def __init__(self, size: int = 6, boxes: int = 1, split: str | None = None, **kwargs: Any):
        super().__init__(split, **kwargs)
        if whole("boxes", boxes) not in (1, 2, 3) or not 5 <= whole("size", size) <= 12:
            raise ValueError(
                f"boxes must be 1 to 3 and size 5 to 12, got boxes={boxes}, size={size}"
            )
        self.size, self.boxes = size, boxes

    def _draw(self, seed: int | None) -> Room:
        return draw_room(self.np_random, self.size, self.boxes)

    def _check_layout(self, layout: Any) -> None:
        if not isinstance(layout, Room):
            raise ValueError(f"the layout of a Sokoban must be a Room, not {layout!r:.80}")
        n = layout.size
        inside = {r * n + c for r in range(1, n - 1) for c in range(1, n - 1)} - set(layout.walls)
        things, targets = [layout.player, *layout.boxes], layout.targets
        border = set(range(n * n)) - set(layout.walls) <= inside
        apart = len(set(things)) == len(things) == len(set(targets)) + 1
        if not (border and apart and {*things, *targets} <= inside):
            raise ValueError(
                "a room needs walls all around, and in it, apart from each other, the player and "
                f"as many boxes as targets: {layout}"
            )

    def _start(self) -> None:
        self.position = (self.layout.player, self.layout.boxes)

    def _cells(self) -> list[list[str]]:
        return self.layout.cells(self.position, self.symbols)

    def _move(self, action: str) -> tuple[str, Outcome | None]:
        room, before = self.layout, self.position
        after = room.move(before, action)
        if after is None:
            wall = room.move((before[0], ()), action) is None  # also without the boxes
            return "You hit a wall." if wall else "The box is blocked.", Outcome.INVALID
        self.position = after
        feedback = f"You moved {self.word(action)} to {self.place(*divmod(after[0], room.size))}"
        if pushed := set(after[1]) - set(before[1]):
            (box,) = pushed
            feedback += f" and pushed a box to {self.place(*divmod(box, room.size))}"
            feedback += ", onto a target" if box in room.targets else ""
        if after[1] == room.targets:
            return f"{feedback}. You won.", Outcome.SUCCESS
        return f"{feedback}.", None

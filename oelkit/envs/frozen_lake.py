"""Frozen Lake as text, with the dynamics of gymnasium's `FrozenLake-v1`.

A player sees a board and what happened, and has to find out which symbol is a hole and which a
goal. The paper's world (3x3, 2 holes, start and goal in opposite corners) draws the boards that
TextArena 0.7.4 draws for a seed. The others draw start, goals and holes at random and are split by
layout, so "unseen" means a layout that no training seed can give.
"""

from __future__ import annotations

import random
import zlib
from collections import deque
from dataclasses import dataclass
from typing import Any

from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv as Dynamics

from ..given import whole
from ..records import Outcome
from .board import ACTIONS, LAKE_SYMBOLS, neighbours
from .text_env import TextEnv


@dataclass(frozen=True)
class Layout:
    """Where things are: cell numbers from 0, row by row, on a size x size board."""

    size: int
    start: int
    goals: tuple[int, ...]
    holes: tuple[int, ...]
    decoys: tuple[int, ...] = ()

    @property
    def unseen(self) -> bool:
        """Whether it is in the held-out quarter (by a checksum of everything except the decoys)."""
        return zlib.crc32(repr((self.size, self.start, self.goals, self.holes)).encode()) % 4 == 0

    def shortest_path(self) -> list[str] | None:
        """Return the actions of a shortest path to a goal, the first in ACTIONS order, or None."""
        queue, paths = deque([self.start]), {self.start: list[str]()}
        while queue:
            cell = queue.popleft()
            if cell in self.goals:
                return paths[cell]
            for action, to in neighbours(self.size, cell).items():
                if to not in paths and to not in self.holes:
                    paths[to] = [*paths[cell], action]
                    queue.append(to)
        return None

    def cells(
        self, symbols: dict[str, str] = LAKE_SYMBOLS, player: int | None = None
    ) -> list[list[str]]:
        """Return the board as rows of symbols, with the player on top."""
        flat = [symbols["free"]] * self.size**2
        for kind, places in (("hole", self.holes), ("goal", self.goals), ("decoy", self.decoys)):
            for cell in places:
                flat[cell] = symbols[kind]
        flat[self.start if player is None else player] = symbols["player"]
        return [flat[i : i + self.size] for i in range(0, len(flat), self.size)]


def paper_layout(seed: int, size: int = 3, holes: int = 2) -> Layout:
    """Return the corner-to-corner layout that TextArena 0.7.4 draws for a seed."""
    rng, last = random.Random(seed), size * size - 1
    for _ in range(10_000):
        layout = Layout(size, 0, (last,), tuple(rng.sample(range(1, last), holes)))
        if layout.shortest_path() is not None:
            return layout
    raise ValueError(f"no solvable {size}x{size} layout with {holes} holes: ask for fewer holes")


class FrozenLakeEnv(TextEnv):
    """Frozen Lake as text.

    `corners=True` is the paper's fixed start and goal, without a split; `corners="random"` draws
    which of two opposite corners are start and goal. `holes`, `goals` and `decoys` are a number or
    a (low, high) range. Random layouts are solvable in `min_moves` to `max_turns` moves. With
    `slippery`, gymnasium's slippery ice diverts a move to each side a third of the time, and a wall
    only stops the player. The randomness comes from the seed of `reset`, so the same moves give the
    same game. Other arguments: see TextEnv.
    """

    SYMBOLS = LAKE_SYMBOLS

    # why: each is one option of the world, set by name in the registry
    def __init__(
        self,
        size: int = 4,
        holes: int | tuple[int, int] = (1, 4),
        goals: int | tuple[int, int] = 1,
        decoys: int | tuple[int, int] = 0,
        corners: bool | str = False,
        slippery: bool = False,
        split: str | None = None,
        min_moves: int = 2,
        **kwargs: Any,
    ):
        super().__init__(split, **kwargs)
        if not 2 <= whole("size", size) <= 26:
            raise ValueError(f"size must be 2 to 26, got {size}")
        if corners not in (False, True, "random"):
            raise ValueError(f"corners must be False, True or 'random', got {corners!r}")
        several = isinstance(holes, tuple | list)
        if corners is True and (split or several or goals != 1 or decoys != 0):
            raise ValueError(
                "corners=True needs holes as one number, goals=1, decoys=0 and split=None"
            )
        if corners == "random" and (goals != 1 or 2 * (size - 1) > self.max_turns):
            needs = f"goals=1 and, with size={size}, max_turns={2 * size - 2} or more"
            raise ValueError(f"corners='random' needs {needs}")
        self.size, self.corners, self.slippery = size, corners, slippery
        self.min_moves = whole("min_moves", min_moves)
        ranges = {"holes": holes, "goals": goals, "decoys": decoys}
        self.counts = [n if isinstance(n, tuple | list) else (n, n) for n in ranges.values()]
        for name, found in zip(ranges, self.counts, strict=True):
            ends = [whole(name, n) for n in found]
            if len(ends) != 2 or not (name == "goals") <= ends[0] <= ends[1]:
                raise ValueError(f"{name} must be a number or a range (low, high), got {ends}")
        if 1 + sum(high for _, high in self.counts) > size * size:
            raise ValueError(
                f"holes={holes}, goals={goals} and decoys={decoys} do not fit on a {size}x{size} "
                "board"
            )

    def _draw(self, seed: int | None) -> Layout | None:
        rng = self.np_random
        if self.corners is True:
            seed = int(rng.integers(2**31)) if seed is None else seed
            return paper_layout(seed, self.size, self.counts[0][0])
        holes, goals, decoys = (int(rng.integers(low, high + 1)) for low, high in self.counts)
        cells = [int(x) for x in rng.permutation(self.size**2)]
        if self.corners:
            corner, last = int(rng.choice([0, self.size - 1])), self.size**2 - 1
            ends = [corner, last - corner] if rng.integers(2) else [last - corner, corner]
            cells = ends + [x for x in cells if x not in ends]
        start, *drawn = cells[: 1 + holes + goals + decoys]
        parts = drawn[:goals], drawn[goals : goals + holes], drawn[goals + holes :]
        layout = Layout(self.size, start, *(tuple(sorted(p)) for p in parts))
        path = layout.shortest_path()
        fits = path is not None and self.min_moves <= len(path) <= self.max_turns
        return layout if fits else None

    def _check_layout(self, layout: Any) -> None:
        if not isinstance(layout, Layout):
            raise ValueError(f"the layout of a Frozen Lake must be a Layout, not {layout!r:.80}")
        cells = [layout.start, *layout.goals, *layout.holes, *layout.decoys]
        if not set(cells) <= set(range(layout.size**2)) or len(set(cells)) < len(cells):
            what = f"from 0 to {layout.size**2 - 1}: {layout}"
            raise ValueError(f"start, goals, holes and decoys must be on different cells {what}")

    def _start(self) -> None:
        names = {"hole": "H", "goal": "G", "decoy": "F", "player": "S", "free": "F"}
        desc = ["".join(row) for row in self.layout.cells(names)]
        self._lake = Dynamics(desc=desc, is_slippery=self.slippery)
        self._lake.s, self._lake.np_random = self.layout.start, self.np_random

    @property
    def position(self) -> int:
        """The player's cell."""
        return int(self._lake.s)

    @position.setter
    def position(self, cell: int) -> None:
        self._lake.s = cell

    def _cells(self) -> list[list[str]]:
        return self.layout.cells(self.symbols, self.position)

    def _move(self, action: str) -> tuple[str, Outcome | None]:
        before, word = self.position, self.word(action)
        wanted = neighbours(self.layout.size, before).get(action)
        if wanted is None and not self.slippery:
            return "You hit a wall.", Outcome.INVALID
        cell, reward, ended, _, _ = self._lake.step(ACTIONS.index(action))
        slid = "stayed at" if cell == before else "slid to"
        way = f"moved {word} to" if cell == wanted else f"tried {word} but {slid}"
        feedback = f"You {way} {self.place(*divmod(int(cell), self.layout.size))}"
        if ended and reward > 0:
            return f"{feedback} and reached the goal. You won.", Outcome.SUCCESS
        if ended:
            return f"{feedback} and fell into a hole. You lost.", Outcome.FAILURE
        return f"{feedback}.", None

    def chances(self, action: str) -> list[tuple[float, int, Outcome | None]]:
        """See TextEnv; gymnasium's own table, but a wall where the ice is not slippery."""
        if not self.slippery and action not in neighbours(self.layout.size, self.position):
            return [(1.0, self.position, Outcome.INVALID)]
        outcomes = {True: Outcome.SUCCESS, False: Outcome.FAILURE}
        return [
            (chance, cell, outcomes[reward > 0] if ended else None)
            for chance, cell, reward, ended in self._lake.P[self.position][ACTIONS.index(action)]
        ]

"""Descent: boards one below another, where only a player who passes one sees the next.

Each board has four letters of its own, each on one cell: a key, a goal and two holes. The goal
opens once the key is taken, and leads to the next board. A hole, or the goal without the key, ends
the game. The game is won at the goal of the last board.

There is no shortcut. A board is first drawn as five cells that would work for every assignment of
the roles; only then are the roles assigned. So the number, place and order of the letters reveal no
role. A player who knows none of a board's letters passes it at most once in twelve times, however
well other boards are known (`bounds.knowledge_bounds` computes this).
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from ..given import whole
from ..records import Outcome
from .board import DESCENT_LETTERS, DESCENT_PLAYER, DESCENT_ROLES, neighbours
from .frozen_lake import Layout
from .text_env import TextEnv

_SAID = re.compile(r"(?:took|reached|fell into) (\w), (?:the|a) (key|goal|hole)")
_MOVES_FROM_START = 2  # at least, to any letter: one move is not enough


def facts(feedback: str) -> list[tuple[str, str]]:
    """Return (letter, role) for each role that a feedback reveals: hole, key or goal."""
    return _SAID.findall(feedback)


@dataclass(frozen=True)
class DescentBoard:
    """One board: cell numbers from 0, row by row, on a size x size board."""

    size: int
    start: int
    letters: tuple[int, int, int, int]  # cells of hole, key, goal and second hole: DESCENT_ROLES

    @property
    def unseen(self) -> bool:
        """Whether the board is in the held-out quarter, by a checksum of the letters' cells.

        Roles and start do not count, so that no turn of a held-out game also occurs in training.
        """
        return zlib.crc32(repr((self.size, sorted(self.letters))).encode()) % 4 == 0

    def way(self, start: int, to: int, taken: tuple[int, ...] = ()) -> list[str] | None:
        """Return the actions of a shortest path that enters no other remaining letter, or None."""
        avoid = tuple(c for c in self.letters if c != to and c not in taken)
        return Layout(self.size, start, (to,), avoid).shortest_path()

    def fits(self, moves: int) -> bool:
        """Whether any two letters can be reached one after the other in `moves`, so that the board
        works for every assignment of the roles.
        """
        first = {a: self.way(self.start, a) for a in self.letters}
        if any(way is None or len(way) < _MOVES_FROM_START for way in first.values()):
            return False
        for a, b in permutations(self.letters, 2):
            second = self.way(a, b, taken=(a,))
            if second is None or len(first[a] or ()) + len(second) > moves:
                return False
        return True


@dataclass(frozen=True)
class DescentLayout:
    """The boards of a game, first to last."""

    boards: tuple[DescentBoard, ...]

    @property
    def unseen(self) -> bool:
        """Whether all of its boards are held out."""
        return all(board.unseen for board in self.boards)


class DescentEnv(TextEnv):
    """Boards one below another; see the module. `info` has the `level` of the board, from 1.

    The player is "@" until the key of the board is taken, then "P"; the key then leaves the board.
    A layout is a DescentLayout with one board per level. Other arguments: see TextEnv.

    Args:
        levels: number of boards.
        size: side length of each board, in cells.
        turns: most turns per board; a shortest solution takes at most one less.
        letters: hole, key, goal and second hole of the first board, then of the second and so on.
    """

    SYMBOLS = DESCENT_PLAYER

    def __init__(
        self,
        levels: int = 4,
        size: int = 4,
        turns: int = 9,
        split: str | None = None,
        letters: str = DESCENT_LETTERS,
        **kwargs: Any,
    ):
        if whole("levels", levels) < 1:
            raise ValueError(f"levels must be at least 1, got {levels}")
        if whole("turns", turns) < 1:
            raise ValueError(f"turns must be at least 1, got {turns}")
        if "max_turns" in kwargs:
            raise ValueError("Descent has turns per board: use turns=, not max_turns=")
        if not 3 <= whole("size", size) <= 26:
            raise ValueError(f"size must be 3 to 26, got {size}")
        need = levels * len(DESCENT_ROLES)
        if need > len(letters):
            most = len(letters) // len(DESCENT_ROLES)
            what = f"levels={levels} needs {need} letters, but there are {len(letters)}"
            raise ValueError(f"{what}: use at most {most} levels, or give more letters=")
        self.levels, self.size, self.turns, self.letters = levels, size, turns, letters[:need]
        super().__init__(split, max_turns=levels * turns, **kwargs)

    def _on_boards(self) -> dict[str, str]:
        return self.symbols | {f"letter {i}": x for i, x in enumerate(self.letters)}

    def roles(self, level: int) -> dict[str, str]:
        """Return the letters of a level (from 1) with their roles: hole, key or goal."""
        n = len(DESCENT_ROLES)
        return dict(zip(self.letters[(level - 1) * n : level * n], DESCENT_ROLES, strict=True))

    def _draw(self, seed: int | None) -> DescentLayout:
        return DescentLayout(tuple(self._draw_board() for _ in range(self.levels)))

    def _draw_board(self) -> DescentBoard:
        for _ in range(100_000):
            start, a, b, c, d = (int(x) for x in self.np_random.permutation(self.size**2)[:5])
            board = DescentBoard(self.size, start, (a, b, c, d))
            if self.split is not None and board.unseen != (self.split == "unseen"):
                continue
            if self._near(board) and board.fits(self.turns - 1):
                return board
        now = f"more turns (now {self.turns}) or another size (now {self.size})"
        raise ValueError(f"no board found in 100,000 draws: ask for {now}")

    def _near(self, board: DescentBoard) -> bool:
        """Check what `fits` needs by distance as the crow flies: quick, and refuses most draws."""
        at = [divmod(c, self.size) for c in (board.start, *board.letters)]

        def apart(i: int, j: int) -> int:
            return abs(at[i][0] - at[j][0]) + abs(at[i][1] - at[j][1])

        return min(apart(0, i) for i in range(1, 5)) >= _MOVES_FROM_START and all(
            apart(0, i) + apart(i, j) < self.turns for i, j in permutations(range(1, 5), 2)
        )

    def _check_layout(self, layout: Any) -> None:
        boards: Any = layout.boards if isinstance(layout, DescentLayout) else (None,)
        if not all(isinstance(board, DescentBoard) for board in boards):
            raise ValueError(
                "the layout of a Descent must be a DescentLayout of DescentBoards, not "
                f"{layout!r:.80}"
            )
        if len(boards) != self.levels:
            raise ValueError(
                f"the layout has {len(boards)} boards, but this world {self.levels} levels"
            )
        for level, board in enumerate(boards, 1):
            cells = {board.start, *board.letters} & set(range(self.size**2))
            if board.size != self.size or len(cells) != 5:
                raise ValueError(
                    f"the board of level {level} must be {self.size}x{self.size}, with start and "
                    f"four letters on different cells: {board}"
                )
            if not board.fits(self.turns):
                raise ValueError(
                    f"the board of level {level} has a letter that cannot be reached, or two that "
                    f"cannot be reached one after the other in {self.turns} turns: {board}"
                )

    def _about(self) -> dict[str, Any]:
        return {"level": self.level + 1}

    def _start(self) -> None:
        self.turn = 0
        self._enter(0)

    def _enter(self, level: int) -> None:
        self.level, self.carrying, self._entered = level, False, self.turn
        self.cell = self.layout.boards[level].start

    def _time_up(self) -> bool:
        return self.turn - self._entered >= self.turns

    @property
    def position(self) -> tuple[int, int, bool, int]:
        """(level from 0, cell, whether the key is taken, turns spent on this board)."""
        return self.level, self.cell, self.carrying, self.turn - self._entered

    @position.setter
    def position(self, position: tuple[int, int, bool, int]) -> None:
        self.level, self.cell, self.carrying, spent = position
        self._entered = self.turn - spent

    def _cells(self) -> list[list[str]]:
        board = self.layout.boards[self.level]
        flat = [self.symbols["free"]] * self.size**2
        for (letter, role), cell in zip(self.roles(self.level + 1).items(), board.letters):
            if role != "key" or not self.carrying:
                flat[cell] = letter
        flat[self.cell] = self.symbols["player with key" if self.carrying else "player"]
        return [flat[i : i + self.size] for i in range(0, len(flat), self.size)]

    def _kinds(self) -> dict[str, str]:
        return super()._kinds() | self.roles(self.level + 1)

    def _go(self, action: str) -> tuple[int | None, str, Outcome | None]:
        """Play one action; return the cell that it leads to, or None, what the letter there turns
        out to be ("" if nothing), and the outcome.
        """
        board = self.layout.boards[self.level]
        to = neighbours(self.size, self.cell).get(action)
        if to is None:
            return None, "", Outcome.INVALID
        self.cell = to
        role = DESCENT_ROLES[board.letters.index(to)] if to in board.letters else ""
        if role == "hole":
            return to, role, Outcome.FAILURE
        if role == "key":
            role = "" if self.carrying else "key"
            self.carrying = True
        if role != "goal":
            return to, role, None
        if not self.carrying:
            return to, role, Outcome.FAILURE
        if self.level + 1 == self.levels:
            return to, role, Outcome.SUCCESS
        self._enter(self.level + 1)
        return to, role, None

    def _move(self, action: str) -> tuple[str, Outcome | None]:
        board, first = self.layout.boards[self.level], self.level * len(DESCENT_ROLES)
        to, role, outcome = self._go(action)
        if to is None:
            return "You hit a wall.", outcome
        feedback = f"You moved {self.word(action)} to {self.place(*divmod(to, self.size))}"
        if not role:
            return f"{feedback}.", None
        letter = self.letters[first + board.letters.index(to)]
        if role == "hole":
            return f"{feedback} and fell into {letter}, a hole. You lost.", outcome
        if role == "key":
            return f"{feedback} and took {letter}, the key.", outcome
        feedback += f" and reached {letter}, the goal"
        if outcome is Outcome.FAILURE:
            return f"{feedback}, without the key. You lost.", outcome
        return f"{feedback}. {'You won' if outcome else 'Next level'}.", outcome

    def chances(self, action: str) -> list[tuple[float, Any, Outcome | None]]:
        """See TextEnv; the turns spent on a board are part of the position."""
        self.turn += 1
        _, _, outcome = self._go(action)
        position, late = self.position, self._time_up()
        self.turn -= 1
        going_on = outcome is None or outcome is Outcome.INVALID
        return [(1.0, position, Outcome.FAILURE if going_on and late else outcome)]

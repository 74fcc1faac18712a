"""The paper's reply protocol, shared by every text world: a reply goes in, a board and textual
feedback come out.

An action is the last bracketed legal action in the whole reply. A first invalid reply (no legal
action, or a step into a wall) is a warning that uses up a turn; a second in a row ends the game. A
game has at most `max_turns` turns. No reward reaches training: it exists to measure the pass rate
(arXiv 2603.16856, section 4)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from ..records import Outcome

CHARSET = "".join(map(chr, range(32, 127))) + "\n√"
ACTIONS = ("left", "down", "right", "up")  # gymnasium's FrozenLake order
STEPS = {"left": (0, -1), "down": (1, 0), "right": (0, 1), "up": (-1, 0)}
BOARDS = ("labelled", "grid")
_ALIASES = {"a": "left", "s": "down", "d": "right", "w": "up"}


def parse_action(reply: str, moves: Sequence[str] = ACTIONS) -> str | None:
    """The last bracketed legal action of a reply ([left] [down] [right] [up], or [a] [s] [d] [w]),
    or None.

    moves: the words for the four where they are renamed, in the order of ACTIONS; the letters then
    mean nothing."""
    words = dict(zip(map(str.lower, moves), ACTIONS, strict=True)) | (
        _ALIASES if tuple(moves) == ACTIONS else {}
    )
    found = [
        words[word.lower()]
        for word in re.findall(r"\[\s*(\w+)\s*\]", reply)
        if word.lower() in words
    ]
    return found[-1] if found else None


def label(row: int, column: int) -> str:
    """The name of a cell on a labelled board: row letter, column digit ('b3')."""
    return f"{chr(ord('a') + row)}{column + 1}"


def render_board(cells: list[list[str]], board: str) -> str:
    """A board as text: 'labelled' lists size and occupied cells, a line each ('H a3'), 'grid' draws
    the paper's boxes.

    A labelled board writes the symbol beside each of its cells, so that a small model finds either
    from the other. The symbols stand in the order in which they first appear, row by row, so that
    their order tells nothing of their roles."""
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
    """The cells of the first board in a text, in either rendering ([] where there is none); '.' is
    a free cell.
    """
    rows: list[list[str]] = []
    listed = False
    for line in text.split("\n"):
        if not rows and (size := re.fullmatch(r"([1-9]|1\d|2[0-6])x([1-9]\d?)", line)):
            rows, listed = [["."] * int(size[2]) for _ in range(int(size[1]))], True
        elif listed and (cell := re.fullmatch(r"(\S) ([a-z])(\d+)", line)):
            r, c = ord(cell[2]) - ord("a"), int(cell[3]) - 1
            if r < len(rows) and c < len(rows[0]):
                rows[r][c] = cell[1]
        elif not listed and re.fullmatch(r"\|(.....\|)+", line):
            rows.append([cell.strip() or "." for cell in line.strip("|").split("|")])
        elif listed or (rows and not line.startswith("+")):
            break
    return rows


class TextEnv(gym.Env):
    """A board that is played in text; subclasses give SYMBOLS, `position`, `_draw`, `_start`,
    `_cells`, `_move`.

    The action is the model's whole reply; `step` returns the board as text, reward 1.0 on success
    and else 0.0, and an `info` with `action` (None where the reply had none), `feedback` and
    `outcome` (None while the game goes on). `action_space` is what gymnasium's tools sample from;
    `step` takes any string. `split` is 'train' or 'unseen' (a layout that no training seed can
    give), or None for all layouts. `symbols` renames what is on the board (keys of SYMBOLS),
    `moves` the words for the moves (keys of ACTIONS): {"left": "west"}."""

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 2}
    SYMBOLS: dict[str, str]  # what may be on a board, by kind
    layout: Any = None  # what a seed draws: the board at the start
    position: Any  # all that changes in a game; hashable, may be set (`bounds` looks ahead with it)

    def __init__(
        self,
        split: str | None = None,
        board: str = "grid",
        max_turns: int = 5,
        symbols: dict[str, str] | None = None,
        moves: dict[str, str] | None = None,
        render_mode: str | None = None,
    ):
        if split not in (None, "train", "unseen"):
            raise ValueError(f"split must be 'train', 'unseen' or None, got {split!r}")
        if max_turns < 1:
            raise ValueError(f"max_turns must be at least 1, got {max_turns}")
        for name, given, known in (("symbols", symbols, self.SYMBOLS), ("moves", moves, ACTIONS)):
            if unknown := set(given or {}) - set(known):
                raise ValueError(f"unknown {name} {sorted(unknown)}: the names are {sorted(known)}")
        self.symbols, self.moves = (
            self.SYMBOLS | (symbols or {}),
            tuple((moves or {}).get(a, a) for a in ACTIONS),
        )
        letters = list(self.symbols.values())
        if len(set(letters)) < len(letters) or any(
            len(x) != 1 or x.isspace() or x in "|+" for x in letters
        ):
            raise ValueError(
                f"symbols must differ and be one printable character each, not | or +: got {self.symbols}"
            )
        if len({x.lower() for x in self.moves}) < 4 or not all(
            re.fullmatch(r"\w+", x) for x in self.moves
        ):
            raise ValueError(
                f"moves must be four different words of letters and digits, got {self.moves}"
            )
        self.board, self.split, self.max_turns, self.render_mode = (
            board,
            split,
            max_turns,
            render_mode,
        )
        self.observation_space = spaces.Text(
            10_000, charset=CHARSET + "".join(set(letters) - set(CHARSET))
        )
        self.action_space = spaces.Text(10_000, min_length=0, charset=CHARSET)

    @property
    def board(self) -> str:
        """How the board is written, one of BOARDS."""
        return self._board

    @board.setter
    def board(self, board: str) -> None:
        if board not in BOARDS:
            raise ValueError(f"board must be one of {BOARDS}, got {board!r}")
        self._board = board

    def _draw(self, seed: int | None) -> Any:
        """A layout (with a property `unseen`) from `self.np_random`, which `seed` has just seeded."""
        raise NotImplementedError

    def _start(self) -> None:
        """Put the game at the start of `self.layout`."""
        raise NotImplementedError

    def _cells(self) -> list[list[str]]:
        raise NotImplementedError

    def _move(self, action: str) -> tuple[str, Outcome | None]:
        """Play one action: what happened in words, and the outcome (None: goes on, INVALID: it
        could not be done).
        """
        raise NotImplementedError

    def _chances(self, action: str) -> list[tuple[float, Any, Outcome | None]]:
        """Where an action may lead from `position`: (probability, position, outcome). By default
        what `_move` does.
        """
        _, outcome = self._move(action)
        return [(1.0, self.position, outcome)]

    def place(self, row: int, column: int) -> str:
        """A cell's name in words that fit the board's rendering."""
        return (
            label(row, column)
            if self.board == "labelled"
            else f"row {row + 1}, column {column + 1}"
        )

    def word(self, action: str) -> str:
        """What an action is called in this world."""
        return self.moves[ACTIONS.index(action)]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start the game of a seed, or of a layout given as options={"layout": ...}; returns
        (observation, info).
        """
        super().reset(seed=seed)
        options = options or {}
        if unknown := set(options) - {"layout"}:
            raise ValueError(f"unknown reset options {sorted(unknown)}: there is only 'layout'")
        self.layout = options.get("layout") or self._draw_split(seed)
        self._start()
        self.turn, self._warned, self._outcome = 0, False, None
        return render_board(self._cells(), self.board), {
            "action": None,
            "feedback": "",
            "outcome": None,
        }

    def _draw_split(self, seed: int | None) -> Any:
        for _ in range(10_000):
            layout = self._draw(seed)
            if layout is not None and (
                self.split is None or layout.unseen == (self.split == "unseen")
            ):
                return layout
        raise ValueError(
            f"no layout found in 10,000 draws of {type(self).__name__}: ask for fewer holes, another "
            f"size, a lower min_moves or more max_turns (now {self.max_turns})"
        )

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play one reply; see the class for what comes back."""
        if self.layout is None or self._outcome is not None:
            raise RuntimeError("no game is going on (not begun, or over): call reset() first")
        self.turn += 1
        move = parse_action(action, self.moves)
        told = (
            "No move found: answer with one of "
            + " ".join(f"[{word}]" for word in self.moves)
            + "."
        )
        feedback, outcome = self._move(move) if move else (told, Outcome.INVALID)
        invalid = outcome is Outcome.INVALID
        if invalid and self._warned:
            feedback += " Second invalid move in a row: you lost."
        elif invalid:
            feedback, outcome = f"{feedback} Warning: a second invalid move in a row loses.", None
        self._warned = invalid
        if outcome is None and self.turn >= self.max_turns:
            feedback, outcome = f"{feedback} No turns left: you lost.", Outcome.TURN_LIMIT
        self._outcome = outcome
        info = {"action": move and self.word(move), "feedback": feedback, "outcome": outcome}
        over = outcome is Outcome.TURN_LIMIT
        observation = render_board(self._cells(), self.board)
        return (
            observation,
            float(outcome is Outcome.SUCCESS),
            outcome is not None and not over,
            over,
            info,
        )

    def render(self):
        """The board: text in mode 'ansi', an RGB array [H, W, 3] in mode 'rgb_array'."""
        if self.render_mode == "rgb_array":
            from .picture import board_image

            return board_image(
                self._cells(), {symbol: kind for kind, symbol in self.symbols.items()}
            )
        return render_board(self._cells(), self.board)


class TextWorld(gym.Wrapper):
    """Any other text world as it is played here: `info` gets what a bare gymnasium.Env does not
    say.

    `action`: the last text in brackets in the reply; `feedback`: the new observation, as no later
    turn shows the last one; `outcome`: at the end success where the reward is above 0, else
    failure, and turn_limit where gymnasium cuts the game off. What the world's own `info` says
    wins. `moves` are the words that the prompt offers, where the world has such an attribute."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.max_turns, self.moves = (
            env.spec.max_episode_steps,
            tuple(getattr(env.unwrapped, "moves", ())),
        )

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play one reply; see the class for `info`."""
        observation, reward, ended, cut, info = self.env.step(action)
        bracketed = re.findall(r"\[\s*([^][]*?)\s*\]", action)
        outcome = (
            (Outcome.SUCCESS if reward > 0 else Outcome.FAILURE)
            if ended
            else Outcome.TURN_LIMIT
            if cut
            else None
        )
        info = {"action": bracketed[-1] if bracketed else None, "feedback": observation, **info}
        info["outcome"] = Outcome(info["outcome"]) if info.get("outcome") else outcome
        return observation, reward, ended, cut, info

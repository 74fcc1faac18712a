"""The paper's reply protocol, shared by every text world: a reply goes in, a board and feedback in
words come out.

An action is the last bracketed legal action in the whole reply. A first invalid reply (no legal
action, or a step into a wall) is a warning that uses up a turn; a second in a row ends the game. A
game has at most `max_turns` turns. No reward reaches training; it only measures the pass rate
(arXiv 2603.16856, section 4).
"""

from __future__ import annotations

import re
from traceback import walk_tb
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from .. import given
from ..records import Outcome
from .board import ACTIONS, BOARDS, CHARSET, label, parse_action, render_board

StepResult = tuple[str, float, bool, bool, dict[str, Any]]


class TextEnv(gym.Env[str, str]):
    """A board that is played in text; a subclass defines what is on it and what a move does.

    The action is the model's whole reply. `step` returns the board as text, a reward (1.0 on
    success, otherwise 0.0), and an `info` with `action` (None if the reply had none), `feedback`
    and `outcome` (None while the game goes on).

    Args:
        split: 'train', 'unseen' (a layout that no training seed can give), or None for all.
        board: rendering of the board, one of BOARDS.
        max_turns: most turns per game.
        symbols: renames what is on the board (keys of SYMBOLS).
        moves: renames the moves (keys of ACTIONS): {"left": "west"}.
        render_mode: 'ansi' (text) or 'rgb_array'.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 2}
    SYMBOLS: dict[str, str]  # what can be on a board, by kind
    tools = ()  # a board is played in words
    layout: Any = None  # what a seed draws: the board at the start
    position: Any  # all that changes in a game; hashable and settable (`bounds` looks ahead)

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
        if given.whole("max_turns", max_turns) < 1:
            raise ValueError(f"max_turns must be at least 1, got {max_turns}")
        for name, chosen, known in (("symbols", symbols, self.SYMBOLS), ("moves", moves, ACTIONS)):
            if unknown := set(chosen or {}) - set(known):
                raise ValueError(f"unknown {name} {sorted(unknown)}: the names are {sorted(known)}")
        self.symbols = self.SYMBOLS | (symbols or {})
        self.moves = tuple((moves or {}).get(action, action) for action in ACTIONS)
        self._check_names()
        self.board, self.split, self.max_turns = board, split, max_turns
        self.render_mode = render_mode
        extra = "".join(set(self.symbols.values()) - set(CHARSET))
        self.observation_space = spaces.Text(10_000, charset=CHARSET + extra)
        # what gymnasium's tools sample from; `step` takes any string
        self.action_space = spaces.Text(10_000, min_length=0, charset=CHARSET)

    def _on_boards(self) -> dict[str, str]:
        """Return all symbols that boards of this world can show, by name."""
        return self.symbols

    def _check_names(self) -> None:
        symbols = self._on_boards()
        if len({x for x in symbols.values() if re.fullmatch(r"[^\s|+]", x)}) < len(symbols):
            what = "symbols must differ and be one printable character each, not | or +"
            raise ValueError(f"{what}: got {symbols}")
        words = {word.lower() for word in self.moves if re.fullmatch(r"\w+", word)}
        if len(words) < len(ACTIONS):
            what = "moves must be four different words of letters and digits"
            raise ValueError(f"{what}, got {self.moves}")

    @property
    def board(self) -> str:
        """The rendering of the board, one of BOARDS."""
        return self._board

    @board.setter
    def board(self, board: str) -> None:
        if board not in BOARDS:
            raise ValueError(f"board must be one of {BOARDS}, got {board!r}")
        self._board = board

    def _draw(self, seed: int | None) -> Any:
        """Draw a layout (with `unseen`) or None from `self.np_random`, just seeded with `seed`."""
        raise NotImplementedError

    def _check_layout(self, layout: Any) -> None:
        """Raise ValueError for a layout, from a caller, that this world cannot play."""
        raise NotImplementedError

    def _start(self) -> None:
        """Put the game at the start of `self.layout`."""
        raise NotImplementedError

    def _cells(self) -> list[list[str]]:
        raise NotImplementedError

    def _move(self, action: str) -> tuple[str, Outcome | None]:
        """Play one action; return feedback and outcome (None: goes on, INVALID: impossible)."""
        raise NotImplementedError

    def _time_up(self) -> bool:
        return self.turn >= self.max_turns

    def _kinds(self) -> dict[str, str]:
        """What the symbols on the board mean, for its picture."""
        return {symbol: kind for kind, symbol in self.symbols.items()}

    def _about(self) -> dict[str, Any]:
        """What else `info` says about the board that is shown."""
        return {}

    def chances(self, action: str) -> list[tuple[float, Any, Outcome | None]]:
        """Return (probability, position, outcome) of each result of an action at `position`."""
        _, outcome = self._move(action)
        return [(1.0, self.position, outcome)]

    def place(self, row: int, column: int) -> str:
        """Return a cell's name in words that fit the board's rendering."""
        if self.board == "labelled":
            return label(row, column)
        return f"row {row + 1}, column {column + 1}"

    def word(self, action: str) -> str:
        """Return this world's word for an action."""
        return self.moves[ACTIONS.index(action)]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start the game of a seed or of options={"layout": ...}; return (observation, info)."""
        super().reset(seed=seed)
        options = options or {}
        if unknown := set(options) - {"layout"}:
            raise ValueError(f"unknown reset options {sorted(unknown)}: there is only 'layout'")
        if (layout := options.get("layout")) is not None:
            self._check_layout(layout)
        self.layout = self._draw_split(seed) if layout is None else layout
        self._start()
        self.turn, self._warned, self._outcome = 0, False, None
        return self._text(), {"action": None, "feedback": "", "outcome": None} | self._about()

    def _draw_split(self, seed: int | None) -> Any:
        for _ in range(10_000):
            layout = self._draw(seed)
            fits = layout and (self.split is None or layout.unseen == (self.split == "unseen"))
            if fits:
                return layout
        raise ValueError(
            f"no layout found in 10,000 draws of {type(self).__name__}: use fewer holes, "
            f"another size, a lower min_moves or more max_turns (now {self.max_turns})"
        )

    def step(self, action: str) -> StepResult:
        """Play one reply; the class describes the result."""
        if self.layout is None or self._outcome is not None:
            raise RuntimeError("the game has not started or is over: call reset() first")
        self.turn += 1
        move = parse_action(action, self.moves)
        if move:
            feedback, outcome = self._move(move)
        else:
            words = " ".join(f"[{word}]" for word in self.moves)
            feedback, outcome = f"No move found: answer with one of {words}.", Outcome.INVALID
        invalid = outcome is Outcome.INVALID
        if invalid and self._warned:
            feedback += " Second invalid move in a row: you lost."
        elif invalid:
            feedback, outcome = f"{feedback} Warning: a second invalid move in a row loses.", None
        self._warned = invalid
        if outcome is None and self._time_up():
            feedback, outcome = f"{feedback} No turns left: you lost.", Outcome.TURN_LIMIT
        self._outcome = outcome
        info = {"action": move and self.word(move), "feedback": feedback, "outcome": outcome}
        cut = outcome is Outcome.TURN_LIMIT
        ended = outcome is not None and not cut
        return self._text(), float(outcome is Outcome.SUCCESS), ended, cut, info | self._about()

    def _text(self) -> str:
        return render_board(self._cells(), self.board)

    def render(self) -> Any:
        """Return the board: text in mode 'ansi', an RGB array [H, W, 3] in mode 'rgb_array'."""
        if self.render_mode == "rgb_array":
            from .picture import board_image  # loads matplotlib

            return board_image(self._cells(), self._kinds())
        return self._text()


class TextEnvWrapper(gym.Wrapper[str, str, str, str]):
    """Wraps any other text world: adds to `info` what a bare gymnasium.Env lacks.

    `action` is the last bracketed text in the reply. `feedback` is the new observation, because no
    later turn shows the last one. `outcome` is set at the end: success if the reward is above 0,
    otherwise failure, or turn_limit if gymnasium cuts the game off. The world's own `info` takes
    precedence. `moves` are the words that the prompt offers and `tools` the definitions of tools,
    if the world has these attributes.
    """

    def __init__(self, env: gym.Env[str, str], max_turns: int):
        super().__init__(env)
        self.max_turns = max_turns
        world = env.unwrapped
        self.moves = tuple(given.records("the world's moves", getattr(world, "moves", ()), str))
        self.tools = tuple(given.records("the world's tools", getattr(world, "tools", ()), dict))

    def reset(self, **how: Any) -> tuple[str, dict[str, Any]]:
        """Start a game; TypeError if the world returns something else."""
        found: Any = self.env.reset(**how)
        if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], dict):
            raise TypeError("its reset() must return a pair: the observation and info, a dict")
        return found

    def step(self, action: str) -> StepResult:
        """Play one reply; see the class for `info`. TypeError if the world returns another form."""
        wanted = "its step() must return five values"
        wanted += ", observation, reward, terminated, truncated and info, a dict"
        try:  # a wrapper of gymnasium around the world may unpack first
            observation, reward, ended, cut, info = self.env.step(action)
        except ValueError as error:
            where = [frame.f_globals["__name__"] for frame, _ in walk_tb(error.__traceback__)]
            own = where[-1].startswith(("gymnasium.", "oelkit."))
            if not own or "to unpack (expected 5" not in str(error):
                raise  # the world's own error
            raise TypeError(f"{wanted}: {error}") from error
        if not isinstance(info, dict):
            raise TypeError(f"{wanted}, not {info!r:.80}")
        bracketed = [text.strip() for text in re.findall(r"\[([^][]*)\]", action)]
        outcome = Outcome.TURN_LIMIT if cut else None
        if ended:
            outcome = Outcome.SUCCESS if float(reward) > 0 else Outcome.FAILURE
        info = {"action": bracketed[-1] if bracketed else None, "feedback": observation, **info}
        info["outcome"] = Outcome(info["outcome"]) if info.get("outcome") else outcome
        return observation, float(reward), ended, cut, info

"""Single-player games of TextArena 0.7.4 as worlds; the package is an optional extra.

Departure from the paper: the first observation starts with the game's own prompt, which tells the
rules. A reward of 1 is success, a partial reward is failure. Nothing is downloaded: a game that
needs an online model, or word lists that are not on the machine, is an error.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from ..records import Outcome
from .board import CHARSET

_ONLINE = ("GuessWho", "TwentyQuestions")


def _random_state() -> tuple[Any, Any]:
    return random.getstate(), np.random.get_state()


def _set_random_state(state: tuple[Any, Any]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])


class TextArenaEnv(gym.Env[str, str]):
    """One TextArena game; `from_textarena` registers it.

    Feedback is what the game says besides its board.
    """

    observation_space = gym.spaces.Text(100_000, charset=CHARSET)
    action_space = gym.spaces.Text(10_000, min_length=0, charset=CHARSET)

    def __init__(self, game: str, **kwargs: Any):
        self._game, self._state = game, _random_state()
        with self._isolated() as textarena:
            if f"{game}-raw" not in textarena.envs.registration.ENV_REGISTRY:
                where = "textarena.envs.registration.ENV_REGISTRY"
                raise ValueError(f"TextArena has no game {game!r}: see {where}")
            self._env = textarena.make(f"{game}-raw", **kwargs)

    @contextlib.contextmanager
    def _isolated(self) -> Iterator[Any]:
        """Provide TextArena with this game's state of the global generators, without downloads."""
        try:
            import nltk
            import textarena
        except ImportError as error:
            raise ImportError("this world needs TextArena: pip install textarena==0.7.4") from error
        outside, download = _random_state(), nltk.download
        _set_random_state(self._state)
        nltk.download = lambda *args, **options: False
        try:
            yield textarena
        except LookupError as error:
            if type(error) is not LookupError:  # a KeyError in their code
                raise
            raise ValueError(
                f"TextArena's {self._game} needs NLTK data that is not on this machine: get it "
                "first with python -m nltk.downloader words averaged_perceptron_tagger_eng"
            ) from error
        finally:
            nltk.download, self._state = download, _random_state()
            _set_random_state(outside)

    def _read(self) -> tuple[str, str]:
        """Return the board (the last one if there is no new one) and what else was said since."""
        messages = self._env.get_observation()[1]
        # some games pass their arguments in the wrong order, so this is not always text
        texts = [(text.strip(), kind.name) for _, text, kind in messages if isinstance(text, str)]
        boards = [text for text, kind in texts if kind == "GAME_BOARD"]
        others = [text for text, kind in texts if kind not in ("GAME_BOARD", "PLAYER_ACTION")]
        self._board = boards[-1] if boards else self._board
        return self._board, "\n\n".join(others)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start the game of a seed; return its prompt and its board, if any."""
        super().reset(seed=seed)
        seed, self._board = int(self.np_random.integers(2**31)) if seed is None else seed, ""
        with self._isolated():
            random.seed(seed)
            np.random.seed(seed % 2**32)
            self._env.reset(num_players=1, seed=seed)
            board, rest = self._read()
        return f"{rest}\n\n{board}".strip(), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play one reply."""
        with self._isolated():
            done, _ = self._env.step(action)
            board, rest = self._read()
        if not done:
            return board or rest, 0.0, False, False, {"feedback": rest or board}
        rewards, game = self._env.close()
        won, invalid = rewards[0] == 1, game[0]["invalid_move"]
        outcome = Outcome.SUCCESS if won else Outcome.INVALID if invalid else Outcome.FAILURE
        feedback = "\n\n".join(filter(None, (rest, str(game[0].get("reason") or ""))))
        return board or rest, float(won), True, False, {"feedback": feedback, "outcome": outcome}


def from_textarena(game: str, max_turns: int = 20) -> str:
    """Register a single-player game of TextArena ("Mastermind-v0"); `env_kwargs` go to the game.

    Returns:
        Its id, "TextArena/Mastermind-v0".

    Raises:
        ImportError: the extra `textarena` is not installed.
        ValueError: the game is unknown, has more players, does not start (some do not in 0.7.4),
            or needs something that is not on this machine.
    """
    if game.split("-")[0] in _ONLINE:
        raise ValueError(f"TextArena's {game} needs an online model, which is not supported")
    try:
        env = TextArenaEnv(game)
        env.reset(seed=0)
        env.step("[]")
        single = type(env._env.state).__name__ == "SinglePlayerState"
    except (ImportError, ValueError):
        raise
    except Exception as error:  # whatever their code raises
        why = f"{type(error).__name__}: {error}"
        what = f"TextArena's {game} cannot be played by one player here ({why})"
        raise ValueError(what) from error
    if not single:
        raise ValueError(f"TextArena's {game} is not a game for one player")
    env_id = f"TextArena/{game}"
    gym.registry.pop(env_id, None)  # the last call counts, without a warning
    gym.register(env_id, TextArenaEnv, kwargs={"game": game}, max_episode_steps=max_turns)
    return env_id

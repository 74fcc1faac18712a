"""The worlds by name: which exist, how to make one, which one holds another's unseen layouts."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

import gymnasium as gym

from .. import given
from .board import DESCENT_LETTERS
from .text_env import TextEnv, TextEnvWrapper

_LAKE, _SOKOBAN = "oelkit.envs.frozen_lake:FrozenLakeEnv", "oelkit.envs.sokoban:SokobanEnv"
_DESCENT = "oelkit.envs.descent:DescentEnv"
_4X4 = {"size": 4, "holes": (1, 4), "min_moves": 3}
_ROOM = {"size": 6, "boxes": 1}
_OTHER_MOVES = {"left": "west", "down": "south", "right": "east", "up": "north"}
_OTHER_LAKE = {"hole": "W", "goal": "E", "decoy": "T", "player": "A"}
_OTHER_ROOM = dict(zip(("wall", "target", "box", "done", "player", "player on target"), "=DBKAR"))
_OTHER_DESCENT = {"levels": 2, "letters": DESCENT_LETTERS[16:], "moves": _OTHER_MOVES}
_OTHER_DESCENT["symbols"] = {"player": "&", "player with key": "X"}
WORLDS: dict[str, tuple[str, dict[str, Any]]] = {
    "oelkit/FrozenLake-v0": (_LAKE, {"size": 3, "holes": 2, "corners": True})
}
for _name, _entry_point, _kwargs in (
    ("FrozenLake3x3", _LAKE, {"size": 3, "holes": (1, 2)}),
    ("FrozenLake4x4", _LAKE, _4X4),
    ("FrozenLake4x4Slippery", _LAKE, _4X4 | {"slippery": True}),
    ("FrozenLake4x4Other", _LAKE, _4X4 | {"symbols": _OTHER_LAKE, "moves": _OTHER_MOVES}),
    ("Descent", _DESCENT, {}),
    ("Descent1", _DESCENT, {"levels": 1}),
    ("Descent2", _DESCENT, {"levels": 2}),
    ("Descent3", _DESCENT, {"levels": 3}),
    ("DescentOther", _DESCENT, _OTHER_DESCENT),
    ("Sokoban", _SOKOBAN, _ROOM),
    ("SokobanOther", _SOKOBAN, _ROOM | {"symbols": _OTHER_ROOM, "moves": _OTHER_MOVES}),
):
    WORLDS[f"oelkit/{_name}-v0"] = (_entry_point, _kwargs | {"split": "train"})
    WORLDS[f"oelkit/{_name}Unseen-v0"] = (_entry_point, _kwargs | {"split": "unseen"})
for _id, (_entry_point, _kwargs) in WORLDS.items():
    bare: dict[str, Any] = {"disable_env_checker": True, "order_enforce": False}
    gym.register(_id, _entry_point, kwargs=_kwargs, **bare)


def held_out(env_id: str) -> str:
    """Return the id of a world's held-out layouts (`…Unseen-v0`), or the same id if it has none.

    An id without a version is the latest of that name, as everywhere in gymnasium. A world with
    nearly the required name causes a warning.
    """
    given.one("env_id", env_id, str, ", the id of a registered world")
    module, _, name = env_id.rpartition(":")
    if module:
        with suppress(Exception, SystemExit):  # `make` reports it
            import_module(module)
    if not re.search(r"-v\d+$", name) and name not in gym.registry:
        versions = [i for i in gym.registry if re.fullmatch(re.escape(name) + r"-v\d+", i)]
        name = max(versions, key=lambda i: int(i.rpartition("-v")[2]), default=name)
    unseen = re.sub(r"(-v\d+)?$", r"Unseen\1", name, count=1)
    if unseen in gym.registry:
        return f"{module}:{unseen}".lstrip(":")
    near = [i for i in gym.registry if _letters(i) == _letters(unseen)]
    if near and name in gym.registry:
        told = f"the held-out layouts of {name} must be called {unseen}, not {near[0]}"
        warnings.warn(f"{told}: evaluation uses the training layouts", stacklevel=2)
    return env_id


def _letters(env_id: str) -> str:
    """Return an id without its version, case and punctuation."""
    return re.sub(r"-v\d+$|[^\w/]|_", "", env_id).lower()


def make(env_id: str, **kwargs: Any) -> TextEnv | TextEnvWrapper:
    """Make a registered text world; `board` (its rendering) is ignored if there is no choice.

    Raises:
        ValueError: no world has this id, it is not a text world, or making it fails.
    """
    given.one("env_id", env_id, str, ", the id of a registered world")
    board, name = kwargs.pop("board", None), env_id.rpartition(":")[2]
    if env_id.count(":") > 1 or env_id.startswith(":"):
        raise _unknown(env_id)
    try:
        env = gym.make(env_id, disable_env_checker=True, **kwargs)
    except (ValueError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and name not in gym.registry:
            why = str(error).partition(". ")[0]  # gymnasium then says where it looked
            said = f"unknown environment {env_id!r}: {why}, neither installed nor in this folder"
            raise ValueError(said) from error
        unknown = gym.error.UnregisteredEnv | gym.error.DeprecatedEnv
        if isinstance(error, unknown) or "Malformed environment ID" in str(error):
            raise _unknown(env_id) from error
        odd = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if odd and odd[1] in kwargs:
            raise ValueError(f"{env_id!r} takes no argument {odd[1]!r}") from error
        said = f"{env_id!r} cannot be made: {type(error).__name__}: {error}"
        raise ValueError(said) from error
    turns = env.spec and env.spec.max_episode_steps
    if isinstance(world := env.unwrapped, TextEnv):
        world.board = board or world.board
        if turns not in (None, world.max_turns):
            said = f"has a limit of its own, {world.max_turns} turns: change that one in its kwargs"
            raise ValueError(f"{env_id!r} {said}, not max_episode_steps={turns}")
        return world
    why = "" if turns else "has no limit of turns: register it with max_episode_steps=..."
    for what in ("action_space", "observation_space"):
        if not isinstance(space := getattr(env, what, None), gym.spaces.Text):
            has = f"its {what} is {space}" if space else f"it has no {what}"
            why = f"is not a text world: {has}; set {what} = gymnasium.spaces.Text(10_000)"
    for what in ("step", "reset"):
        if getattr(type(world), what) is getattr(gym.Env, what):
            why = f"has no {what}()"
    if why or not turns:
        with suppress(Exception):
            env.close()
        raise ValueError(f"{env_id!r} {why}")
    return TextEnvWrapper(env, turns)


def _unknown(env_id: str) -> ValueError:
    """Return the error for an unknown id, with the id that was probably meant or some examples."""
    module = env_id[: env_id.find(":") + 1].lstrip(":")  # without it, the world is not found
    said = given.did_you_mean(env_id, [module + i for i in gym.registry], r"^.*[:/]|-v\d+$")
    if not said:
        said = ": use one of docs/worlds.md (oelkit/Descent-v0, oelkit/FrozenLake4x4-v0, "
        said += "oelkit/Sokoban-v0, ...), or MODULE:ID for your own"
    return ValueError(f"unknown environment {env_id!r}{said}")


@contextmanager
def opened(env_id: str, **kwargs: Any) -> Iterator[TextEnv | TextEnvWrapper]:
    """Make a world to look at, and close it again. The module of a module:id is imported."""
    made = make(env_id, **kwargs)
    try:
        yield made
    finally:
        with suppress(Exception):  # a game will report it
            made.close()


def check(env_id: str) -> None:
    """Raise what `make` raises."""
    with opened(env_id):
        pass

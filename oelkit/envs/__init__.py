"""The text worlds, registered with gymnasium when this package is imported.

`oelkit/FrozenLake-v0` is the paper's 3x3 with 2 holes: it has only 19 solvable layouts, so held-out
seeds are not unseen layouts there. The other worlds come in pairs: the plain name draws training
layouts, `…Unseen-v0` held-out ones. `…Other-v0` is an unseen world: the same rules, but no symbol
and no word for a move in common with the plain one.

Your own: a gymnasium.Env whose observations and actions (the model's whole replies) are text,
registered with `gymnasium.register(id, entry_point=YourWorld, max_episode_steps=turns)`; see
`protocol.TextWorld`. Its id, or `module:id` where the module registers it, works wherever a world
is named."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from .bounds import bounds, describe
from .frozen_lake import FrozenLakeEnv, Layout
from .sokoban import Room, SokobanEnv
from .text_env import ACTIONS, BOARDS, TextEnv, TextWorld, parse_action, parse_board, render_board
from .textarena import from_textarena

__all__ = [
    "ACTIONS",
    "BOARDS",
    "WORLDS",
    "FrozenLakeEnv",
    "Layout",
    "Room",
    "SokobanEnv",
    "TextEnv",
    "TextWorld",
    "bounds",
    "describe",
    "from_textarena",
    "held_out",
    "make",
    "parse_action",
    "parse_board",
    "render_board",
]

_LAKE, _SOKOBAN = "oelkit.envs.frozen_lake:FrozenLakeEnv", "oelkit.envs.sokoban:SokobanEnv"
_4X4 = {"size": 4, "holes": (1, 4), "min_moves": 3}
_ROOM = {"size": 6, "boxes": 1}
_OTHER_MOVES = {"left": "west", "down": "south", "right": "east", "up": "north"}
_OTHER_LAKE = {"hole": "W", "goal": "E", "decoy": "T", "player": "A"}
_OTHER_ROOM = {
    "wall": "=",
    "target": "D",
    "box": "B",
    "done": "K",
    "player": "A",
    "player on target": "R",
}
WORLDS = {"oelkit/FrozenLake-v0": (_LAKE, {"size": 3, "holes": 2, "corners": True})}
for _name, _entry_point, _kwargs in (
    ("FrozenLake3x3", _LAKE, {"size": 3, "holes": (1, 2)}),
    ("FrozenLake4x4", _LAKE, _4X4),
    ("FrozenLake4x4Slippery", _LAKE, _4X4 | {"slippery": True}),
    ("FrozenLake4x4Other", _LAKE, _4X4 | {"symbols": _OTHER_LAKE, "moves": _OTHER_MOVES}),
    ("Sokoban", _SOKOBAN, _ROOM),
    ("SokobanOther", _SOKOBAN, _ROOM | {"symbols": _OTHER_ROOM, "moves": _OTHER_MOVES}),
):
    WORLDS[f"oelkit/{_name}-v0"] = (_entry_point, _kwargs | {"split": "train"})
    WORLDS[f"oelkit/{_name}Unseen-v0"] = (_entry_point, _kwargs | {"split": "unseen"})
for _id, (_entry_point, _kwargs) in WORLDS.items():
    if _id not in gym.registry:
        gym.register(
            _id,
            entry_point=_entry_point,
            kwargs=_kwargs,
            disable_env_checker=True,
            order_enforce=False,
        )


def held_out(env_id: str) -> str:
    """The world of a made world's held-out layouts (`…Unseen-v0`), or the same id where there is
    none.
    """
    unseen = env_id.replace("-v", "Unseen-v")
    return unseen if unseen.split(":")[-1] in gym.registry else env_id


def make(env_id: str, **kwargs: Any) -> TextEnv | TextWorld:
    """Make a registered text world; an id that is unknown, or not of a text world, is a ValueError
    that lists them.

    `board` says nothing to a world that is no TextEnv, and is left out there.
    """
    known = ", ".join(sorted(i for i in gym.registry if i.startswith("oelkit/")))
    board = kwargs.pop("board", None)
    try:
        env = gym.make(env_id, disable_env_checker=True, **kwargs)
    except (gym.error.UnregisteredEnv, gym.error.DeprecatedEnv, ModuleNotFoundError) as error:
        raise ValueError(f"unknown environment {env_id!r} ({error}): known are {known}") from error
    except gym.error.Error as error:
        if "Malformed" not in str(error):
            raise
        raise ValueError(f"unknown environment {env_id!r}: known are {known}") from error
    if isinstance(env.unwrapped, TextEnv):
        env = env.unwrapped
        env.board = board or env.board
        return env
    for what, space in (("actions", env.action_space), ("observations", env.observation_space)):
        if not isinstance(space, gym.spaces.Text):
            raise ValueError(
                f"{env_id!r} is not a text world (its {what} are {space}): known are {known}"
            )
    if env.spec.max_episode_steps is None:
        raise ValueError(
            f"{env_id!r} has no limit of turns: register it with max_episode_steps=..."
        )
    return TextWorld(env)

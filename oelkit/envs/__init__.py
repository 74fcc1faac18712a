"""The text worlds, registered with gymnasium when this package is imported.

`oelkit/FrozenLake-v0` is the paper's 3x3 with 2 holes: it has only 19 solvable layouts, so held-out seeds are not
unseen layouts there. The other worlds come in pairs: the plain name draws training layouts, `…Unseen-v0` held-out ones.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from .bounds import bounds
from .frozen_lake import FrozenLakeEnv, Layout
from .protocol import ACTIONS, BOARDS, TextEnv, parse_action, parse_board, render_board
from .sokoban import Room, SokobanEnv

__all__ = [
    "ACTIONS", "BOARDS", "WORLDS", "FrozenLakeEnv", "Layout", "Room", "SokobanEnv", "TextEnv",
    "bounds", "make", "parse_action", "parse_board", "render_board",
]  # fmt: skip

_LAKE, _SOKOBAN = "oelkit.envs.frozen_lake:FrozenLakeEnv", "oelkit.envs.sokoban:SokobanEnv"
WORLDS = {
    "oelkit/FrozenLake-v0": (_LAKE, {"size": 3, "holes": 2, "corners": True}),
    "oelkit/FrozenLake3x3-v0": (_LAKE, {"size": 3, "holes": (1, 2), "split": "train"}),
    "oelkit/FrozenLake3x3Unseen-v0": (_LAKE, {"size": 3, "holes": (1, 2), "split": "unseen"}),
    "oelkit/FrozenLake4x4-v0": (_LAKE, {"size": 4, "holes": (1, 4), "min_moves": 3, "split": "train"}),
    "oelkit/FrozenLake4x4Unseen-v0": (_LAKE, {"size": 4, "holes": (1, 4), "min_moves": 3, "split": "unseen"}),
    "oelkit/Sokoban-v0": (_SOKOBAN, {"size": 6, "boxes": 1, "split": "train"}),
    "oelkit/SokobanUnseen-v0": (_SOKOBAN, {"size": 6, "boxes": 1, "split": "unseen"}),
}
for _id, (_entry_point, _kwargs) in WORLDS.items():
    if _id not in gym.registry:
        gym.register(_id, entry_point=_entry_point, kwargs=_kwargs, disable_env_checker=True, order_enforce=False)


def make(env_id: str, **kwargs: Any) -> TextEnv:
    """Make a registered text world; an id that is unknown, or not of a text world, is a ValueError that lists them."""
    known = ", ".join(sorted(i for i in gym.registry if i.startswith("oelkit/")))
    try:
        env = gym.make(env_id, **kwargs).unwrapped
    except (gym.error.UnregisteredEnv, gym.error.DeprecatedEnv) as error:
        raise ValueError(f"unknown environment {env_id!r}: known are {known}") from error
    except gym.error.Error as error:
        if "Malformed" not in str(error):
            raise
        raise ValueError(f"unknown environment {env_id!r}: known are {known}") from error
    if not isinstance(env.action_space, gym.spaces.Text):
        raise ValueError(f"{env_id!r} is not a text world (its actions are {env.action_space}): known are {known}")
    return env

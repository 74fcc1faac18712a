"""The text worlds, registered with gymnasium when this package is imported.

`oelkit/FrozenLake-v0` is the paper's 3x3 with 2 holes: it has only 19 solvable layouts, so held-out
seeds are not unseen layouts there. The other worlds come in pairs: the plain name draws training
layouts, `…Unseen-v0` held-out ones. `…Other-v0` is an unseen world: the same rules, but no symbol
and no word for a move in common with the plain one. `oelkit/Sql-v0` asks questions about a
database, `SqlUnseen-v0` held-out questions; `SqlOther-v0` is an unseen database.

A world of your own is a gymnasium.Env whose observations and actions (the model's whole replies)
are text. Register it with `gymnasium.register(id, entry_point=YourWorld, max_episode_steps=turns)`;
see `text_env.TextEnvWrapper`. Its id, or `module:id` if the module registers it, works wherever a
world is named.
"""

from .board import ACTIONS, BOARDS, parse_action, parse_board, render_board
from .bounds import bounds, describe, knowledge_bounds
from .descent import DescentBoard, DescentEnv, DescentLayout
from .frozen_lake import FrozenLakeEnv, Layout
from .sokoban import Room, SokobanEnv
from .sql import SqlEnv
from .text_env import TextEnv, TextEnvWrapper
from .textarena import from_textarena
from .worlds import WORLDS, check, held_out, make

__all__ = [
    "ACTIONS",
    "BOARDS",
    "WORLDS",
    "DescentBoard",
    "DescentEnv",
    "DescentLayout",
    "FrozenLakeEnv",
    "Layout",
    "Room",
    "SokobanEnv",
    "SqlEnv",
    "TextEnv",
    "TextEnvWrapper",
    "bounds",
    "check",
    "describe",
    "from_textarena",
    "held_out",
    "knowledge_bounds",
    "make",
    "parse_action",
    "parse_board",
    "render_board",
]

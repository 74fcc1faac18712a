"""The views of a notebook: games turn by turn, the experience items to curate, menus for whose.
They hold no state.
"""

from .editor import experience_editor
from .rounds import RoundMenu
from .viewer import trajectory_viewer

__all__ = ["RoundMenu", "experience_editor", "trajectory_viewer"]

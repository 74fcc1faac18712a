"""Notebook views: game viewer, experience editor, round menu, redo notice and playground.

They hold no state.
"""

from .editor import ExperienceEditor as experience_editor
from .playground import Playground
from .redo import RedoNotice
from .rounds import RoundMenu
from .viewer import TrajectoryViewer as trajectory_viewer

__all__ = ["Playground", "RedoNotice", "RoundMenu", "experience_editor", "trajectory_viewer"]

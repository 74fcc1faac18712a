"""The views of a notebook: games turn by turn, the experience items to curate, menus for whose,
what of a run is out of date, three answers to one state. They hold no state.
"""

from .editor import ExperienceEditor as experience_editor
from .playground import Playground
from .redo import RedoNotice
from .rounds import RoundMenu
from .viewer import TrajectoryViewer as trajectory_viewer

__all__ = ["Playground", "RedoNotice", "RoundMenu", "experience_editor", "trajectory_viewer"]

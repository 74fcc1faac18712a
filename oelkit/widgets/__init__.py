"""The two views of a notebook: games turn by turn, and the experience items to curate. They hold no state."""

from .editor import experience_editor
from .viewer import trajectory_viewer

__all__ = ["experience_editor", "trajectory_viewer"]

"""Where things are: what comes with oelkit, and the folder that runs go to."""

from __future__ import annotations

from pathlib import Path

MARK = "notebooks/00_tour.ipynb"  # lies in every clone, and wherever the notebooks were laid out


def shipped(path: str) -> Path:
    """A file or folder that comes with oelkit, by its path in a clone; in a wheel all of them lie
    in the package. It may be missing.
    """
    package = Path(__file__).resolve().parent
    inside = package / "_project"  # pyproject.toml puts them there
    return (inside if inside.is_dir() else package.parent) / path


def find_root() -> Path:
    """The folder that holds runs/: that of the notebooks, if the working directory is in one, else
    the working directory.
    """
    here = Path.cwd()
    return next((f for f in (here, *here.parents) if (f / MARK).is_file()), here)

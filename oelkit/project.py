"""Locate the files that come with oelkit, and the folder that holds the runs."""

from __future__ import annotations

from pathlib import Path

MARK = "notebooks/00_tour.ipynb"  # in every clone, and wherever the notebooks were copied to


def shipped(path: str) -> Path:
    """Return the path of a file or folder that comes with oelkit, given its path in a clone.

    In a wheel all of them are inside the package. The path need not exist.
    """
    package = Path(__file__).resolve().parent
    inside = package / "_project"  # pyproject.toml puts them there
    return (inside if inside.is_dir() else package.parent) / path


def find_root() -> Path:
    """Return the folder that holds runs/: the one around the working directory that contains the
    notebooks, otherwise the working directory.
    """
    here = Path.cwd()
    return next((f for f in (here, *here.parents) if (f / MARK).is_file()), here)

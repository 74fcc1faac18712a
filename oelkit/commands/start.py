"""Commands of the first ten minutes, each with the arguments that `__main__` has parsed."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..project import shipped

# what the notebooks read, by its path in a clone; the model stays where it is
TREE = ("notebooks", "examples", "data/sample", "data/logs", "data/results", "tests/benchmarks")
KINDS = (".ipynb", ".py", ".toml", ".md", ".jsonl")


def copy_notebooks(folder: Path) -> None:
    """Lay out the notebooks and what they read in a folder.

    Raises:
        ValueError: There is one of the files already, and it differs; then none is written.
    """
    root = shipped("")
    files = [
        path
        for part in TREE
        for path in sorted((root / part).rglob("*"))
        if path.suffix in KINDS and not {p[0] for p in path.relative_to(root).parts} & {".", "_"}
    ]
    pairs = [(path, folder / path.relative_to(root)) for path in files]
    for path, to in pairs:
        if to.exists() and to.read_bytes() != path.read_bytes():
            raise ValueError(f"{to} is there already and differs: choose another folder")
    for path, to in pairs:
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to)
    notebooks = folder / "notebooks"
    print(f"laid out: {len(list(notebooks.glob('*.ipynb')))} notebooks in {notebooks}")
    print(f"open them: cd {folder} && jupyter lab  (pip install jupyterlab)")

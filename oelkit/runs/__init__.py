"""Rounds in a run folder: settings, stages, resume.

The module is also a read-only mapping of the runs in the runs folder: `oelkit.runs["demo"]`.
"""

import sys
from collections.abc import Iterator
from types import ModuleType

from ..project import find_root
from .saved import SavedRun
from .settings import run_folder


class _Runs(ModuleType):
    def __getitem__(self, name: str) -> SavedRun:
        return SavedRun(run_folder(name))

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(p.parent.name for p in (find_root() / "runs").glob("*/run.json")))

    def __len__(self) -> int:
        return len(list(iter(self)))


sys.modules[__name__].__class__ = _Runs  # Python looks up __getitem__ in the class

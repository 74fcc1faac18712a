"""oelkit: Online Experiential Learning of language models, in notebooks.

A model plays (`rollout`) and writes down what it learned (`extract`). You can edit those items
(`Curation`). The model then absorbs them into its weights (`distill`), and `evaluate` measures what
it gained and lost. `run_loop` repeats all of this in rounds.

The names in `__all__` are the public API, listed in `__init__.pyi`. Each loads its module on first
use, so `import oelkit` is cheap.
"""

import os
import re
from importlib import import_module
from typing import Any

# By default, waiting OpenMP threads spin. They starve other processes and are starved by them: 25
# times slower or worse beside one busy core. If they sleep at once instead, a step takes 1.5 times
# as long on a quiet machine. So they spin shortly first: 1,000 times. torch reads both on import.
if os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE") == "PASSIVE":
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"
with open(os.path.join(__path__[0], "__init__.pyi"), encoding="utf-8") as _names:
    _HOME = {n: home for home, n in re.findall(r"^from \.(\S+) import (\w+)", _names.read(), re.M)}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "runs":  # a package that is also a mapping
        return import_module(".runs", __name__)
    if name not in _HOME:
        raise AttributeError(f"module 'oelkit' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOME[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"Any", "import_module", "os", "re"})

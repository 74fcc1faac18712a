"""The commands of the command line; each gets the arguments that `__main__` has parsed.

They call the library and print. Each command imports the libraries that it needs."""

from .doctor import doctor
from .runs import (
    compare,
    estimate,
    export,
    import_chats,
    loop,
    notebooks,
    promote,
    report,
    rollback,
    settings_of,
    status,
)
from .start import curate, demo, init, view
from .steps import data, distill, evaluate, experience_texts, extract, ifeval, play

__all__ = [
    "compare",
    "curate",
    "data",
    "demo",
    "distill",
    "doctor",
    "estimate",
    "evaluate",
    "experience_texts",
    "export",
    "extract",
    "ifeval",
    "import_chats",
    "init",
    "loop",
    "notebooks",
    "play",
    "promote",
    "report",
    "rollback",
    "settings_of",
    "status",
    "view",
]

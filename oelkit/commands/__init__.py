"""What the commands of the command line do, each with the arguments that `__main__` has parsed.

They call the library and print; a library is imported where a command needs it."""

from .runs import (
    compare,
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
from .steps import data, distill, evaluate, experience_texts, extract, ifeval, play

__all__ = [
    "compare",
    "data",
    "distill",
    "evaluate",
    "experience_texts",
    "export",
    "extract",
    "ifeval",
    "import_chats",
    "loop",
    "notebooks",
    "play",
    "promote",
    "report",
    "rollback",
    "settings_of",
    "status",
]

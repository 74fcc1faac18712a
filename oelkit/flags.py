"""The flags of the command line: fields of `Settings`, and each command's own arguments."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import Field, fields
from functools import partial
from typing import Any, get_args, get_type_hints

from .logs import FORMATS
from .runs.settings import EMBEDDED, RANGES, SCALES, Settings, outside, wrong

STEPS = ("play", "extract", "distill", "evaluate", "ifeval")
FIELDS = {field.name: field for field in fields(Settings)}
KINDS = get_type_hints(Settings)
_MANY = 10**9


def add_setting(group: Any, field: Field, command: str) -> None:
    """Add the flag of a field of Settings; the parsed arguments have it only if it is given."""
    kind, say = KINDS[field.name], partial(wrong, field.name)
    if none := type(None) in get_args(kind):  # X | None
        kind = get_args(kind)[0]
    if (command, field.name) == ("play", "temperature"):  # 0: greedy, invalid in training
        say = partial(outside, low=0.0, high=RANGES["temperature"][1])
    elif command in STEPS and field.name == "seed":  # no other run's maps to avoid
        say = partial(outside, low=-(10**12), high=10**12)
    how: dict[str, Any]
    if choices := get_args(kind):  # of a Literal
        how = {"choices": choices}
    elif kind is bool:
        how = {"action": argparse.BooleanOptionalAction}
    else:
        how = {"type": _checked(kind, say, none), "metavar": kind.__name__.upper()}
    default = SCALES["tiny"].get(field.name, field.default)
    own = f"; {EMBEDDED[field.name]} for the embedded model" if field.name in EMBEDDED else ""
    said = f"default: {'none' if default is None else default}{own}"
    text = f"{field.metadata['help']} ({said})"
    flag = f"--{field.name.replace('_', '-')}"
    group.add_argument(flag, default=argparse.SUPPRESS, help=text.replace("%", "%%"), **how)


def _checked(kind: type, say: Callable[[Any], str], none: bool = False) -> Any:
    def parse(text: str) -> Any:
        if none and text.lower() == "none":
            return None
        if said := say(value := kind(text)):
            raise argparse.ArgumentTypeError(f"{said}, not {text!r}")
        return value

    parse.__name__ = kind.__name__  # argparse names it in its message
    return parse


def _within(kind: type, low: float, high: float) -> Any:
    return _checked(kind, partial(outside, low=low, high=high))


_ROUND = _within(int, *RANGES["rounds"])


def add_own(one: argparse.ArgumentParser, name: str) -> None:
    """Add a command's own arguments, which are not settings."""
    add = one.add_argument
    if name == "init":
        add("folder", metavar="FOLDER", help="created if it is missing")
    if name == "demo":
        _add_run(add, "RUN", "run folder runs/RUN", "first")
    if name in ("curate", "view"):
        what = "items.jsonl" if name == "curate" else "trajectories.jsonl or a chat log"
        _add_run(add, "FILE|RUN", f"a file ({what}), a name in runs/, or a run's folder")
        add("--round", type=_ROUND, metavar="K", help="round of the run (default: the last)")
        port = _within(int, 1, 65_535)
        add("--port", type=port, metavar="N", help="port of 127.0.0.1 (default: a free one)")
        text = "open the page in the browser"
        add("--browser", action=argparse.BooleanOptionalAction, default=True, help=text)
    if name in ("loop", "status", "promote", "rollback", "report", "export", "data"):
        more = {"export": ", or an adapter's folder", "loop": " with --resume or --redo"}
        _add_run(add, "RUN", f"a name in runs/, or a path{more.get(name, '')}")
    if name in ("promote", "rollback"):
        add("round", type=_ROUND, metavar="K", help="a trained round")
    if name == "compare":
        add(
            "runs",
            nargs="+",
            metavar="RUN",
            help="names in runs/, or paths; the others are compared with the first",
        )
        add("--out", metavar="FILE", help="picture to write: .png, .svg or .pdf")
    if name in ("export", "data"):
        _add_out(add, name)
    if name == "import":
        add("file", metavar="FILE", help="a log as .jsonl, .json or .parquet, or a saved data set")
        add("--format", choices=FORMATS, help="format of the file (default: its first line's)")
        bad = "what to do with unreadable lines (default: raise, and nothing is written)"
        add("--bad", choices=("raise", "skip"), default="raise", help=bad)
        text = "keep e-mail addresses, phone numbers and keys as they are"
        add("--no-redact", action="store_true", help=text)
        add("--force", action="store_true", help="overwrite the logs of the run")
    if name == "import":
        _add_run(add, "RUN", "run folder runs/RUN")
    if name == "notebooks":
        add("--run", default="demo", metavar="RUN", help="run folder runs/RUN (default: demo)")
        add("names", nargs="*", metavar="NAME", help="notebooks (default: all, in order)")
        add("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE")
        add("--copy", metavar="FOLDER", help="copy the notebooks there and execute none")
        limit = "most seconds per notebook, against hangs (default: %(default)s)"
        add("--timeout", type=_within(float, 1e-3, _MANY), default=3600, metavar="S", help=limit)
    if name == "estimate":
        price = _within(float, 0, _MANY)
        add("--price-per-hour", type=price, metavar="X", help="of the machine, in any currency")
    if name == "loop":
        add("--track", choices=("tensorboard", "wandb", "trackio"), help="also send steps there")
        add(
            "--resume",
            action="store_true",
            help="continue, with the run's settings except those given here",
        )
        add("--redo", action="store_true", help="resume, and redo only what is stale")
    if name in STEPS:
        _add_of_step(one, name)


class _Once(argparse.Action):
    """Store the run, given alone or after --run; refuse two different ones."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        if getattr(namespace, "named", values) != values:
            raise argparse.ArgumentError(self, f"{namespace.named!r} is named already")
        namespace.run = namespace.named = values


def _add_run(add: Any, metavar: str, text: str, default: str = "demo") -> None:
    text += f"; --run in front is optional (default: {default})"
    add("run", nargs="?", action=_Once, default=argparse.SUPPRESS, metavar=metavar, help=text)
    add("--run", action=_Once, default=default, metavar=metavar, help=argparse.SUPPRESS)


def _add_of_step(one: argparse.ArgumentParser, name: str) -> None:
    """Add the arguments of a single step on files."""
    add = one.add_argument
    add("--adapter", metavar="FOLDER", help="LoRA adapter to start from")
    needed = name not in ("evaluate", "ifeval")
    add("--out", required=needed, metavar="PATH", help="file or folder to write")
    add("--force", action="store_true", help="overwrite existing output")
    if name in STEPS[:-1]:
        needed = name == "distill"
        flag, text = "--experience", f"what the {'teacher' if needed else 'model'} reads"
        if name == "extract":
            flag, text = "--previous", "experience of earlier games, which the model extends"
        text += "" if needed else " (default: nothing)"
        add(flag, dest="experience", metavar="FILE", required=needed, help=text)
    if name == "play":
        add("--seeds", type=_seeds, default=range(32), metavar="A:B", help="maps (default: 0:32)")
    if name == "extract":
        add("--trajectories", required=True, metavar="FILE", help="a trajectories.jsonl")
    if name == "distill":
        source = one.add_mutually_exclusive_group(required=True)
        source.add_argument("--states", metavar="FILE", help="a states.jsonl to train on")
        source.add_argument("--trajectories", metavar="FILE", help="train on its turns' prompts")
    if name == "ifeval":
        text = "a .jsonl of prompts, or a data set on the hub (default: google/IFEval)"
        add("questions", nargs="?", default="google/IFEval", metavar="FILE", help=text)
        number, text = _within(int, 1, _MANY), "most tokens per reply (default: %(default)s)"
        add("--limit", type=number, metavar="N", help="ask only the first N prompts")
        add("--max-new-tokens", type=number, default=1280, metavar="N", help=text)
        add("--replies", metavar="FILE", help="a .jsonl to write: replies with verdicts")


def _add_out(add: Any, name: str) -> None:
    """Add the arguments of `export` and `data`."""
    if name == "export":
        add("--to", action="append", choices=("peft", "merged", "gguf"), help="(default: peft)")
        add("--out", metavar="FOLDER", help="folder to write (default: export/FORM in the run)")
        add("--private", action="store_true", help="leave the experience text out")
        text = "load the export with plain libraries and play the held-out maps again"
        add("--check", action=argparse.BooleanOptionalAction, default=True, help=text)
        add("--push", metavar="USER/NAME", help="upload to a private repository on the hub")
        return
    text = "games; kept items; states with experience for TRL or ms-swift (default: %(default)s)"
    kinds = ("trajectories", "items", "trl", "ms-swift")
    add("--what", choices=kinds, default="trajectories", help=text)
    add("--round", type=_ROUND, metavar="K", help="one round only (default: all)")
    add("--out", required=True, metavar="PATH", help="a .jsonl, a .parquet or a folder")
    add("--force", action="store_true", help="overwrite existing output")


def _seeds(text: str) -> range:
    found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)
    seeds = range(*map(int, found.groups())) if found else range(0)
    if not 0 < len(seeds) <= 1_000_000:
        said = "is not a range of map seeds such as 0:32, of at most 1,000,000 maps"
        raise argparse.ArgumentTypeError(f"{text!r} {said}")
    return seeds

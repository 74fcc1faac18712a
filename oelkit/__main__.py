"""The command line: its flags, made of the fields of `Settings`, and its exit status.

What the library refuses becomes one line on stderr and status 1 (2: usage, 3: a run that is stale
or not finished, 130: Ctrl+C). What the commands do is in `commands`."""

from __future__ import annotations

import argparse
import os
import re
import sys
from dataclasses import Field, fields
from typing import Any, NoReturn, get_args, get_type_hints

from . import __version__, commands
from .config import DistillConfig, EvalConfig, ExtractConfig, ModelConfig
from .given import did_you_mean
from .logs import FORMATS
from .runs.settings import SCALES, Settings

EPILOG = """\
oelkit COMMAND --help says more, with an example. To begin with, in a minute:
  oelkit demo

A mistake ends with one line and exit status 1; OELKIT_DEBUG=1 shows where it came from."""
FILES = (
    "An experience FILE is plain text, an experience.md of a run (a text per draw) or an "
    "items.jsonl,\nof which the decisions in a curation.jsonl beside it hold."
)
LOOP = (ModelConfig, ExtractConfig, DistillConfig, EvalConfig, Settings)
COMMANDS = {  # what each does, an example, and the settings that it takes
    "demo": ("let a small model learn while you watch, in a minute", "demo", ()),
    "doctor": ("say what this machine has, which models fit it, and what is missing", "doctor", ()),
    "init": ("leave a world, a prompt set and a script of your own", "init my_world", ()),
    "curate": ("open the editor of experience items in the browser", "curate first", ()),
    "view": ("open the viewer of games and chats in the browser", "view chats.jsonl", ()),
    "notebooks": (
        "execute notebooks in order on one run; the first error stops",
        "notebooks 01_rollout --run look -p seed=1",
        (),
    ),
    "loop": (
        "all steps in rounds, with a table and a report at the end",
        "loop --run two --scale small --model Qwen/Qwen2.5-1.5B-Instruct\n"
        "  oelkit loop --run two --resume --rounds 3",
        LOOP,
    ),
    "estimate": (
        "say what a run will need: memory, tokens, minutes by stage, and money; tries it in small",
        "estimate --scale small --model Qwen/Qwen2.5-1.5B-Instruct --price-per-hour 0.80",
        LOOP,
    ),
    "status": ("say of each stage of a run: done, missing, or stale and why", "status two", ()),
    "promote": ("let the round after K start from round K", "promote two 1", ()),
    "rollback": ("let the round after K start where round K started", "rollback two 1", ()),
    "report": ("write report.html of a run again and print its table", "report --run two", ()),
    "compare": (
        "put finished runs beside each other: a table, and a figure with --out",
        "compare one two --out compared.png",
        (),
    ),
    "export": (
        "write a run's model as other programs read it, and play it again in that form",
        "export two --to peft --to merged",
        (),
    ),
    "data": (
        "write trajectories, items or training sets of a run for other programs",
        "data two --what trl --out states.parquet",
        (),
    ),
    "import": (
        "read chat logs of an agent into round 1 of a run, as trajectories and states",
        "import chats.jsonl --run mine --bad skip",
        (),
    ),
    "play": (
        "play games and write their trajectories",
        "play --seeds 0:32 --out games.jsonl",
        (ModelConfig, "env seed temperature max_new_tokens"),
    ),
    "extract": (
        "write down what trajectories teach",
        "extract --trajectories games.jsonl --num-draws 4 --out items.jsonl",
        (ModelConfig, ExtractConfig, "seed max_new_tokens"),
    ),
    "distill": (
        "train an adapter that needs the experience no more; no environment, no reward",
        "distill --trajectories games.jsonl --experience items.jsonl --out adapter",
        (ModelConfig, DistillConfig, "seed"),
    ),
    "evaluate": (
        "measure the pass rate on held-out maps",
        "evaluate --adapter adapter --eval-maps 128",
        (ModelConfig, EvalConfig, "env seed max_new_tokens"),
    ),
    "ifeval": (
        "measure what else the model still follows: IF-Eval, judged by the official checkers",
        "ifeval --model MODEL --adapter adapter --limit 100",
        (ModelConfig, "seed"),
    ),
}
STEPS = ("play", "extract", "distill", "evaluate", "ifeval")
FIELDS = {field.name: field for field in fields(Settings)}
KINDS = get_type_hints(Settings)


class Parser(argparse.ArgumentParser):
    """A parser that asks "did you mean …?"; that of a flag does `main`."""

    def error(self, message: str) -> NoReturn:
        """Usage and one sentence; exit status 2."""
        if wrong := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            message += did_you_mean(wrong[1], re.findall(r"[\w-]+", wrong[2]))
        super().error(message)


def parser() -> argparse.ArgumentParser:
    """All commands; the flags of the loop and of its steps are the fields of `Settings`."""
    how: Any = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    about = "Online Experiential Learning in rounds."
    top = Parser("oelkit", description=about, epilog=EPILOG, **how)
    top.add_argument("--version", action="version", version=f"oelkit {__version__}")
    choices = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, example, settings) in COMMANDS.items():
        end = f"example:\n  oelkit {example}"
        end += f"\n\n{FILES}" if name in STEPS[:-1] else ""
        one = choices.add_parser(name, help=text, description=f"{name}: {text}.", epilog=end, **how)
        one.usage = "oelkit loop [options]" if name == "loop" else None  # so many
        one.set_defaults(parser=one)
        _add_own(one, name)
        if settings:
            scale = "defaults for the embedded model (tiny), for one of 0.5-2 B parameters (small),"
            scale += " or the paper's settings (default: tiny)"
            one.add_argument("--scale", choices=SCALES, help=scale)
        for part in settings:
            names = part.split() if isinstance(part, str) else list(vars(part)["__annotations__"])
            title = "more settings" if isinstance(part, str) else part.__doc__.split(".")[0]
            group = one.add_argument_group(title)
            for field in names:
                _add_setting(group, FIELDS[field])
    return top


def _add_setting(group: Any, field: Field) -> None:
    """The flag of a field of Settings; the parsed arguments have it only where it is given."""
    kinds = [kind for kind in get_args(KINDS[field.name]) if kind is not type(None)]
    kinds = [word for kind in kinds for word in get_args(kind) or (kind,)]  # Literal or None
    literal = kinds and not isinstance(kinds[0], type)
    kind = str if literal else kinds[0] if kinds else KINDS[field.name]
    how: dict[str, Any] = {"metavar": kind.__name__.upper()}
    how |= {"type": _or_none(kind) if type(None) in get_args(KINDS[field.name]) else kind}
    if literal:
        how = {"choices": kinds}
    elif kind is bool:
        how = {"action": argparse.BooleanOptionalAction}
    default = SCALES["tiny"].get(field.name, field.default)
    text = f"{field.metadata['help']} (default: {'none' if default is None else default})"
    flag = f"--{field.name.replace('_', '-')}"
    group.add_argument(flag, default=argparse.SUPPRESS, help=text.replace("%", "%%"), **how)


def _or_none(kind: type) -> Any:
    def parse(text: str) -> Any:
        return None if text.lower() == "none" else kind(text)

    parse.__name__ = kind.__name__  # argparse names it in its message
    return parse


def _add_own(one: argparse.ArgumentParser, name: str) -> None:
    """The arguments of a command that are no settings."""
    add = one.add_argument
    if name == "init":
        add("folder", metavar="FOLDER", help="made where it is missing")
    if name == "demo":
        add("--run", default="first", metavar="NAME", help="run folder runs/NAME (default: first)")
    if name in ("curate", "view"):
        what = "items.jsonl" if name == "curate" else "trajectories.jsonl or a chat log"
        add("what", metavar="FILE|RUN", help=f"a file ({what}), a name in runs/, or a run's folder")
        add("--round", type=int, metavar="K", help="of a run (default: its last)")
        add("--port", type=int, metavar="N", help="at 127.0.0.1 (default: one that is free)")
        text = "open the page there"
        add("--browser", action=argparse.BooleanOptionalAction, default=True, help=text)
    if name in ("status", "promote", "rollback", "export", "data"):
        add("run", metavar="RUN", help="a name in runs/, or a path")
    if name in ("promote", "rollback"):
        add("round", type=int, metavar="K", help="a round that is trained")
    if name == "compare":
        add(
            "runs",
            nargs="+",
            metavar="RUN",
            help="names in runs/, or paths; the first is the measure",
        )
        add("--out", metavar="FILE", help="picture that is written, .png, .svg or .pdf")
    if name in ("export", "data"):
        _add_out(add, name)
    if name == "import":
        add("file", metavar="FILE", help="chats as .jsonl, .json or .parquet, or a saved data set")
        add("--format", choices=FORMATS, help="what the file holds (default: as its first line)")
        bad = "what becomes of lines that cannot be read (default: raise, and nothing is written)"
        add("--bad", choices=("raise", "skip"), default="raise", help=bad)
        text = "keep e-mail addresses, phone numbers and keys as they are"
        add("--no-redact", action="store_true", help=text)
        add("--force", action="store_true", help="write over the logs that are there")
    if name in ("notebooks", "loop", "report", "import"):
        add("--run", default="demo", metavar="NAME", help="run folder runs/NAME (default: demo)")
    if name == "notebooks":
        add("names", nargs="*", metavar="NAME", help="notebooks (default: all, in order)")
        add("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE")
        add("--copy", metavar="FOLDER", help="lay the notebooks out there and execute none")
        limit = "seconds that one notebook may take, against hangs (default: %(default)s)"
        add("--timeout", type=float, default=3600, metavar="S", help=limit)
    if name == "estimate":
        add("--price-per-hour", type=float, metavar="X", help="of the machine, in any currency")
    if name == "loop":
        add("--track", choices=("tensorboard", "wandb", "trackio"), help="send steps there, too")
        add("--resume", action="store_true", help="go on with the run, with its own settings")
        add("--redo", action="store_true", help="resume, and do again what is stale and no more")
    if name in STEPS:
        add("--adapter", metavar="FOLDER", help="LoRA adapter to start from")
        needed = name not in ("evaluate", "ifeval")
        add("--out", required=needed, metavar="PATH", help="file or folder that is written")
        add("--force", action="store_true", help="write over what is there")
    if name in STEPS[:-1]:
        flag, needed = "--previous" if name == "extract" else "--experience", name == "distill"
        text = "what the model reads (default: nothing)"
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
        text = "a .jsonl of prompts, or a data set on the hub (default: %(default)s)"
        add("questions", nargs="?", default="google/IFEval", metavar="FILE", help=text)
        add("--limit", type=int, metavar="N", help="ask only the first N prompts")
        text = "most tokens per reply (default: %(default)s)"
        add("--max-new-tokens", type=int, default=1280, metavar="N", help=text)
        add("--replies", metavar="FILE", help="a .jsonl that is written: replies with verdicts")


def _add_out(add: Any, name: str) -> None:
    """The arguments of `export` and `data`."""
    if name == "export":
        add("--to", action="append", choices=("peft", "merged", "gguf"), help="(default: peft)")
        add("--out", metavar="FOLDER", help="what is written (default: export/FORM in the run)")
        add("--private", action="store_true", help="keep the experience text out of it")
        text = "play the held-out maps again, loaded by plain libraries"
        add("--check", action=argparse.BooleanOptionalAction, default=True, help=text)
        add("--push", metavar="USER/NAME", help="upload to a private repository on the hub")
        return
    text = "games; items kept; states with experience for TRL or ms-swift (default: %(default)s)"
    kinds = ("trajectories", "items", "trl", "ms-swift")
    add("--what", choices=kinds, default="trajectories", help=text)
    add("--round", type=int, metavar="K", help="one round only (default: all)")
    add("--out", required=True, metavar="PATH", help="a .jsonl, a .parquet or a folder")
    add("--force", action="store_true", help="write over what is there")


def _seeds(text: str) -> range:
    if not re.fullmatch(r"\d{1,9}:\d{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no range of map seeds such as 0:32")
    return range(*map(int, text.split(":")))


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    args, rest = parser().parse_known_args(argv)
    if rest:
        flags = re.findall(r"--[a-z][a-z-]+", args.parser.format_help())
        meant = did_you_mean(rest[0].split("=")[0], flags)
        args.parser.error(f"unrecognized arguments: {' '.join(rest)}{meant}")
    args.argv = sys.argv[1:] if argv is None else argv
    try:
        # `import` is a word of Python
        command = args.command if args.command != "import" else "import_chats"
        status = getattr(commands, command)(args) or 0
        if getattr(args, "out", None):
            print(f"written: {args.out}")
        return status
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("OELKIT_DEBUG"):
            raise
        message = str(error)
        if isinstance(error, OSError) and error.filename:
            message = f"{error.filename}: {error.strerror}"
        print("error:", " ".join(message.split()), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

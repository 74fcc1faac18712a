"""The command line: its commands, each with an example, and its exit statuses.

An error becomes one line on stderr and exit status 1. Other statuses: 2 for wrong usage, 3 from
`status` for a run that is stale or unfinished, 130 for Ctrl+C except in `curate` and `view`, which
it ends. The commands themselves are in `commands`."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NoReturn

from . import __version__
from .commands import runs, start, steps
from .commands.doctor import doctor
from .config import DistillConfig, EvalConfig, ExtractConfig, ModelConfig
from .flags import FIELDS, STEPS, add_own, add_setting
from .given import did_you_mean
from .runs.settings import SCALES, Settings
from .startup import skip_slow_imports
from .tables import visible

skip_slow_imports()

EPILOG = """\
Run oelkit COMMAND --help for details and an example. To start, in a minute:
  oelkit demo

An error is one line, with exit status 1. Set OELKIT_DEBUG=1 to see where it came from."""
FILES = (
    "An experience FILE is plain text, the experience.md of a run (one text per draw) or an\n"
    "items.jsonl, with the decisions of the curation.jsonl beside it if there is one."
)
LOOP = (ModelConfig, ExtractConfig, DistillConfig, EvalConfig, Settings)
COMMANDS = {  # function, whose docstring is the help; example; settings that it takes
    "demo": (start.demo, "demo", ()),
    "doctor": (doctor, "doctor", ()),
    "init": (start.init, "init my_world", ()),
    "curate": (start.curate, "curate first", ()),
    "view": (start.view, "view chats.jsonl", ()),
    "notebooks": (runs.notebooks, "notebooks 01_rollout --run look -p seed=1", ()),
    "loop": (
        runs.loop,
        "loop --run two --scale small --model Qwen/Qwen2.5-1.5B-Instruct\n"
        "  oelkit loop --run two --resume --rounds 3",
        LOOP,
    ),
    "estimate": (
        runs.estimate,
        "estimate --scale small --model Qwen/Qwen2.5-1.5B-Instruct --price-per-hour 0.80",
        LOOP,
    ),
    "status": (runs.status, "status two", ()),
    "promote": (runs.promote, "promote two 1", ()),
    "rollback": (runs.rollback, "rollback two 1", ()),
    "report": (runs.report, "report two", ()),
    "compare": (runs.compare, "compare one two --out compared.png", ()),
    "export": (runs.export, "export two --to peft --to merged", ()),
    "data": (steps.data, "data two --what trl --out states.parquet", ()),
    "import": (runs.import_chats, "import chats.jsonl --run mine --bad skip", ()),
    "play": (
        steps.play,
        "play --seeds 0:32 --out games.jsonl",
        (ModelConfig, "env seed temperature max_new_tokens"),
    ),
    "extract": (
        steps.extract,
        "extract --trajectories games.jsonl --num-draws 4 --out items.jsonl",
        (ModelConfig, ExtractConfig, "seed max_new_tokens"),
    ),
    "distill": (
        steps.distill,
        "distill --trajectories games.jsonl --experience items.jsonl --out adapter",
        (ModelConfig, DistillConfig, "rehearsal seed"),
    ),
    "evaluate": (
        steps.evaluate,
        "evaluate --adapter adapter --eval-maps 128",
        (ModelConfig, EvalConfig, "env seed max_new_tokens"),
    ),
    "ifeval": (
        steps.ifeval,
        "ifeval --model MODEL --adapter adapter --limit 100",
        (ModelConfig, "seed"),
    ),
}


class Parser(argparse.ArgumentParser):
    """A parser that suggests a similar choice or flag."""

    commands: Mapping[str, Parser] = {}
    words: Sequence[str] = ()  # that a command is given

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; flags may stand between a command's other arguments, unless there is a `--`."""
        if args and args[0] in self.commands and "--" not in args:
            one = self.commands[args[0]]
            one.words = args[1:]
            return one.parse_known_intermixed_args(one.words, namespace)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the usage and one sentence, then exit with status 2.

        An unknown flag is named first: its value can look like another mistake.
        """
        flags = [flag for flag in self._option_string_actions if flag[:2] == "--"]
        given = [word.split("=")[0] for word in self.words if re.match("--[a-z]", word)]
        if unknown := [flag for flag in given if flag not in flags]:
            cut = next((flag for flag in flags if flag.startswith(unknown[0])), "")
            meant = f" (did you mean {cut}?)" if cut else did_you_mean(unknown[0], flags)
            message = f"unrecognized arguments: {' '.join(unknown)}{meant}"
        elif wrong := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            message += did_you_mean(wrong[1], re.findall(r"[\w-]+", wrong[2]))
        elif wrong := re.match(r"argument K: invalid int value: '(.*)'", message):
            message += f"; give the run and a round, such as: {self.prog} {wrong[1]} 1"
        super().error(message)


def parser() -> Parser:
    """Return the parser; the flags of `loop` and of its steps are the fields of `Settings`."""
    how: Any = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    about = "Online Experiential Learning in rounds."
    top = Parser("oelkit", description=about, epilog=EPILOG, **how)
    top.add_argument("--version", action="version", version=f"oelkit {__version__}")
    choices = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    top.commands = choices.choices
    for name, (command, example, settings) in COMMANDS.items():
        text = command.__doc__[0].lower() + command.__doc__[1:].rstrip(".")
        end = f"example:\n  oelkit {example}"
        end += f"\n\n{FILES}" if name in STEPS[:-1] else ""
        one = choices.add_parser(name, help=text, description=f"{name}: {text}.", epilog=end, **how)
        one.usage = "oelkit loop [options]" if name == "loop" else None  # too many
        one.set_defaults(command=name, parser=one)
        add_own(one, name)
        if settings:
            scale = "defaults for the embedded model (tiny), for one of 0.5-2 B parameters (small),"
            scale += " or the paper's settings (default: tiny, whose defaults are printed here)"
            one.add_argument("--scale", choices=SCALES, help=scale)
        for part in settings:
            names = part.split() if isinstance(part, str) else list(vars(part)["__annotations__"])
            title = "more settings" if isinstance(part, str) else part.__doc__.split(".")[0]
            group = one.add_argument_group(title)
            for field in names:
                add_setting(group, FIELDS[field], name)
    return top


def _one_line(message: Warning | str, *_: Any) -> str:
    """Format a warning for the command line, without the colours of gymnasium's warnings."""
    text = re.sub(r"\x1b\[\d*m(WARN: )?", "", str(message))
    return f"warning: {visible(' '.join(text.split()))}\n"


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status."""
    if argv is None:  # run as a program
        argv = sys.argv[1:]
        warnings.formatwarning = _one_line
        if isinstance(sys.stdout, io.TextIOWrapper):  # a log can hold what a terminal cannot
            sys.stdout.reconfigure(errors="backslashreplace")
        sys.path.append("")  # console scripts lack the working directory; last, it hides nothing
    top = parser()
    for word in argv:
        if re.fullmatch(r"--[\w-]+=--|-\w=?--", word):  # argparse drops these and finds no value
            top.error(f"{word.removesuffix('--').rstrip('=')} needs a value, and -- is none")
    args, rest = top.parse_known_args(argv)
    for before, word in pairwise(("", *argv)):  # such as an unset shell variable
        if not word or re.fullmatch("--[a-z-]+=", word):
            args.parser.error(f"{word or before} has an empty value")
    if rest:
        args.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.argv = argv
    try:
        status = COMMANDS[args.command][0](args) or 0
        if getattr(args, "out", None):
            print(f"written: {args.out}", *getattr(args, "then", ()), sep="\n")
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # as in `oelkit status NAME | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes at its end
        return 1
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, ImportError, MemoryError) as error:
        if os.environ.get("OELKIT_DEBUG"):
            raise
        message = str(error) or "out of memory"
        if isinstance(error, OSError) and error.filename:
            message = f"{error.filename}: {error.strerror}"
        message = re.sub(r"; the \d+ good \w+ are in this error's \.records", "", message)
        message = message.replace("on_bad='skip'", "--bad skip")  # the flag for it
        print("error:", visible(" ".join(message.split())), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

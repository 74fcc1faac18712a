"""The command line: its commands, each with an example, and its exit statuses.

An error becomes one line on stderr and exit status 1. Other statuses: 2 for wrong usage, 3 from
`status` for a run that is stale or unfinished, 130 for Ctrl+C except in `curate` and `view`, which
it ends. The commands themselves are in `commands`."""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from itertools import pairwise
from typing import Any, NoReturn

from . import __version__, commands
from .config import DistillConfig, EvalConfig, ExtractConfig, ModelConfig
from .flags import FIELDS, STEPS, add_own, add_setting
from .given import did_you_mean
from .runs.settings import SCALES, Settings

# PEFT imports bitsandbytes, which calls torch.compile on import. That loads the compiler and takes
# one of the six seconds of every start. oelkit compiles nothing.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

EPILOG = """\
Run oelkit COMMAND --help for details and an example. To start, in a minute:
  oelkit demo

An error is one line, with exit status 1. Set OELKIT_DEBUG=1 to see where it came from."""
FILES = (
    "An experience FILE is plain text, the experience.md of a run (one text per draw) or an\n"
    "items.jsonl, with the decisions of the curation.jsonl beside it if there is one."
)
LOOP = (ModelConfig, ExtractConfig, DistillConfig, EvalConfig, Settings)
COMMANDS = {  # what each does, an example, and the settings it takes
    "demo": ("let the embedded model learn while you watch, in a minute", "demo", ()),
    "doctor": ("show what this machine has, which models fit and what is missing", "doctor", ()),
    "init": ("create a world, a prompt set and a script of your own", "init my_world", ()),
    "curate": ("open the editor of experience items in the browser", "curate first", ()),
    "view": ("open the viewer of games and conversations in the browser", "view chats.jsonl", ()),
    "notebooks": (
        "execute notebooks on one run, two at a time where possible; stop at the first error",
        "notebooks 01_rollout --run look -p seed=1",
        (),
    ),
    "loop": (
        "run all steps in rounds, with a table and a report at the end",
        "loop --run two --scale small --model Qwen/Qwen2.5-1.5B-Instruct\n"
        "  oelkit loop --run two --resume --rounds 3",
        LOOP,
    ),
    "estimate": (
        "estimate what a run needs (memory, tokens, minutes per stage, cost) from a small trial",
        "estimate --scale small --model Qwen/Qwen2.5-1.5B-Instruct --price-per-hour 0.80",
        LOOP,
    ),
    "status": ("show which stages of a run are done, missing or stale, and why", "status two", ()),
    "promote": ("make the round after K start from round K", "promote two 1", ()),
    "rollback": ("make the round after K start where round K started", "rollback two 1", ()),
    "report": ("rewrite the report.html of a run and print its table", "report two", ()),
    "compare": (
        "compare finished runs side by side: a table, and a figure with --out",
        "compare one two --out compared.png",
        (),
    ),
    "export": (
        "export a run's model for other programs, and check it by playing again in that form",
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
        "write down what trajectories teach, as experience items",
        "extract --trajectories games.jsonl --num-draws 4 --out items.jsonl",
        (ModelConfig, ExtractConfig, "seed max_new_tokens"),
    ),
    "distill": (
        "train an adapter that no longer needs the experience; no environment, no reward",
        "distill --trajectories games.jsonl --experience items.jsonl --out adapter",
        (ModelConfig, DistillConfig, "seed"),
    ),
    "evaluate": (
        "measure the pass rate on held-out maps",
        "evaluate --adapter adapter --eval-maps 128",
        (ModelConfig, EvalConfig, "env seed max_new_tokens"),
    ),
    "ifeval": (
        "measure how well the model follows instructions: IF-Eval, with its official checkers",
        "ifeval --model MODEL --adapter adapter --limit 100",
        (ModelConfig, "seed"),
    ),
}


class Parser(argparse.ArgumentParser):
    """A parser that suggests a similar choice; `main` does the same for flags."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and one sentence, then exit with status 2."""
        if wrong := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            message += did_you_mean(wrong[1], re.findall(r"[\w-]+", wrong[2]))
        super().error(message)


def parser() -> argparse.ArgumentParser:
    """Return the parser; the flags of `loop` and of its steps are the fields of `Settings`."""
    how: Any = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    about = "Online Experiential Learning in rounds."
    top = Parser("oelkit", description=about, epilog=EPILOG, **how)
    top.add_argument("--version", action="version", version=f"oelkit {__version__}")
    choices = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, example, settings) in COMMANDS.items():
        end = f"example:\n  oelkit {example}"
        end += f"\n\n{FILES}" if name in STEPS[:-1] else ""
        one = choices.add_parser(name, help=text, description=f"{name}: {text}.", epilog=end, **how)
        one.usage = "oelkit loop [options]" if name == "loop" else None  # too many
        one.set_defaults(parser=one)
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
    return f"warning: {' '.join(text.split())}\n"


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status."""
    if argv is None:  # run as a program
        argv = sys.argv[1:]
        warnings.formatwarning = _one_line
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
        flags = re.findall(r"--[a-z][a-z-]+", args.parser.format_help())
        word = rest[0].split("=")[0]
        cut = next((flag for flag in flags if word[:2] == "--" and flag.startswith(word)), "")
        meant = f" (did you mean {cut}?)" if cut else did_you_mean(word, flags)
        args.parser.error(f"unrecognized arguments: {' '.join(rest)}{meant}")
    args.argv = argv
    try:
        # `import` is a Python keyword
        command = args.command if args.command != "import" else "import_chats"
        status = getattr(commands, command)(args) or 0
        if getattr(args, "out", None):
            print(f"written: {args.out}", *getattr(args, "then", ()), sep="\n")
        return status
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
        print("error:", " ".join(message.split()), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

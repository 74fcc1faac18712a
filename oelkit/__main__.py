"""The command line: notebooks, the loop, its steps on files, and the report. It parses, calls the
library and prints.

What the library refuses becomes one line on stderr and exit status 1 (2: usage, 130: Ctrl-C).
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path

from . import notebooks

EPILOG = """\
examples:
  python -m oelkit loop --run first                      the whole loop on the embedded model, some minutes on a CPU
  python -m oelkit loop --run first --resume             go on after Ctrl-C; with a higher --rounds: add rounds
  python -m oelkit loop --run two --scale small --model Qwen/Qwen2.5-1.5B-Instruct        a real model, one GPU
  python -m oelkit notebooks 01_rollout --run look       execute a notebook; its copy lands in runs/look/notebooks
  python -m oelkit play --seeds 0:32 --out games.jsonl   a step alone, files in and files out; then
  python -m oelkit extract --trajectories games.jsonl --out items.jsonl
  python -m oelkit distill --trajectories games.jsonl --experience items.jsonl --out adapter
  python -m oelkit evaluate --adapter adapter --eval-maps 128
  python -m oelkit ifeval --model MODEL --adapter adapter --limit 100

An experience FILE is plain text, an experience.md of a run (a text a draw) or an items.jsonl, of which the decisions in
a curation.jsonl beside it hold. A mistake ends with one line; OELKIT_DEBUG=1 shows where it came from."""
STEPS = {  # what each does, and the fields of Settings that it takes
    "play": (
        "play games and write their trajectories",
        "model dtype env seed temperature prompt_set max_new_tokens",
    ),
    "extract": (
        "write down what trajectories teach",
        "model dtype seed temperature num_draws budget_tokens prompt_set max_new_tokens",
    ),
    "distill": (
        "train an adapter that needs the experience no more; no environment, no reward",
        "model dtype seed temperature steps batch_size lr loss top_k retention prompt_set max_new_tokens",
    ),
    "evaluate": (
        "measure the pass rate on held-out maps",
        "model dtype env seed eval_maps prompt_set max_new_tokens",
    ),
    "ifeval": (
        "measure what else the model still follows: IF-Eval, judged by the official checkers",
        "model dtype seed",
    ),
}


def _seeds(text: str) -> range:
    if not re.fullmatch(r"\d{1,9}:\d{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no range of map seeds such as 0:32")
    return range(*map(int, text.split(":")))


def parser(scale: str | None = None) -> argparse.ArgumentParser:
    """All commands; the flags of the loop, and those that steps share with it, are the fields of
    `Settings`.

    scale: one of `settings.SCALES`, whose settings are the defaults.
    """
    here, classes, scales = Path(__file__).parent, {}, {}
    for path in (here / "config.py", here / "runs/settings.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name != "Sampling":
                classes[node.name] = node.body
            elif isinstance(node, ast.AnnAssign) and node.target.id == "SCALES":
                scales = ast.literal_eval(node.value)
    fields = {
        a.target.id: (a, text)
        for body in classes.values()
        for a, text in zip(body, body[1:])
        if isinstance(a, ast.AnnAssign)
    }
    options = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": EPILOG}
    top = argparse.ArgumentParser(
        "python -m oelkit", description="Online Experiential Learning in rounds.", **options
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, names: str = "") -> argparse.ArgumentParser:
        new = commands.add_parser(name, help=text, description=f"{name}: {text}.", **options)
        for field in names.split():
            (assigned, doc), flag = fields[field], f"--{field.replace('_', '-')}"
            kind = ast.unparse(assigned.annotation).split(" |")[0]
            default = scales[scale or "tiny"].get(field, ast.literal_eval(assigned.value))
            text = doc.value.value.replace("%", "%%") + (
                "" if default is None else " (default: %(default)s)"
            )
            how = {
                "type": {"str": str, "int": int, "float": float}.get(kind),
                "metavar": kind.upper(),
            }
            how = {"action": argparse.BooleanOptionalAction} if kind == "bool" else how
            new.add_argument(flag, default=default, help=text, **how)
        return new

    notebooks.add_arguments(
        command("notebooks", "execute notebooks in order on one run; the first error stops")
    )
    loop = command(
        "loop", "all steps in rounds, with a table and a report at the end", " ".join(fields)
    )
    loop.add_argument(
        "--scale",
        choices=scales,
        help="other defaults: tiny for the embedded model, small for one of "
        "0.5-2 B parameters, paper for the paper's settings (default: tiny)",
    )
    loop.add_argument("--resume", action="store_true", help="go on with a run of the same settings")
    loop.add_argument("--redo", action="store_true", help="do again what is out of date, no more")
    loop.set_defaults(fields=list(fields))
    for one in (
        loop,
        command("report", "write report.html of a finished run again and print its table"),
    ):
        one.add_argument(
            "--run", default="demo", metavar="NAME", help="run folder runs/NAME (default: demo)"
        )
    step = {name: command(name, *about) for name, about in STEPS.items()}
    for name, one in step.items():
        one.add_argument("--adapter", metavar="FOLDER", help="LoRA adapter to start from")
        one.add_argument(
            "--out",
            required=name not in ("evaluate", "ifeval"),
            metavar="PATH",
            help="file or folder that is written",
        )
        one.add_argument("--force", action="store_true", help="write over what is there")
        if name != "ifeval":
            one.add_argument(
                "--previous" if name == "extract" else "--experience",
                dest="experience",
                metavar="FILE",
                required=name == "distill",
                help="what the model reads (default: nothing)",
            )
    one = step["ifeval"]
    one.set_defaults(experience=None)
    one.add_argument(
        "questions",
        nargs="?",
        default="google/IFEval",
        metavar="FILE",
        help="a .jsonl of prompts, or a data set on the hub (default: %(default)s)",
    )
    one.add_argument("--limit", type=int, metavar="N", help="ask only the first N prompts")
    one.add_argument(
        "--max-new-tokens",
        type=int,
        default=1280,
        metavar="N",
        help="of a reply (default: %(default)s)",
    )
    one.add_argument(
        "--replies", metavar="FILE", help="a .jsonl that is written: each reply with its verdicts"
    )
    step["play"].add_argument(
        "--seeds", type=_seeds, default=range(32), metavar="A:B", help="maps (default: 0:32)"
    )
    step["extract"].add_argument(
        "--trajectories", required=True, metavar="FILE", help="a trajectories.jsonl"
    )
    source = step["distill"].add_mutually_exclusive_group(required=True)
    source.add_argument("--states", metavar="FILE", help="a states.jsonl: the prompts to train on")
    source.add_argument(
        "--trajectories", metavar="FILE", help="a trajectories.jsonl: the prompts of its turns"
    )
    return top


def _texts(path: str | None) -> list[str]:
    """The experience texts in a file, one a draw; [""] where there is none."""
    from .curation import items_for_draw, replay
    from .records import ExperienceItem, read_jsonl
    from .text import experience_text

    if path and path.endswith(".jsonl"):
        items, log = read_jsonl(path, ExperienceItem), Path(path).with_name("curation.jsonl")
        items = replay(items, log).kept() if log.exists() else items
        draws = sorted({i.draw for i in items if i.model}) or [
            0
        ]  # what a person added is for every draw
        texts = [experience_text(items_for_draw(items, draw)) for draw in draws]
    else:
        text = Path(path).read_text(encoding="utf-8") if path else ""
        texts = [
            part.strip() for part in re.split(r"^## Draw \d+$", text, flags=re.M) if part.strip()
        ]
    return texts or [""]


def _loop(args: argparse.Namespace) -> None:
    from .runs.run import run_folder, run_loop
    from .runs.settings import Settings
    from .views.findings import findings
    from .views.report import write_report
    from .views.summary import summary

    folder = run_folder(args.run, notebooks.find_root() / "runs")
    if args.command == "loop":
        if (folder / "run.json").exists() and not (args.resume or args.redo):
            raise ValueError(
                f"{folder} holds a run already: go on with --resume, or choose another --run NAME"
            )
        settings = Settings(**{name: getattr(args, name) for name in args.fields})
        run_loop(folder, settings, progress=sys.stderr.isatty(), redo=args.redo)
    report = write_report(folder)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    print(summary(metrics), *findings(metrics), f"report: {report}", sep="\n")


def _step(args: argparse.Namespace) -> None:
    from . import distill, envs, evaluate, extract, ifeval, load_policy, rollout, states
    from .records import State, Trajectory, read_jsonl, write_jsonl
    from .runs.run import HELD_OUT, versions
    from .stats import episodes_needed

    out, what = args.out and Path(args.out), args.command
    for path in filter(None, (out, getattr(args, "replies", None))):
        if Path(path).exists() and not args.force:
            raise ValueError(f"{path} is there already: choose another file, or give --force")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    # what can be wrong with the input is an error before the model is loaded
    games = read_jsonl(args.trajectories, Trajectory) if getattr(args, "trajectories", None) else []
    found = (
        (read_jsonl(args.states, State) if args.states else states(games))
        if what == "distill"
        else []
    )
    texts, options = _texts(args.experience), {"progress": sys.stderr.isatty()}
    if "env" in args:
        envs.make(args.env)  # this also imports the module of a "module:id"
    policy = load_policy(args.model, dtype=args.dtype, adapter=args.adapter)
    options |= {
        k: getattr(args, k)
        for k in STEPS[what][1].split()
        if k not in ("model", "dtype", "env", "eval_maps")
    }
    if what == "play":
        told = [texts[i % len(texts)] for i in range(len(args.seeds))]
        write_jsonl(out, rollout(policy, args.env, args.seeds, told, **options))
    elif what == "extract":
        write_jsonl(
            out,
            extract(
                policy, games, [texts[d % len(texts)] for d in range(args.num_draws)], **options
            ),
        )
    elif what == "distill":
        rows = distill(policy, found, texts, **options)
        policy.save_adapter(out)
        print(
            *(f"loss {row['loss']:.4f} at step {row['step']}" for row in (rows[:1] + rows[-1:])),
            sep="\n",
        )
    elif what == "ifeval":
        started, asked = (
            time.time(),
            {"limit": args.limit, "max_new_tokens": args.max_new_tokens, "seed": args.seed},
        )
        report = ifeval(policy, args.questions, **asked, progress=options["progress"])
        row = report.summary()
        for how in ("strict", "loose"):
            rate, low, high = (row[f"prompt_{how}{end}"] for end in ("", "_low", "_high"))
            print(
                f"{how}: {rate:.1%} [{low:.1%}, {high:.1%}] of {row['n']} prompts, "
                f"{row[f'instruction_{how}']:.1%} of {row['instructions']} instructions"
            )
        if args.replies:
            write_jsonl(args.replies, report.replies)
        row = {"prompts": args.questions, **asked, "seconds": round(time.time() - started), **row}
        row |= {
            "command": shlex.join(["python", "-m", "oelkit", *args.argv]),
            "date": time.strftime("%Y-%m-%d"),
            "versions": {**versions(), "lm_eval": version("lm_eval")},
        }
    else:
        env = envs.held_out(args.env)  # as the loop evaluates
        seeds, drawn = range(HELD_OUT, HELD_OUT + args.eval_maps), options.pop("seed")
        row = evaluate(policy, env, seeds, texts, sampling_seeds=(drawn,), **options).summary()
        print(
            f"pass rate {row['pass_rate']:.1%} [{row['low']:.1%}, {row['high']:.1%}] on {row['maps']} maps of {env}",
            f"to show a difference of 10 points: {episodes_needed(row['pass_rate'])} episodes an arm",
            sep="\n",
        )
        row = {"env": env, "experience": args.experience, **row}
    if out and what in ("evaluate", "ifeval"):
        row = {"model": args.model, "adapter": args.adapter, **row}
        out.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    if out:
        print(f"written: {out}")


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    args = parser().parse_args(argv)
    if getattr(args, "scale", None):
        args = parser(args.scale).parse_args(argv)
    args.argv = sys.argv[1:] if argv is None else argv
    try:
        if args.command == "notebooks":
            return notebooks.main(args)
        if not sys.stderr.isatty():  # a log shall not be full of bars
            from transformers.utils import logging

            logging.disable_progress_bar()
        (_loop if args.command in ("loop", "report") else _step)(args)
    except KeyboardInterrupt as stopped:
        print(str(stopped) or "interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("OELKIT_DEBUG"):
            raise
        named = isinstance(error, OSError) and error.filename
        message = f"{error.filename}: {error.strerror}" if named else str(error)
        print("error:", " ".join(message.split()), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

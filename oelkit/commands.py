"""What the commands of the command line do, each with the arguments that `__main__` has parsed.

They call the library and print; a library is imported where a command needs it."""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from argparse import Namespace
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .runs.settings import SCALES, Settings, find_root, run_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from .model.policy import Policy
    from .runs.stages import Stages


def settings_of(args: Namespace, settings: Settings | None = None) -> Settings:
    """The settings that the command line names, over those of a run or the scale's."""
    given = {n: v for n, v in vars(args).items() if n in Settings.__dataclass_fields__}
    if settings is None:
        return Settings.of(args.scale or "tiny", **given)
    return replace(settings, **(SCALES[args.scale] if args.scale else {}) | given)


# -- runs


def notebooks(args: Namespace) -> None:
    """Execute notebooks."""
    from .notebooks import NotebookError, run_notebooks

    parameters: dict[str, str] = {}
    for pair in args.parameter:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip().isidentifier():
            raise NotebookError(f"-p takes name=value, not {pair!r}")
        if parameters.setdefault(name.strip(), value) != value:
            raise NotebookError(f"-p {name.strip()} is given twice with different values")
    run_notebooks(args.names, parameters, args.run, args.timeout)


def loop(args: Namespace) -> None:
    """Start a run, or go on with one."""
    folder = run_folder(args.run, find_root() / "runs")
    there, goes_on = (folder / "run.json").exists(), args.resume or args.redo
    if there and not goes_on:
        raise ValueError(
            f"{folder} holds a run already: go on with --resume, or choose another --run NAME"
        )
    if goes_on and not there:
        raise ValueError(f"{folder} holds no run to go on with: leave out --resume and --redo")
    settings = _resumed(folder, args) if there else settings_of(args)
    try:
        from .model.loading import hide_progress_bars
        from .runs.run import run_loop

        hide_progress_bars(but_on=sys.stderr)
        run_loop(folder, settings, progress=sys.stderr.isatty(), redo=args.redo)
    except KeyboardInterrupt as stop:
        resume = f"go on with `python -m oelkit loop --run {args.run} --resume`"
        raise KeyboardInterrupt(str(stop) or f"interrupted; {resume}") from None
    report(args)


def _resumed(folder: Path, args: Namespace) -> Settings:
    """The settings of a run with those that may be added; ValueError where another flag differs."""
    from .runs.stages import read_run

    theirs = Settings(**read_run(folder)["settings"])
    ours = settings_of(args, theirs)
    for name in Settings.__dataclass_fields__:
        was, now = getattr(theirs, name), getattr(ours, name)
        added = name == "gate" or (name in ("rounds", "run_ablations") and now > was)
        if was != now and not added:
            raise ValueError(
                f"{folder} is a run with other settings: --{name.replace('_', '-')} was {was}, is "
                f"{now}; leave it out, or choose another --run NAME"
            )
    return ours


def report(args: Namespace) -> None:
    """Write the report of a run and print its table."""
    from .views.findings import findings
    from .views.report import write_report
    from .views.summary import summary

    folder = run_folder(args.run, find_root() / "runs")
    path = write_report(folder)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    print(summary(metrics), *findings(metrics), f"report: {path}", sep="\n")


def _folder(args: Namespace) -> Path:
    """The folder of RUN: a name in runs/, or a path (with a slash)."""
    path = Path(args.run)
    folder = run_folder(args.run, find_root() / "runs") if path.name == args.run else path
    if not (folder / "run.json").exists():
        raise ValueError(f"{folder} holds no run")
    return folder


def status(args: Namespace) -> int:
    """Print how each stage of a run stands; 0 where all is done, else 3."""
    from .runs.stages import status

    rows = status(_folder(args))
    for row in rows:
        place = f"round {row.round}" if row.round else "run"
        print(f"{place:<9} {row.stage:<10} {row.state:<8} {row.why}".rstrip())
    return 0 if all(row.state == "done" for row in rows) else 3


def promote(args: Namespace) -> None:
    """Let the round after K start from round K."""
    _decide(args, lambda stages: args.round)


def rollback(args: Namespace) -> None:
    """Let the round after K start where round K started."""
    _decide(args, lambda stages: stages.start(args.round))


def _decide(args: Namespace, start: Callable[[Stages], int]) -> None:
    from .runs.files import locked
    from .runs.stages import stages_of

    stages = stages_of(folder := _folder(args))
    with locked(folder):
        stages.decide(args.round, first := start(stages))
    weights = f"round {first}" if first else "the untrained model"
    print(f"round {args.round + 1} starts from {weights}")
    print(f"what that makes stale: python -m oelkit status {args.run}")


def import_chats(args: Namespace) -> None:
    """Read chat logs into round 1 of a run."""
    from .logs import read_chats
    from .records import write_jsonl
    from .redaction import redact
    from .steps.rollouts import states

    folder = run_folder(args.run, find_root() / "runs") / "round_1"
    paths = [folder / f"{name}.jsonl" for name in ("trajectories", "states")]
    if paths[0].exists() and not args.force:
        raise ValueError(f"{paths[0]} is there already: choose another --run, or give --force")
    how = {"format": args.format, "on_bad": args.bad}
    chats = read_chats(args.file, **how, redact=None if args.no_redact else redact)
    for path, records in zip(paths, (chats, states(chats))):
        write_jsonl(path, records)
    print(chats, *(f"written: {path}" for path in paths), sep="\n")
    print(f"go on with: python -m oelkit extract --trajectories {paths[0]} --prompt-set rules")


# -- steps on files


def play(args: Namespace) -> None:
    """Play games."""
    from .records import write_jsonl
    from .steps.rollouts import rollout

    s, texts = _start(args)
    texts = [texts[i % len(texts)] for i in range(len(args.seeds))]
    policy, options = _load(args, s)
    games = rollout(policy, s.env, args.seeds, texts, s.play_sampling, **options)
    write_jsonl(args.out, games)


def extract(args: Namespace) -> None:
    """Write items about games."""
    from .records import Trajectory, read_jsonl, write_jsonl
    from .steps.extraction import extract

    s, texts = _start(args)
    texts = [texts[draw % len(texts)] for draw in range(s.num_draws)]
    games = read_jsonl(args.trajectories, Trajectory)
    policy, options = _load(args, s)
    options |= {"num_draws": s.num_draws, "budget_tokens": s.budget_tokens, "strict": s.strict}
    options |= {"show_previous": s.show_previous}
    write_jsonl(args.out, extract(policy, games, texts, s.extract_sampling, **options))


def distill(args: Namespace) -> None:
    """Train an adapter."""
    from .config import DistillConfig, part
    from .records import State, Trajectory, read_jsonl
    from .steps.distillation import distill
    from .steps.rollouts import states

    s, texts = _start(args)
    if args.states:
        prompts = read_jsonl(args.states, State)
    else:
        prompts = states(read_jsonl(args.trajectories, Trajectory))
    policy, options = _load(args, s)
    rows = distill(policy, prompts, texts, part(DistillConfig, s), **options)
    policy.save_adapter(args.out)
    for row in rows[:1] + rows[-1:]:
        print(f"loss {row['loss']:.4f} at step {row['step']}")


def evaluate(args: Namespace) -> None:
    """Measure the pass rate on held-out maps."""
    from . import envs
    from .runs.run import HELD_OUT
    from .stats import episodes_needed
    from .steps.evaluation import evaluate

    s, texts = _start(args)
    env = envs.held_out(s.env)  # as the loop evaluates
    policy, options = _load(args, s)
    first = options.pop("seed") * s.samples_per_map
    options |= {"sampling_seeds": range(first, first + s.samples_per_map)}
    maps = range(HELD_OUT, HELD_OUT + s.eval_maps)
    row = evaluate(policy, env, maps, texts, s.eval_sampling, **options).summary()
    rate = f"pass rate {row['pass_rate']:.1%} [{row['low']:.1%}, {row['high']:.1%}]"
    print(f"{rate} on {row['maps']} maps of {env}")
    needed = episodes_needed(row["pass_rate"])
    print(f"to show a difference of 10 points: {needed} episodes per arm")
    _write(args, {"env": env, "experience": args.experience, **row})


def ifeval(args: Namespace) -> None:
    """Ask IF-Eval's prompts."""
    from .records import write_jsonl
    from .runs.driver import versions
    from .steps.ifeval import ifeval

    s, _ = _start(args)
    policy, options = _load(args, s)
    began, asked = time.time(), {"limit": args.limit, "max_new_tokens": args.max_new_tokens}
    asked["seed"] = s.seed
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
    row = {"prompts": args.questions, **asked, "seconds": round(time.time() - began), **row}
    row |= {
        "command": shlex.join(["python", "-m", "oelkit", *args.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {**versions(), "lm_eval": version("lm_eval")},
    }
    _write(args, row)


def _start(args: Namespace) -> tuple[Settings, list[str]]:
    """The settings and the experience texts of a step, once it is sure that it may write."""
    from . import envs

    for path in filter(None, (args.out, getattr(args, "replies", None))):
        if Path(path).exists() and not args.force:
            raise ValueError(f"{path} is there already: choose another file, or give --force")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    settings = settings_of(args)
    envs.make(settings.env)  # this also imports the module of a "module:id"
    return settings, experience_texts(getattr(args, "experience", None))


def _load(args: Namespace, settings: Settings) -> tuple[Policy, dict[str, Any]]:
    """The policy, and the options that all steps take; last, as it takes long."""
    from .model.loading import hide_progress_bars, policy_from_config

    hide_progress_bars(but_on=sys.stderr)
    options = {"prompt_set": settings.prompt_set, "seed": settings.seed}
    options["progress"] = sys.stderr.isatty()
    return policy_from_config(settings, adapter=args.adapter), options


def _write(args: Namespace, row: dict[str, Any]) -> None:
    if args.out:
        row = {"model": args.model, "adapter": args.adapter, **row}
        Path(args.out).write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


def experience_texts(path: str | None) -> list[str]:
    """The experience texts in a file, one per draw; [""] where there is none.

    Of an items.jsonl the decisions in a curation.jsonl beside it hold; text files may have a
    heading per draw, as an experience.md has."""
    from .curation import items_for_draw, replay
    from .records import ExperienceItem, read_jsonl
    from .text import experience_text

    if path and path.endswith(".jsonl"):
        items, log = read_jsonl(path, ExperienceItem), Path(path).with_name("curation.jsonl")
        items = replay(items, log).kept() if log.exists() else items
        draws = sorted({item.draw for item in items if item.model})  # a person's are for every draw
        texts = [experience_text(items_for_draw(items, draw)) for draw in draws or [0]]
    else:
        text = Path(path).read_text(encoding="utf-8") if path else ""
        parts = re.split(r"^## Draw \d+$", text, flags=re.M)
        texts = [part.strip() for part in parts if part.strip()]
    return texts or [""]

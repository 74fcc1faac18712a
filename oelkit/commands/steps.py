"""Commands that do one step on files; each gets the arguments that `__main__` has parsed."""

from __future__ import annotations

import os
import shlex
import time
import warnings
from argparse import Namespace
from collections import Counter
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import DistillConfig, part
from ..curation import Curation, replay
from ..prompts import PromptSet, load_prompt_set
from ..records import (
    ExperienceItem,
    RecordError,
    State,
    Trajectory,
    append_jsonl,
    read_jsonl,
    write_jsonl,
    write_text,
)
from ..rows import training_rows, write_rows
from ..runs import files
from ..runs.saved import SavedRun
from ..runs.settings import Settings
from ..runs.stages import stages_of
from ..statements import items_for_draw
from ..tables import visible
from ..text import counted, experience_text
from .runs import folder_of, settings_of

if TYPE_CHECKING:
    from ..model.policy import Policy


def play(args: Namespace) -> None:
    """Play games and write their trajectories."""
    from ..steps.rollouts import rollout

    s, texts = _start(args)
    texts = [texts[i % len(texts)] for i in range(len(args.seeds))]
    policy, options = _load(args, s)
    games = rollout(policy, s.env, args.seeds, texts, s.play_sampling, **options)
    write_jsonl(args.out, games)


def extract(args: Namespace) -> None:
    """Write down what trajectories teach, as experience items."""
    from ..steps.extraction import extract

    s, texts = _start(args)
    texts = [texts[draw % len(texts)] for draw in range(s.num_draws)]
    games = read_jsonl(args.trajectories, Trajectory)
    policy, options = _load(args, s)
    options |= {"num_draws": s.num_draws, "budget_tokens": s.budget_tokens, "strict": s.strict}
    options |= {"show_previous": s.show_previous, "on_step": (counts := Counter()).update}
    started = files.sha256(Path(args.adapter, "adapter_model.safetensors")) if args.adapter else ""
    with files.continued(args.out, "replies") as path:
        player: Any = _Resumed(policy, path, [asdict(s), started])
        items = extract(player, games, texts, s.extract_sampling, **options)
        write_jsonl(args.out, items)
    if not items:
        read, new, few = counts["replies"], counts["nothing_new"], counted(len(games), "game")
        said = f"{new} of {read} replies say that there is nothing new, the others lack the form"
        warnings.warn(f"{policy.name} wrote no item about {few}: {said}", stacklevel=2)
        args.then = [f"next: oelkit view {shlex.quote(args.trajectories)}"]
        args.then += ["then try another --prompt-set, or a larger --model"]
        return
    said = Curation(items).statements()
    for one in said[:8]:
        text = visible(one.text)[:100]
        print(f"  {text}  (written by {len(one.draws)} of {s.num_draws} draws)")
    args.then = [f"next: oelkit curate {shlex.quote(args.out)}"]


class _Resumed:
    """A policy that keeps its replies in a file, and gives those that are there."""

    def __init__(self, policy: Policy, path: Path, about: Any):
        self._policy, self._path, self._about = policy, path, about
        try:
            rows = read_jsonl(path) if path.exists() else []
        except RecordError as error:  # killed while it wrote the last line
            rows = error.records
        self._known = {row["asked"]: row["replies"] for row in rows}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def generate(self, prompts: Any, sampling: Any, seed: int) -> list[Any]:
        """Sample the replies of one call, unless the file has them."""
        from ..model.sampling import Reply, generate

        asked = sha256(repr((self._about, prompts, sampling, seed)).encode()).hexdigest()
        if asked in self._known:
            return [Reply(*kept) for kept in self._known[asked]]
        replies = generate(self._policy, prompts, sampling, seed=seed)
        kept = [[reply.ids, reply.text, reply.truncated] for reply in replies]
        append_jsonl(self._path, {"asked": asked, "replies": kept})
        return replies


def distill(args: Namespace) -> None:
    """Train an adapter that no longer needs the experience; no environment, no reward."""
    from ..model import ranks
    from ..runs.work import as_draws, read_rehearsal
    from ..steps.distillation import distill
    from ..steps.rollouts import states
    from ..steps.training import warn_of_chats

    s, texts = _start(args)
    if args.states is not None:
        prompts = read_jsonl(args.states, State)
    else:
        prompts = states(read_jsonl(args.trajectories, Trajectory))
    policy, options = _load(args, s)
    options["rehearsal"] = read_rehearsal(s, policy)
    warn_of_chats(policy, [state.prompt for state in prompts])
    if first := ranks.rank() == 0:
        print(_told(args.experience, texts, policy), flush=True)
    options["progress"], read = first, as_draws(texts)
    with files.continued(args.out, "checkpoint") as path:
        config = part(DistillConfig, s)
        rows = distill(policy, prompts, texts, config, checkpoint=path, **options)
        if first:  # only the first process writes and prints
            policy.save_adapter(args.out)
            write_text(Path(args.out, "experience.md"), read)
    if not first:
        args.out = None
        return
    for row in rows[:1] + rows[-1:]:
        print(f"loss {row['loss']:.4f} at step {row['step']}")
    model, out = shlex.quote(s.model), shlex.quote(args.out)
    world = f"oelkit evaluate --model {model} --adapter {out} (in a world)"
    args.then = [f"next, measure it: {world}, or oelkit.agreement in Python (on logs)"]
    args.then += [f"then use it: oelkit export {out} --to merged"]


def _told(path: str, texts: list[str], policy: Policy) -> str:
    """One line about the experience that training reads."""
    said, log = "", Path(path).with_name("curation.jsonl")
    if path.endswith(".jsonl"):
        items = Curation.open(path, log).items
        counts = Counter(item.status for item in items)
        states = ", ".join(f"{n} {state}" for state, n in counts.items())
        states = f"{states}; using the accepted" if log.exists() else "not curated: using all"
        said = f"{len(items)} items ({states}), "
    tokens = max(len(policy.tokenizer(text)["input_ids"]) for text in texts)
    many = "one text of" if len(texts) == 1 else f"{len(texts)} texts of at most"
    return f"experience: {said}{many} {tokens:,} tokens"


def evaluate(args: Namespace) -> None:
    """Measure the pass rate on held-out maps."""
    from .. import envs
    from ..runs.run import HELD_OUT
    from ..stats import episodes_needed
    from ..steps.evaluation import evaluate

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
    print(f"to show a difference of 10 points, you need {needed} episodes per arm")
    _write(args, s, {"env": env, "experience": args.experience, **row})


def ifeval(args: Namespace) -> None:
    """Measure how well the model follows instructions: IF-Eval, with its official checkers."""
    from ..runs.driver import versions
    from ..steps.ifeval import ifeval

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
        "command": shlex.join(["oelkit", *args.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {**versions(), "lm_eval": version("lm_eval")},
    }
    _write(args, s, row)


def _start(args: Namespace) -> tuple[Settings, list[str]]:
    """Check that the step can write its outputs; return its settings and experience texts."""
    from .. import envs

    if args.command != "distill" and os.environ.get("LOCAL_RANK", "0") != "0":
        raise ValueError(f"{args.command} runs in one process: start it without accelerate launch")
    paths = [Path(path) for path in (args.out, getattr(args, "replies", None)) if path]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"{args.out}: --out and --replies need a file each")
    for path in paths:
        if path.exists() and not args.force:
            raise ValueError(f"{path} already exists: choose another file, or use --force")
        path.parent.mkdir(parents=True, exist_ok=True)
        fits = path.is_dir() if args.command == "distill" else path.is_file()
        if not os.access(path.parent, os.W_OK) or (path.exists() and not fits):
            raise ValueError(f"{path} cannot be written: choose another path")
    settings = settings_of(args)
    envs.check(settings.env)  # also imports the module of a "module:id"
    path, needed = getattr(args, "experience", None), args.command != "extract"
    return settings, experience_texts(path, needed)


def _load(args: Namespace, settings: Settings) -> tuple[Policy, dict[str, Any]]:
    """Load the policy and return it with the options of all steps. Slow, so called last."""
    from ..model.loading import policy_from_config

    if settings.prompt_set:
        load_prompt_set(settings.prompt_set)  # or fail before the model is loaded
    options = {"prompt_set": settings.prompt_set, "seed": settings.seed, "progress": True}
    return policy_from_config(settings, adapter=args.adapter), options


def _write(args: Namespace, settings: Settings, row: dict[str, Any]) -> None:
    if args.out:
        row = {"model": settings.model, "adapter": args.adapter, **row}
        files.write_json(Path(args.out), row)


def data(args: Namespace) -> None:
    """Write trajectories, items or training sets of a run for other programs."""
    if Path(args.out).exists() and not args.force:
        raise ValueError(f"{args.out} already exists: choose another file, or use --force")
    run, rows = SavedRun(folder_of(args.run)), []
    for k in [args.round] if args.round is not None else range(1, run.settings.rounds + 1):
        if args.what == "trajectories":
            rows += run.trajectories(k)
        elif args.what == "items":
            rows += run.curation(k).kept()
        else:
            at, prompts = run.folder / f"round_{k}", PromptSet(**stages_of(run.folder).prompts)
            states = read_jsonl(at / "states.jsonl", State)
            texts = experience_texts(str(at / "experience.md"))
            rows += training_rows(states, texts, prompts, to=args.what)
    write_rows(args.out, rows)
    print(f"{len(rows):,} rows ({args.what})")


def experience_texts(path: str | None, needed: bool = True) -> list[str]:
    """Return the experience texts in a file, one per draw; [""] without a file.

    For an items.jsonl, the decisions in a curation.jsonl beside it apply. Text files can have a
    heading per draw, like an experience.md.

    Raises:
        ValueError: The file has no text, but one is needed.
    """
    if path and path.endswith(".jsonl"):
        items, log = read_jsonl(path, ExperienceItem), Path(path).with_name("curation.jsonl")
        items = replay(items, log).kept() if log.exists() else items
        draws = sorted({item.draw for item in items if item.model})  # a person's go to every draw
        texts = [experience_text(items_for_draw(items, draw)) for draw in draws or [0]]
    else:
        texts = files.read_experience(path) if path else []
    texts = [text for text in texts if text]
    if path and needed and not texts:
        raise ValueError(f"{path} contains no experience (no items, or all were rejected)")
    return texts or [""]

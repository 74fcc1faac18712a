"""Estimates what a run will need before it starts: memory, tokens, time by stage, and money.

Two small trial runs in a temporary folder do every stage with the run's own model and settings,
each in seconds. A straight line through both extrapolates to the whole run. The estimate misses
what a trial cannot show: replies that grow as the model learns, and longer experience texts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..model.memory import MemoryPlan, memory_plan
from ..model.policy import Policy
from ..records import State, Trajectory, read_jsonl
from . import gate, work
from .driver import Driver
from .settings import Settings
from .table import ARMS

SIZES, STEPS = (4, 16), 3  # games and maps of each trial; training steps of each
TRIAL_TEXT = "- EXPERIENCE ITEM: Read the situation, and choose what it allows."


@dataclass(frozen=True)
class Estimate:
    """What a run will need; print it for a table."""

    seconds: dict[str, float]
    """Per stage, summed over all rounds; "trial" is the time of the estimate itself."""
    sampled_tokens: int
    """Tokens that the model samples in games and in training."""
    memory: MemoryPlan
    """Memory of a training step with the longest experience that the settings allow."""
    price_per_hour: float | None = None

    @property
    def minutes(self) -> float:
        """Duration of the whole run, without the trial."""
        return sum(s for stage, s in self.seconds.items() if stage != "trial") / 60

    @property
    def price(self) -> float | None:
        """Cost of the run in the currency of `price_per_hour`; None without one."""
        return None if self.price_per_hour is None else self.minutes / 60 * self.price_per_hour

    def __str__(self) -> str:
        lines = [f"{stage:<12} {s / 60:>8.1f} min" for stage, s in self.seconds.items()]
        lines += [f"{'whole run':<12} {self.minutes:>8.1f} min, without the trial"]
        lines += [f"tokens       about {self.sampled_tokens:,} sampled in games and in training"]
        peak, free = (x / 2**30 for x in (self.memory.peak, self.memory.free))
        fits = "fits" if self.memory.fits else "does NOT fit"
        lines += [f"memory       {peak:.2f} GiB above the loaded model, {free:.2f} free: {fits}"]
        lines += [f"price        {self.price:.2f}"] if self.price is not None else []
        return "\n".join(lines)


def estimate(
    start: Callable[..., Driver],
    settings: Settings,
    policy: Policy,
    price_per_hour: float | None = None,
) -> Estimate:
    """Estimate what a run with these settings will need on this machine.

    Args:
        start: Makes a run from folder, settings, policy and progress.
        settings: Settings of the run.
        policy: Model of the run; left unchanged.
        price_per_hour: Price of the machine, in any currency.

    Raises:
        ValueError: No run can start with these settings.
    """
    with tempfile.TemporaryDirectory() as folder:
        trials = [_trial(start, Path(folder) / f"trial{n}", settings, policy, n) for n in SIZES]
    s, last = settings, trials[-1]

    def whole(stage: str, n: float) -> float:
        return max(0.0, _line([t.seconds[stage] for t in trials], n))

    maps, rounds = s.eval_maps * s.samples_per_map, s.rounds
    validation = gate.VALIDATION_MAPS * (s.gate != "off")
    seconds = {
        "base": whole("base", maps + validation),
        "rollout": rounds * whole("rollout", s.extract_games),
        "extract": rounds * whole("extract", s.extract_games),
        "collect": rounds * whole("collect", s.state_games),
        "distill": rounds * _training(last, s.steps),
        # two arms on the held-out maps, and one on the validation maps
        "evaluate": rounds * whole("evaluate", maps + validation / 2),
    }
    played = rounds * (s.extract_games + s.state_games + 2 * maps + validation) + maps + validation
    trainings = rounds
    if s.run_ablations:  # each arm plays once; raw games play in context as well
        one = _training(last, s.steps) + whole("evaluate", maps / 2)
        seconds["other arms"] = len(ARMS) * one + whole("evaluate", maps) / 2
        played += (len(ARMS) + 1) * maps
        trainings += len(ARMS)
    seconds["metrics"] = last.seconds["metrics"]
    seconds["trial"] = sum(sum(t.seconds.values()) for t in trials)
    trained = trainings * s.steps * s.batch_size * last.step_tokens
    trained *= 1.5 if s.rehearsal else 1
    longest = min(s.budget_tokens or policy.context_length, policy.context_length)
    memory = memory_plan(
        policy,
        longest,
        state_tokens=last.state_tokens,
        reply_tokens=last.most_reply_tokens,
        batch_size=s.batch_size,
        retention=s.retention,
        batch_tokens=s.batch_tokens,
        texts=s.num_draws,
    )
    return Estimate(seconds, int(played * last.game_tokens + trained), memory, price_per_hour)


@dataclass(frozen=True)
class _Trial:
    """Seconds per stage of one trial, and the lengths of its texts in tokens."""

    seconds: dict[str, float]
    steps: list[float]  # seconds of each training step
    game_tokens: float
    step_tokens: float  # per reply in training
    state_tokens: int
    most_reply_tokens: int


def _trial(
    start: Callable[..., Driver], folder: Path, settings: Settings, policy: Policy, n: int
) -> _Trial:
    """Do a whole run of one round with n games and n maps."""
    less: dict[str, Any] = {"extract_games": n, "state_games": n, "eval_maps": n}
    small = replace(
        settings, **less, rounds=1, samples_per_map=1, steps=STEPS, run_ablations=False, gate="off"
    )
    run, one = start(folder, small, policy, progress=False), folder / "round_1"
    run.ensure(1, "curate")
    if not any(work.read_texts(run, one / "experience.md")):  # no item from so few games
        run.write_experience(1, [TRIAL_TEXT] * small.num_draws)
    metrics = run.run_all()
    whole: Any = run.stages.manifest(0, "metrics")
    games = read_jsonl(one / "trajectories.jsonl", Trajectory)
    states = read_jsonl(one / "states.jsonl", State)
    rows = read_jsonl(folder / "metrics.jsonl")
    return _Trial(
        {**metrics["seconds"], **metrics["rounds"][0]["seconds"], "metrics": whole["seconds"]},
        [row["seconds"] for row in rows],
        sum(turn.reply_tokens for game in games for turn in game.turns) / len(games),
        sum(row["reply_tokens"] for row in rows) / len(rows),
        max(len(policy.encode(state.prompt)) for state in states),
        run.prompts.max_new_tokens,
    )


def _line(seconds: list[float], n: float) -> float:
    """Extrapolate both trials linearly, never steeper than proportional, to limit noise."""
    (small, large), (low, high) = SIZES, seconds
    slope = min(max(0.0, (high - low) / (large - small)), high / large)
    return high + slope * (n - large)


def _training(trial: _Trial, steps: int) -> float:
    """Seconds of training: the whole trial, whose first step also reads the experience, plus the
    remaining steps at the later steps' pace."""
    later = trial.steps[1:]
    return trial.seconds["distill"] + sum(later) / len(later) * (steps - len(trial.steps))

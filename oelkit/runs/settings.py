"""Settings of a run, and their scales; the name and the place of a run folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from shlex import quote
from textwrap import shorten
from typing import Any, Literal, get_type_hints

from ..config import DistillConfig, EvalConfig, ExtractConfig, ModelConfig, Sampling, option
from ..given import did_you_mean, setting


@dataclass(frozen=True)
class Settings(EvalConfig, DistillConfig, ExtractConfig, ModelConfig):
    """The loop.

    Its fields and those of its steps are flags of `oelkit loop` and lines of run.json;
    the defaults are safe for real models."""

    env: str = option("oelkit/FrozenLake4x4-v0", "world; evaluated on its Unseen layouts, if any")
    rounds: int = option(2, "rounds of the loop")
    seed: int = option(0, "of maps, sampling and batches")
    extract_games: int = option(64, "games per round to extract from")
    state_games: int = option(48, "games per round whose turns become training states")
    states_with_experience: bool = option(
        False, "play these games with the round's experience in the prompt"
    )
    carry_experience: bool = option(
        True, "start a round's experience with that of the round it starts from"
    )
    run_ablations: bool = option(
        True, "after the last round also run the arms off-policy, SFT and raw games"
    )
    gate: Literal["off", "warn", "stop", "rollback"] | None = option(
        None,
        "what follows if a round loses on validation maps or the OOD probe; none: what the run "
        "has, warn for a new one",
    )

    @classmethod
    def of(cls, scale: str, **changes: Any) -> Settings:
        """The settings of a scale ("tiny", "small" or "paper"), some of them changed; ValueError
        for another scale. With another model than the embedded one, "tiny" trains by the defaults.
        """
        if scale not in SCALES:
            raise ValueError(
                f"no scale {scale!r}{did_you_mean(scale, SCALES)}: say one of {', '.join(SCALES)}"
            )
        embedded = scale == "tiny" and changes.get("model", cls.model) == cls.model
        return cls(**SCALES[scale] | (EMBEDDED if embedded else {}) | changes)

    @property
    def play_sampling(self) -> Sampling:
        """How replies are drawn in games to learn from."""
        return Sampling(self.temperature, max_new_tokens=self.max_new_tokens)

    @property
    def extract_sampling(self) -> Sampling:
        """How experience items are drawn."""
        return Sampling(self.extract_temperature, max_new_tokens=self.max_new_tokens)

    @property
    def eval_sampling(self) -> Sampling:
        """How replies are drawn in evaluation."""
        rest = (self.eval_top_p, self.eval_top_k, self.max_new_tokens)
        return Sampling(self.eval_temperature, *rest)


# how scale `tiny` trains the embedded model; a real model would be harmed
EMBEDDED: dict[str, Any] = {"lr": 5e-4, "warmup": 0}

# What differs from the defaults, the model apart, which is named beside it. `paper` has the
# paper's settings but for the departures that the README lists: lr is for a LoRA adapter, and
# `state_games` is ours, for the 1,280 states of a round. `small` learns at T 1, at a rate and for
# as many steps as a real model needed (examples/waiter/README.md), from so many games that hardly
# a state comes twice.
SCALES: dict[str, dict[str, Any]] = {
    "tiny": {
        "env": "oelkit/Descent3-v0",
        "rounds": 4,
        "extract_games": 24,
        "num_draws": 4,
        "states_with_experience": True,
        "steps": 20,
        "run_ablations": False,
    },
    "small": {
        "env": "oelkit/FrozenLake3x3-v0",
        "extract_games": 24,
        "state_games": 192,
        "num_draws": 4,
        "budget_tokens": 2048,
        "steps": 48,
        "batch_size": 16,
        "lr": 2e-4,
    },
    "paper": {
        "env": "oelkit/FrozenLake-v0",
        "rounds": 3,
        "extract_games": 15,
        "budget_tokens": 2048,
        "state_games": 400,
        "batch_size": 64,
        "lr": 1e-4,
        "temperature": 0.7,
        "top_k": 256,
        "retention": 0.0,
        "carry_experience": False,
        "samples_per_map": 10,
    },
}


RANGES = {  # wider ones would let map seeds of rounds and runs meet
    "seed": (0, 899),
    "rounds": (1, 999),
    "extract_games": (1, 5_000),
    "state_games": (1, 5_000),
    "num_draws": (1, 1_000),
    "eval_maps": (1, 1_000_000),
    "samples_per_map": (1, 1_000),
    "lora_rank": (1, 1_024),
    # what is wrong here would be known only after hours of games
    "steps": (1, 1_000_000),
    "batch_size": (1, 100_000),
    "warmup": (0, 1_000_000),
    "lr": (1e-12, 100.0),
    "weight_decay": (0.0, 1e12),
    "budget_tokens": (0, 10_000_000),
    "temperature": (1e-3, 100.0),
    "retention": (0.0, 1.0),
    "max_new_tokens": (1, 1_000_000),
    "batch_tokens": (1, 1_000_000_000),
    "top_k": (0, 10_000_000),
    "clip": (1e-12, 1e12),
    "extract_temperature": (0.0, 100.0),
    "eval_temperature": (0.0, 100.0),
    "eval_top_p": (1e-12, 1.0),
    "eval_top_k": (0, 10_000_000),
}


def check_ranges(settings: dict[str, Any]) -> None:
    """ValueError for a number that is out of range, or a date that is none."""
    for name, value in settings.items():
        if value is not None and (said := wrong(name, value)):
            raise ValueError(f"{name} is {value}: {said}")


def wrong(name: str, value: Any) -> str:
    """What a setting must be that it is not; "" where nothing is wrong."""
    if name == "date":
        try:
            date.fromisoformat(value)
        except ValueError:
            return f"must be a day such as {ModelConfig.date}"
    return outside(value, *RANGES[name]) if name in RANGES else ""


def outside(value: float, low: float, high: float) -> str:
    """`wrong` of a number between these two."""
    return "" if low <= value <= high else f"must be {low} to {high}"  # NaN is nowhere between


def check_settings(settings: dict[str, Any]) -> None:
    """ValueError for settings from a file that are unknown, or of another kind or range."""
    hints = get_type_hints(Settings)
    for name, value in settings.items():
        if name not in hints:
            raise ValueError(f"there is no setting {name!r}")
        try:
            setting(name, value, hints[name])
        except TypeError as error:
            raise ValueError(str(error)) from None
    check_ranges(settings)


def run_folder(name: str, root: str | Path = "runs") -> Path:
    """The folder of a run by its name; ValueError for a name that is none (a slash in it, say)."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            f"run name {name!r}: use the letters A to Z, digits, '_', and behind the first of them "
            "also '.' and '-'"
        )
    return Path(root) / name


def no_run(folder: Path) -> str:
    """The sentence that a folder holds no run: the run beside it that was meant, or some of them,
    or what to do with the logs that were imported into it.
    """
    logs = folder / "round_1"
    if (logs / "trajectories.jsonl").exists() and not (logs / "manifests").exists():
        return f"{folder} holds imported logs, no loop yet; go on with: {extract_logs(logs)}"
    beside = [path.parent.name for path in sorted(folder.parent.glob("*/run.json"))]
    meant = did_you_mean(folder.name, beside)
    if beside and not meant:
        meant = f"; there are: {shorten(', '.join(beside), 70, placeholder=' ...')}"
    return f"{folder} holds no run{meant}"


def extract_logs(folder: Path) -> str:
    """The command that writes items about the logs in a round's folder."""
    line = f"oelkit extract --trajectories {quote(str(folder / 'trajectories.jsonl'))} "
    line += "--prompt-set rules --scale small --model YOUR_MODEL "
    return line + f"--out {quote(str(folder / 'items.jsonl'))}"

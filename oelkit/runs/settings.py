"""Settings of a run and their scales; name and location of a run folder."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from datetime import date
from functools import cache
from inspect import Parameter, Signature
from pathlib import Path
from shlex import quote
from textwrap import shorten
from typing import Any, Literal, get_type_hints

from ..config import (
    DistillConfig,
    EvalConfig,
    ExtractConfig,
    ModelConfig,
    Sampling,
    also_takes,
    option,
)
from ..given import did_you_mean, setting
from ..project import find_root


@dataclass(frozen=True)
class Settings(EvalConfig, DistillConfig, ExtractConfig, ModelConfig):
    """The loop.

    Its fields and those of its steps are flags of `oelkit loop` and entries of run.json. The
    defaults are safe for real models."""

    env: str = option("oelkit/FrozenLake4x4-v0", "world; evaluation plays its Unseen maps, if any")
    rounds: int = option(2, "rounds of the loop")
    seed: int = option(0, "seed of maps, sampling and batches")
    extract_games: int = option(64, "games per round to extract from")
    state_games: int = option(48, "games per round whose turns become training states")
    states_with_experience: bool = option(
        False, "play these games with the round's experience in the prompt"
    )
    carry_experience: bool = option(
        True, "start a round's experience with that of the round it starts from"
    )
    rehearsal: str | None = option(
        None,
        "file of prompts, like states.jsonl, on which training holds the student to the untrained "
        "model; here or in the model's folder; none: no rehearsal",
    )
    run_ablations: bool = option(
        True, "after the last round, also run the off-policy, SFT and raw-games arms"
    )
    gate: Literal["off", "warn", "stop", "rollback"] | None = option(
        None,
        "what to do if a round loses on validation maps or the OOD probe; none: keep the run's "
        "own (warn for a new run)",
    )

    def __new__(cls, *unnamed: Any, **given: Any) -> Settings:
        """Refuse values without a name, and names of no setting, with the one that was meant."""
        if unnamed:
            raise TypeError(f"{unnamed[0]!r}: name the setting, as in Settings(rounds=3)")
        for name in given:
            if name not in cls.__dataclass_fields__:
                meant = did_you_mean(name, cls.__dataclass_fields__)
                raise TypeError(f"there is no setting {name!r}{meant}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Refuse a value of another type at once."""
        for name, kind in _hints().items():
            object.__setattr__(self, name, setting(name, getattr(self, name), kind))

    @classmethod
    def of(cls, scale: str, **changes: Any) -> Settings:
        """Return the settings of a scale ("tiny", "small" or "paper") with some changed.

        With a model other than the embedded one, "tiny" trains with the defaults. ValueError for
        an unknown scale, TypeError for an unknown setting.
        """
        if scale not in SCALES:
            raise ValueError(
                f"no scale {scale!r}{did_you_mean(scale, SCALES)}: "
                f"choose one of {', '.join(SCALES)}"
            )
        embedded = scale == "tiny" and changes.get("model", cls.model) == cls.model
        return cls(**SCALES[scale] | (EMBEDDED if embedded else {}) | changes)

    @property
    def play_sampling(self) -> Sampling:
        """How replies are sampled in training games."""
        return Sampling(self.temperature, max_new_tokens=self.max_new_tokens)

    @property
    def extract_sampling(self) -> Sampling:
        """How experience items are sampled."""
        return Sampling(self.extract_temperature, max_new_tokens=self.max_new_tokens)

    @property
    def eval_sampling(self) -> Sampling:
        """How replies are sampled in evaluation."""
        rest = (self.eval_top_p, self.eval_top_k, self.max_new_tokens)
        return Sampling(self.eval_temperature, *rest)


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Settings)


# so that `?` and completion name the settings
_NAMED = [
    Parameter(f.name, Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
    for f in fields(Settings)
]
Settings.__signature__ = Signature(_NAMED)  # type: ignore[attr-defined]
also_takes(Settings)(Settings.of.__func__)


# training of the embedded model at scale `tiny`; it would damage a real model
EMBEDDED: dict[str, Any] = {"lr": 5e-4, "warmup": 0}

# Differences from the defaults; the model is chosen separately. `paper` has the paper's settings
# except for the departures that docs/departures.md lists: lr suits a LoRA adapter, and
# `state_games` is our choice to get the 1,280 states of a round. `small` keeps temperature 1,
# with the learning rate and steps that a real model needed (examples/waiter/README.md), and has
# enough games that hardly any state repeats.
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


RANGES = {  # wider ranges would let map seeds of rounds and runs overlap
    "seed": (0, 899),
    "rounds": (1, 999),
    "extract_games": (1, 5_000),
    "state_games": (1, 5_000),
    "num_draws": (1, 1_000),
    "eval_maps": (1, 1_000_000),
    "samples_per_map": (1, 1_000),
    "lora_rank": (1, 1_024),
    # otherwise an error here would show only after hours of games
    "steps": (1, 1_000_000),
    "batch_size": (1, 100_000),
    "warmup": (0, 1_000_000),
    "off_policy_steps": (0, 1_000_000),
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
    """Raise ValueError for a number out of range or an invalid date."""
    for name, value in settings.items():
        if value is not None and (said := wrong(name, value)):
            raise ValueError(f"{name} is {value}: {said}")


def wrong(name: str, value: Any) -> str:
    """Return what is wrong with a setting's value, such as "must be 1 to 999"; "" if nothing."""
    if name == "date":
        try:
            date.fromisoformat(value)
        except ValueError:
            return f"must be a date such as {ModelConfig.date}"
    return outside(value, *RANGES[name]) if name in RANGES else ""


def outside(value: float, low: float, high: float) -> str:
    """Like `wrong`, for a number that must lie between low and high."""
    return "" if low <= value <= high else f"must be {low} to {high}"  # NaN fails, too


def check_settings(settings: dict[str, Any]) -> None:
    """Raise ValueError for settings from a file that are unknown, mistyped or out of range."""
    try:
        Settings(**settings)
    except TypeError as error:
        raise ValueError(str(error)) from None
    check_ranges(settings)


def run_folder(name: str, root: Path | None = None) -> Path:
    """Return the folder of a run in runs/, or in another root.

    ValueError for an invalid name, such as one with a slash."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            f"run name {name!r}: use letters from A to Z, digits and '_'; '.' and '-' can follow "
            "the first character"
        )
    return (root or find_root() / "runs") / name


def as_argument(folder: Path) -> str:
    """Return what commands take for a run: its name in runs/, or its path, for a shell."""
    if folder.resolve().parent == (find_root() / "runs").resolve():
        return folder.name
    return quote(str(folder) if len(folder.parts) > 1 else f"./{folder}")


def no_run(folder: Path) -> str:
    """Return the message that a folder holds no run.

    It suggests a similar name, lists runs next to it, or says how to continue with imported logs.
    """
    if said := only_logs(folder):
        return said
    if is_adapter(folder):
        return f"{folder} holds an adapter, but no run"
    beside = [path.parent.name for path in sorted(folder.parent.glob("*/run.json"))]
    meant = did_you_mean(folder.name, beside)
    if beside and not meant:
        meant = f"; there are: {shorten(', '.join(beside), 70, placeholder=' ...')}"
    return f"{folder} holds no run{meant}"


def only_logs(folder: Path) -> str:
    """Return that a folder holds imported logs, and what comes next; "" if it does not."""
    logs = folder / "round_1"
    of_a_run = (folder / "run.json").exists() or (logs / "manifests").exists()
    if of_a_run or not (logs / "trajectories.jsonl").exists():
        return ""
    return f"{folder} holds imported logs but no loop yet; continue with: {next_of_logs(logs)}"


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter in PEFT format."""
    return (folder / "adapter_config.json").is_file()


_HOW = "--prompt-set rules --scale small --model YOUR_MODEL"


def extract_logs(folder: Path) -> str:
    """Return the command that extracts items from the logs in a round's folder."""
    games, items = (quote(str(folder / f"{name}.jsonl")) for name in ("trajectories", "items"))
    return f"oelkit extract --trajectories {games} {_HOW} --out {items}"


def next_of_logs(folder: Path) -> str:
    """Return the command that comes next for the imported logs in a round's folder."""
    names = "states.jsonl", "items.jsonl", "my_adapter"
    states, items, adapter = (quote(str(folder / name)) for name in names)
    if trained := next(filter(is_adapter, sorted(folder.glob("*"))), None):
        return f"oelkit export {quote(str(trained))} --to merged"
    if not ((written := folder / "items.jsonl").is_file() and written.stat().st_size):
        return extract_logs(folder)
    if not (folder / "curation.jsonl").exists():
        return f"oelkit curate {items}"
    return f"oelkit distill --states {states} --experience {items} {_HOW} --out {adapter}"

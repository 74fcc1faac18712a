"""The stages of a run: what each reads and writes, and which settings it depends on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..config import DistillConfig, EvalConfig, ExtractConfig, ModelConfig

WEIGHTS = "adapter/adapter_model.safetensors"
_MODEL, _EXTRACT, _TRAIN, _EVAL = (
    tuple(f.name for f in fields(config))
    for config in (ModelConfig, ExtractConfig, DistillConfig, EvalConfig)
)
_PLAY = (*_MODEL, "env", "seed", "temperature")
_MEASURE = (*_MODEL, *_EVAL, "env", "seed")
STARTED, KNOWN = f"round_{{s}}/{WEIGHTS}", "round_{s}/experience.md"
READY, REHEARSAL = "round_{k}/experience.md", "rehearsal.jsonl"
_TRAINED, READ = f"round_{{k}}/{WEIGHTS}", "round_{k}/adapter/experience.md"
_ADAPTER = ("round_{k}/adapter/adapter_config.json", "round_{k}/adapter/oelkit.json", READ)


@dataclass(frozen=True)
class Stage:
    """What a stage reads ({k}: its round, {s}: the round it starts from), the settings it depends
    on, the file that marks it as done, and the others that it writes."""

    writes: str
    reads: tuple[str, ...]
    settings: tuple[str, ...]
    prompts: bool = True
    beside: tuple[str, ...] = ()


TABLE = {
    "rollout": Stage("round_{k}/trajectories.jsonl", (STARTED,), (*_PLAY, "extract_games")),
    "extract": Stage(
        "round_{k}/items.jsonl",
        (STARTED, "round_{k}/trajectories.jsonl", KNOWN),
        (*_MODEL, *_EXTRACT, "seed"),
    ),
    "curate": Stage(
        "round_{k}/experience.md",
        ("round_{k}/items.jsonl", "round_{k}/curation.jsonl", KNOWN),
        ("model", "num_draws", "budget_tokens"),
        False,
    ),
    "collect": Stage(
        "round_{k}/states.jsonl",
        (STARTED, READY),
        (*_PLAY, "state_games", "states_with_experience"),
    ),
    "distill": Stage(
        _TRAINED,
        (STARTED, READY, "round_{k}/states.jsonl", REHEARSAL),
        (*_MODEL, *_TRAIN, "seed"),
        beside=_ADAPTER,
    ),
    "evaluate": Stage(
        "round_{k}/metrics.json",
        (STARTED, _TRAINED, READ, "base.json", "round_{s}/metrics.json"),
        _MEASURE,
    ),
}
STAGES = tuple(TABLE)  # of a round, in order
_made = {n for s in TABLE.values() for n in (s.writes, *s.beside, *s.reads) if "{s}" not in n}
_made |= {f"round_{{k}}/manifests/{stage}.json" for stage in STAGES}
FILES = sorted(_made | {"chain.json", "manifests/base.json"})  # decide the status of a round
_ARM = tuple(name for name in (*_MEASURE, *_TRAIN) if name != "loss")  # an arm has its own
TABLE |= {  # stages of the whole run, as round 0
    "base": Stage("base.json", (), _MEASURE),
    "raw": Stage(
        "ablations/raw.json",
        ("round_1/trajectories.jsonl", "round_1/states.jsonl", REHEARSAL),
        (*_ARM, "num_draws"),
    ),
    "metrics": Stage("metrics.json", (), ("rounds", "env"), False),
}
for _arm in ("forward_kl", "sft"):
    _reads = ("round_1/experience.md", "round_1/states.jsonl", REHEARSAL)
    TABLE[_arm] = Stage(f"ablations/{_arm}.json", _reads, _ARM)
Node = tuple[int, str]  # round and stage
ARMS = ("forward_kl", "sft", "raw")
BY_HAND = ("rollout", "extract", "curate", "collect", "distill")  # a person can provide their files


def read_by(stage: str, prompts: dict[str, Any]) -> dict[str, Any]:
    """Return those texts of a prompt set that a stage reads."""
    if stage == "extract":
        wanted = ("name", "max_new_tokens", "extract", "previous", "turn")
        return {name: prompts.get(name) for name in wanted}
    unread = ["extract", "previous"]
    unread += [] if stage == "raw" else ["turn"]
    unread += ["experience"] if stage in ("rollout", "base") else []
    return {name: text for name, text in prompts.items() if name not in unread}


def first_few(names: list[str]) -> str:
    """Join names for a sentence; of more than four, show three and count the rest."""
    return ", ".join(names if len(names) < 5 else [*names[:3], f"{len(names) - 3} more"])


def weights(k: int) -> str:
    """Return the name of a round's weights for a sentence; round 0 is the untrained model."""
    return f"round {k}" if k else "the untrained model"


def moved(then: list[int], now: list[int]) -> str:
    """Return a sentence about the first round whose starting round changed."""
    then = then if isinstance(then, list) else []  # it comes from a file
    for k, (was, start) in enumerate(zip(then, now, strict=False), 1):
        if was != start:
            return f"round {k} should start from {weights(start)}"
    return "the starting rounds have changed"

"""The stages of a run: what each reads, which settings it depends on, and what it writes."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..config import DistillConfig, EvalConfig, ExtractConfig, ModelConfig

WEIGHTS = "adapter/adapter_model.safetensors"
_MODEL, _EXTRACT, _TRAIN, _EVAL = (
    tuple(f.name for f in fields(config))
    for config in (ModelConfig, ExtractConfig, DistillConfig, EvalConfig)
)
_PLAY = (*_MODEL, "env", "seed", "temperature")
_MEASURE = (*_MODEL, *_EVAL, "env", "seed")
STARTED, KNOWN = f"round_{{s}}/{WEIGHTS}", "round_{s}/experience.md"
READY = "round_{k}/experience.md"
_TRAINED, READ = f"round_{{k}}/{WEIGHTS}", "round_{k}/adapter/experience.md"


@dataclass(frozen=True)
class Stage:
    """What a stage reads ({k}: its round, {s}: the round it starts from), which settings it depends
    on, and the file that shows that it is done."""

    writes: str
    reads: tuple[str, ...]
    settings: tuple[str, ...]
    prompts: bool = True


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
        _TRAINED, (STARTED, READY, "round_{k}/states.jsonl"), (*_MODEL, *_TRAIN, "seed")
    ),
    "evaluate": Stage(
        "round_{k}/metrics.json",
        (STARTED, _TRAINED, READ, "base.json", "round_{s}/metrics.json"),
        _MEASURE,
    ),
}
STAGES = tuple(TABLE)  # of a round, in their order
_made = {name for s in TABLE.values() for name in (s.writes, *s.reads) if "{s}" not in name}
_made |= {f"round_{{k}}/manifests/{stage}.json" for stage in STAGES}
FILES = sorted(_made | {"chain.json", "manifests/base.json"})  # by which a round's stages stand
TABLE |= {  # of the whole run; their round is 0
    "base": Stage("base.json", (), _MEASURE),
    "raw": Stage(
        "ablations/raw.json",
        ("round_1/trajectories.jsonl", "round_1/states.jsonl"),
        (*_MEASURE, *_TRAIN),
    ),
    "metrics": Stage("metrics.json", (), ("rounds", "env"), False),
}
for _arm in ("forward_kl", "sft"):
    _reads = ("round_1/experience.md", "round_1/states.jsonl")
    TABLE[_arm] = Stage(f"ablations/{_arm}.json", _reads, (*_MEASURE, *_TRAIN))
Node = tuple[int, str]  # round and stage
ARMS = ("forward_kl", "sft", "raw")
BY_HAND = ("rollout", "extract", "curate", "collect", "distill")  # may be put there by a person


def first_few(names: list[str]) -> str:
    """Names of stages in a sentence; of more than four the first three, and how many more."""
    return ", ".join(names if len(names) < 5 else [*names[:3], f"{len(names) - 3} more"])


def weights(k: int) -> str:
    """What trained weights are called in sentences, by their round; 0 is before all training."""
    return f"round {k}" if k else "the untrained model"


def moved(then: list[int], now: list[int]) -> str:
    """The first round that is to start from another one than it did, in a sentence."""
    for k, (was, start) in enumerate(zip(then, now, strict=False), 1):
        if was != start:
            return f"round {k} is to start from {weights(start)}"
    return "the rounds are to start from others"

"""Settings of a run, and the scales: tiny for the embedded model, small for a real one on one GPU,
paper for the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """What a run is made of; every field is a flag of `python -m oelkit loop` and a line of
    run.json.
    """

    model: str = "micro"
    """Embedded model, local folder or hub id."""
    dtype: str = "auto"
    """Of the dense weights: float32 or bfloat16 (auto: see load_policy)."""
    env: str = "oelkit/FrozenLake4x4-v0"
    """World to learn; evaluated on its Unseen layouts where it has them."""
    rounds: int = 2
    """Rounds of the loop."""
    seed: int = 0
    """Of maps, sampling and batches."""
    games: int = 64
    """Games a round to extract from."""
    collect: int = 48
    """Games a round whose turns become training states."""
    draws: int = 10
    """Independent extractions (K experience texts)."""
    budget_tokens: int = 8192
    """Cap of one experience text; the oldest items go first."""
    steps: int = 20
    """Optimiser steps a round."""
    batch_size: int = 32
    """States a step."""
    lr: float = 1e-3
    """Learning rate of the adapter."""
    temperature: float = 1.0
    """Of playing to learn and distilling (extraction: T 0.7; evaluation: T 0.7, top_p 0.8, top_k
    20).
    """
    loss: str = "reverse_kl"
    """reverse_kl (on-policy), forward_kl or sft (off-policy)."""
    top_k: int | None = None
    """KL on the student's top-k ids (256 in the paper); none: full vocabulary."""
    retain: float = 0.25
    """Share of a batch on which the student reads the experience too, so that it does not forget
    how to.
    """
    carry: bool = True
    """Start a round's experience with the earlier rounds'."""
    episodes: int = 128
    """Held-out maps of each evaluation."""
    samples: int = 1
    """Games on each held-out map, each with a sampling seed of its own."""
    prompts: str | None = None
    """Prompt set; none: the model's own."""
    max_new_tokens: int | None = None
    """Most tokens of a reply; none: the prompt set's (1,024 in `paper`)."""
    arms: bool = True
    """After the first round also run the arms off-policy, SFT and raw trajectories."""

    @classmethod
    def of(cls, scale: str, **changes: Any) -> Settings:
        """The settings of a scale ("tiny", "small" or "paper"), some of them changed; ValueError
        for another scale.
        """
        if scale not in SCALES:
            raise ValueError(f"no scale {scale!r}: say one of {', '.join(SCALES)}")
        return cls(**SCALES[scale] | changes)


# What differs from the defaults, the model apart, which is named beside it. `paper` has the paper's
# settings but for the departures that the README lists: lr is for a LoRA adapter, and `collect` is
# ours, for the 1,280 states of a round. `small` learns at T 1, at a rate and for as many steps as a
# real model needed (examples/waiter/README.md), from so many games that hardly a state comes twice.
SCALES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "small": {
        "env": "oelkit/FrozenLake3x3-v0",
        "games": 24,
        "collect": 192,
        "draws": 4,
        "budget_tokens": 2048,
        "steps": 48,
        "batch_size": 16,
        "lr": 2e-4,
    },
    "paper": {
        "env": "oelkit/FrozenLake-v0",
        "rounds": 3,
        "games": 15,
        "budget_tokens": 2048,
        "collect": 400,
        "batch_size": 64,
        "lr": 1e-4,
        "temperature": 0.7,
        "top_k": 256,
        "retain": 0.0,
        "carry": False,
        "samples": 10,
    },
}

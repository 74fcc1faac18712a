"""Settings of a run, and the scales: tiny for the embedded model, small for a real one on one GPU,
paper for the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import DistillConfig, EvalConfig, ExtractConfig, ModelConfig


@dataclass(frozen=True)
class Settings(EvalConfig, DistillConfig, ExtractConfig, ModelConfig):
    """What a run is made of: the settings of its steps (`config`) and of the loop itself.

    Every field is a flag of `python -m oelkit loop` and a line of run.json; the defaults are safe
    for real models.
    """

    env: str = "oelkit/FrozenLake4x4-v0"
    """World to learn; evaluated on its Unseen layouts where it has them."""
    rounds: int = 2
    """Rounds of the loop."""
    seed: int = 0
    """Of maps, sampling and batches."""
    extract_games: int = 64
    """Games per round to extract from."""
    state_games: int = 48
    """Games per round whose turns become training states."""
    carry_experience: bool = True
    """Start a round's experience with that of the round it starts from."""
    run_ablations: bool = True
    """After the last round also run the arms off-policy, SFT and raw games."""
    gate: str = "warn"
    """What becomes of a round that lost on validation maps or the OOD probe: off, warn, stop or
    rollback (the next round starts where it started)."""

    @classmethod
    def of(cls, scale: str, **changes: Any) -> Settings:
        """The settings of a scale ("tiny", "small" or "paper"), some of them changed; ValueError
        for another scale.
        """
        if scale not in SCALES:
            raise ValueError(f"no scale {scale!r}: say one of {', '.join(SCALES)}")
        return cls(**SCALES[scale] | changes)


# What differs from the defaults, the model apart, which is named beside it. `paper` has the
# paper's settings but for the departures that the README lists: lr is for a LoRA adapter, and
# `state_games` is ours, for the 1,280 states of a round. `small` learns at T 1, at a rate and for
# as many steps as a real model needed (examples/waiter/README.md), from so many games that hardly
# a state comes twice.
SCALES: dict[str, dict[str, Any]] = {
    "tiny": {"lr": 1e-3},
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

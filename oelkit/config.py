"""Settings of the steps: small frozen dataclasses without torch, one default for function, loop and command line.

`runs.settings.Settings` is made of them, so that a name means the same thing everywhere.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn."""

    temperature: float = 0.7
    """Divides the logits; 0 is greedy."""
    top_p: float = 1.0
    """Smallest set of ids with this probability."""
    top_k: int = 0
    """Most likely ids only; 0: all."""
    max_new_tokens: int | None = None
    """Most tokens of a reply; none: the prompt set's (1,024 in `paper`)."""
    batch_tokens: int | None = None
    """Prompt and reply tokens sampled at once; none: 32,768. Lower it when memory runs out."""

    def options(self, max_new_tokens: int) -> dict[str, Any]:
        """Keywords of `generate`; `max_new_tokens` counts where the settings name none."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return {"max_new_tokens": max_new_tokens, **given}


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and how it is loaded."""

    model: str = "micro"
    """Embedded model, local folder or hub id."""
    dtype: str = "auto"
    """Of the dense weights: float32, bfloat16 or float16 (auto: see load_policy)."""
    quantize: str | None = "auto"
    """nf4 (QLoRA), none (dense), or auto: nf4 on CUDA from 0.3 B parameters on."""
    lora_rank: int = 16
    """Rank of the adapter; its alpha is twice that."""
    enable_thinking: bool | None = None
    """Handed to the chat template; none: its own default."""
    prompt_set: str | None = None
    """Prompt set; none: the model's own."""


@dataclass(frozen=True)
class ExtractConfig:
    """How trajectories become experience items."""

    num_draws: int = 10
    """Independent extractions (K experience texts)."""
    budget_tokens: int | None = 8192
    """Cap of one experience text; the oldest items go first."""
    extract_temperature: float = 0.7
    """Of the sampling when items are written."""
    show_previous: bool = True
    """Whether a draw reads what it knows so far."""
    strict: bool = False
    """Only lines that start with exactly `- EXPERIENCE ITEM:`, as in the paper."""


@dataclass(frozen=True)
class DistillConfig:
    """How one round trains the adapter."""

    steps: int = 20
    """Optimiser steps per round."""
    batch_size: int = 32
    """States per step."""
    lr: float = 1e-4
    """Learning rate of the adapter; `micro` takes 1e-3 (the scale tiny)."""
    warmup: int = 0
    """Steps of linear warm-up; then the rate is constant."""
    loss: str = "reverse_kl"
    """reverse_kl, jsd, sampled_kl (on-policy), forward_kl or sft (off-policy)."""
    top_k: int | None = None
    """KL on the student's top-k ids (256 in the paper); none: full vocabulary."""
    tail: str = "drop"
    """What becomes of the mass outside the top k: drop (the paper), bucket or renormalize."""
    clip: float | None = None
    """Most nats that one token's loss may count; none: no limit."""
    temperature: float = 1.0
    """Of playing to learn, of sampling replies and of both distributions."""
    retention: float = 0.25
    """Share of a batch on which the student reads the experience too, so that it does not forget how to."""
    max_new_tokens: int | None = None
    """Most tokens of a reply; none: the prompt set's (1,024 in `paper`)."""
    batch_tokens: int | None = None
    """Tokens of a micro-batch, padding included; none: chosen from the memory that is free."""


@dataclass(frozen=True)
class EvalConfig:
    """How the pass rate is measured."""

    eval_maps: int = 128
    """Held-out maps of each evaluation."""
    samples_per_map: int = 1
    """Games on each held-out map, each with a sampling seed of its own."""
    eval_temperature: float = 0.7
    """Of the sampling in evaluation."""
    eval_top_p: float = 0.8
    """Of the sampling in evaluation."""
    eval_top_k: int = 20
    """Of the sampling in evaluation."""

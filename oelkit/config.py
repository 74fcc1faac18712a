"""Settings of the steps: small frozen dataclasses without torch, one default per name.

`runs.settings.Settings` inherits them all, so a name means the same as a keyword of a step, a
command-line flag and an entry of run.json.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from inspect import Parameter, signature
from typing import Any, Literal, TypeVar


def option(default: Any, about: str) -> Any:
    """Return a dataclass field with a default; `about` is its help on the command line."""
    return field(default=default, metadata={"help": about})


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn."""

    temperature: float = option(0.7, "divides the logits; 0 is greedy")
    top_p: float = option(1.0, "sample from the smallest set of tokens with this probability")
    top_k: int = option(0, "sample from this many most likely tokens; 0: from all")
    max_new_tokens: int | None = option(None, "most tokens per reply; none: the prompt set's")
    batch_tokens: int | None = option(None, "prompt and reply tokens sampled at once; none: 32,768")

    def options(self, max_new_tokens: int) -> dict[str, Any]:
        """Return the keywords of `generate`; `max_new_tokens` applies if the settings set none."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return {"max_new_tokens": max_new_tokens, **given}


@dataclass(frozen=True)
class ModelConfig:
    """The model, and how it is loaded."""

    model: str = option("micro", "micro (the embedded model), a local folder or a hub id")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "dtype of the dense weights; auto: what suits the device"
    )
    quantize: Literal["auto", "nf4", "none"] = option(
        "auto", "nf4 (QLoRA), none (dense), or auto: nf4 on CUDA from 0.3 B parameters on"
    )
    lora_rank: int = option(16, "rank of the adapter; its alpha is twice that")
    enable_thinking: bool | None = option(
        None, "passed to the chat template; none: the template's own default"
    )
    date: str = option("2026-01-01", "date for chat templates that print today's date")
    prompt_set: str | None = option(
        None,
        "paper (games), brief (embedded model), rules (logs, agents) or a .toml file; none: the "
        "model's own",
    )


@dataclass(frozen=True)
class ExtractConfig:
    """How trajectories become experience items."""

    num_draws: int = option(10, "independent extractions (K experience texts)")
    budget_tokens: int | None = option(
        8192, "most tokens of an experience text; the oldest items are dropped first"
    )
    extract_temperature: float = option(0.7, "sampling temperature of extraction")
    show_previous: bool = option(True, "show each draw what it knows so far")
    strict: bool = option(
        False, "accept only lines that start with exactly `- EXPERIENCE ITEM:`, as in the paper"
    )


@dataclass(frozen=True)
class DistillConfig:
    """How a round trains the adapter."""

    steps: int = option(20, "optimiser steps per round")
    batch_size: int = option(32, "states per step")
    lr: float = option(1e-4, "learning rate of the adapter")
    warmup: int = option(5, "steps of linear warm-up")
    lr_schedule: Literal["constant", "linear"] = option(
        "constant", "the rate after warm-up: constant, or falling linearly to 0"
    )
    weight_decay: float = option(
        0.0, "of AdamW: each step shrinks the adapter by lr times this, towards the base model"
    )
    loss: Literal["reverse_kl", "jsd", "sampled_kl", "forward_kl", "sft"] = option(
        "reverse_kl", "the first three are on-policy, the last two off-policy"
    )
    off_policy_steps: int = option(
        0, "first steps that learn the teacher's replies by forward KL, before an on-policy loss"
    )
    top_k: int | None = option(
        None, "KL on the student's top-k ids (256 in the paper); none: full vocabulary"
    )
    tail: Literal["drop", "bucket", "renormalize"] = option(
        "drop", "how to treat the mass outside the top k (the paper drops it)"
    )
    clip: float | None = option(None, "upper limit of one token's loss in nats; none: no limit")
    temperature: float = option(
        1.0, "of training games, of sampled replies and of both distributions in the loss"
    )
    retention: float = option(
        0.25, "share of a batch on which the student reads the experience too, to keep that skill"
    )
    max_new_tokens: int | None = option(None, "most tokens per reply; none: the prompt set's")
    batch_tokens: int | None = option(
        None, "tokens per micro-batch, padding included; none: as many as memory allows"
    )


@dataclass(frozen=True)
class EvalConfig:
    """How the pass rate is measured."""

    eval_maps: int = option(128, "held-out maps per evaluation")
    samples_per_map: int = option(1, "games per held-out map, each with its own sampling seed")
    eval_temperature: float = option(0.7, "sampling temperature in evaluation")
    eval_top_p: float = option(0.8, "sampling top_p in evaluation")
    eval_top_k: int = option(20, "sampling top_k in evaluation")


Config = TypeVar("Config")


def part(kind: type[Config], settings: Any) -> Config:
    """Return one step's config, with its fields taken from the settings of a run."""
    return kind(**{f.name: getattr(settings, f.name) for f in fields(kind)})  # type: ignore[arg-type]


Function = TypeVar("Function", bound=Callable[..., Any])


def also_takes(*others: Callable[..., Any], but: str = "") -> Callable[[Function], Function]:
    """Show the keywords of other functions or configs, except one, for `?` and completion.

    The function must take them as **keywords. If it is given a config, that one's values replace
    the defaults shown."""

    def shown(function: Function) -> Function:
        own = signature(function)
        *mine, rest = own.parameters.values()
        found = [p for other in others for p in signature(other).parameters.values()]
        more = {p.name: p for p in found if p.kind != rest.kind}
        names = [name for name in more if name not in {*own.parameters, but}]
        new = [more[name].replace(kind=Parameter.KEYWORD_ONLY) for name in names]
        setattr(function, "__signature__", own.replace(parameters=[*mine, *new, rest]))  # noqa: B010
        return function

    return shown

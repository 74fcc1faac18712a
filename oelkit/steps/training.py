"""The parts of a training, checked before its first step, and its updates."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import given
from ..config import DistillConfig
from ..model import ranks
from ..model.memory import MemoryPlan, memory_plan
from ..model.policy import Policy
from ..model.prefix import SharedPrefix
from ..model.sampling import Reply
from ..prompts import PromptSet, load_prompt_set, with_experience
from ..records import Message, State, write_jsonl
from ..text import content_text

ON_POLICY = ("reverse_kl", "jsd", "sampled_kl")  # losses that learn from the student's replies
MEET = 16  # tokens by which a prompt can differ from the sum of its parts
# A loss has jumped if it is above JUMP times the largest of the three before it, which count as at
# least SMALL (nats). In 15 recorded trainings of 48 steps that learned, none did.
JUMP, SMALL = 3, 0.1


@dataclass
class Training:
    """What a step needs and what it changes: student, optimiser, scaler, generator and lists."""

    policy: Policy
    states: Sequence[State]
    experiences: Sequence[str]
    config: DistillConfig
    prompt_set: PromptSet
    seed: int
    plan: MemoryPlan
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    rng: random.Random
    pending: list[int] = field(default_factory=list)  # states still to come in this pass
    history: list[dict[str, Any]] = field(default_factory=list)
    beginnings: dict[str, list[int]] = field(default_factory=dict)  # of prompts, by experience text
    prefixes: dict[str, SharedPrefix] = field(default_factory=dict)  # their KV, last used last
    rehearsal: Sequence[State] = ()
    failed: Path | None = None  # where to save a batch whose loss is not finite


def prepare(
    policy: Policy,
    states: Sequence[State],
    experiences: str | Sequence[str],
    config: DistillConfig | None,
    prompt_set: str | PromptSet | None,
    seed: int,
    changes: dict[str, Any],
    rehearsal: Sequence[State] = (),
) -> Training:
    """Check everything before the first step, and assemble the training."""
    given.a_policy(policy, adapters=True)
    c, seed = given.settings("config", DistillConfig, config, changes), given.whole("seed", seed)
    states = given.records("states", states, State, " (oelkit.states makes them from trajectories)")
    rehearsal = given.records("rehearsal", rehearsal, State)
    texts = [text for text in given.texts("experiences", experiences) if text.strip()]
    if not states:
        raise ValueError("nothing to distill on: there are no states")
    if not texts:
        left = "no experience is left (no items were extracted, or all were rejected)"
        raise ValueError(f"nothing to distill: {left}")
    _check(c)
    prompt_set = load_prompt_set(prompt_set or policy.default_prompt_set)
    longest = c.max_new_tokens or prompt_set.max_new_tokens
    states, plain, added = fitting(policy, states, texts, prompt_set, longest)
    if rehearsal:
        rehearsal, most, _ = fitting(policy, rehearsal, [""], prompt_set, longest)
        plain = max(plain, most)
    told = [
        s.id
        for s in states
        if any(t in content_text(m.get("content")) for m in s.prompt for t in texts)
    ]
    if told:
        warnings.warn(
            f"{len(told)} of {len(states)} states, first {told[0]!r}, contain the experience, so "
            "the student reads it too and learns little; oelkit.states(games, experience) leaves "
            "it out",
            stacklevel=3,
        )
    with oom_hint("the trial run", max_new_tokens=longest, batch_size=c.batch_size):
        plan = memory_plan(
            policy,
            max(0, added),
            state_tokens=plain,
            reply_tokens=longest,
            batch_size=c.batch_size,
            retention=c.retention,
            batch_tokens=c.batch_tokens,
            texts=len(set(texts)),
        )
    if not plan.fits:
        warnings.warn(f"{policy.name}: memory will probably run out.\n{plan}", stacklevel=3)
    optimizer, scaler = _adamw(policy, c), _scaler(policy, c.batch_size * longest)
    parts = policy, states, texts, c, prompt_set, seed, plan, optimizer, scaler
    return Training(*parts, random.Random(seed), rehearsal=rehearsal)


def _check(c: DistillConfig) -> None:
    """Refuse invalid settings; the ValueError names them."""
    for name in ("temperature", "lr"):
        if not 0 < getattr(c, name) < math.inf:
            raise ValueError(f"{name}={getattr(c, name)}: need a number above 0")
    if not 0 <= c.retention <= 1:
        raise ValueError(f"retention={c.retention}: need 0 to 1")
    if not 0 <= c.lr * c.weight_decay < 1:
        raise ValueError(
            f"lr={c.lr}, weight_decay={c.weight_decay}: one step would decay the adapter by "
            "100% or more; need a weight_decay from 0 to below 1 / lr"
        )
    least_of = {"batch_size": 1, "steps": 1, "warmup": 0, "off_policy_steps": 0}
    least_of |= {"max_new_tokens": 1, "batch_tokens": 1, "top_k": 0}
    for name, least in least_of.items():
        if (value := getattr(c, name)) is not None:
            given.count(name, value, least)
    if c.clip is not None and not c.clip > 0:
        raise ValueError(f"clip={c.clip}: need a number above 0; None is no limit")
    if c.batch_size < ranks.count():
        few = f"batch_size={c.batch_size} with {ranks.count()} processes"
        raise ValueError(f"{few}: each needs its own state; raise batch_size, or start fewer")


def fitting(
    policy: Policy,
    states: Sequence[State],
    experiences: Sequence[str],
    prompt_set: PromptSet,
    max_new_tokens: int,
) -> tuple[list[State], int, int]:
    """Return the states with a user message that the chat template accepts and that fit the
    context with each experience, the tokens of the longest, and those that an experience adds.

    A warning counts the other states. State and experience together have as many tokens as apart,
    except for a few where they meet, so only pairs near the limit are tokenised.
    """
    room, why = policy.context_length - max_new_tokens, ""

    def tokens(state: State, text: str) -> int:
        nonlocal why
        asked = given.records(f"state {state.id!r}, prompt", state.prompt, dict)
        try:
            read = with_experience(prompt_set, asked, text or experiences[0])
            n = len(policy.encode(read if text else asked))
        except ValueError as error:
            raise ValueError(f"state {state.id!r}: {error}") from error
        if n > room and not why:
            what = f" with the experience that begins {text[:60]!r}" if text else ""
            todo = "lower budget_tokens or reject items" if text else "leave such states out"
            todo += ", or lower max_new_tokens"
            why = (
                f"state {state.id!r}{what} has {n} tokens: with a reply of {max_new_tokens} that "
                f"exceeds the context of {policy.context_length}; {todo}"
            )
        return n

    plain, refused = list[tuple[int, State]](), ""
    for state in states:
        try:
            plain.append((tokens(state, ""), state))
        except ValueError as error:  # such as for tools that the template does not show
            refused = refused or str(error)
    if not plain:
        raise ValueError(refused)
    fits = [(n, state) for n, state in plain if n <= room]
    alone, longest = max(fits or plain, key=lambda pair: pair[0])
    added = {text: tokens(longest, text) - alone for text in experiences}
    text = max(added, key=lambda text: added[text])
    near = room - MEET - added[text]
    for n, state in list(fits):
        if n > near and tokens(state, text) > room:
            fits.remove((n, state))
    if not fits:
        raise ValueError(why)
    if reasons := "; and ".join(filter(None, (refused, why))):
        few = f"{len(states) - len(fits)} of {len(states)} states are left out"
        warnings.warn(f"{few}: {reasons}", stacklevel=4)
    return [state for _, state in fits], max(n for n, _ in fits), added[text]


def _adamw(policy: Policy, c: DistillConfig) -> torch.optim.Optimizer:
    """Return AdamW; on CUDA its states are 8-bit and move to main memory if the card is full."""
    options: dict[str, Any] = {"lr": c.lr, "weight_decay": c.weight_decay}
    if policy.device.type == "cuda":
        import bitsandbytes  # imported here: it prints and takes a second

        return bitsandbytes.optim.PagedAdamW8bit(policy.trainable(), **options)
    return torch.optim.AdamW(policy.trainable(), **options)


def _scaler(policy: Policy, tokens: int) -> torch.amp.GradScaler:
    """Return a scaler against vanishing float16 gradients; a loss averages at most `tokens`."""
    scale, half = 2.0 ** math.ceil(math.log2(tokens)), policy.head.weight.dtype == torch.float16
    return torch.amp.GradScaler(policy.device.type, init_scale=scale, enabled=half)


Sample = tuple[State, str, list[int], list[int], Reply]  # state, text, both prompts, reply


def update(t: Training, step: int, loss: float, batch: Iterable[Sample]) -> tuple[float, bool]:
    """Take one optimiser step; return (gradient norm before clipping, whether it was skipped).

    A float16 gradient that overflows is skipped, and the loss scale is halved.

    Raises:
        RuntimeError: loss or gradient is not finite; the weights are unchanged, and the batch is
            saved beside the checkpoint.
    """
    fault = f"the loss is {loss}"
    if math.isfinite(loss):
        t.scaler.unscale_(t.optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(t.policy.trainable(), 1.0))
        skipped = not math.isfinite(norm)
        if not skipped or t.scaler.get_scale() > 1:  # 1: not in use, or cannot be lowered
            if not skipped:
                t.scaler.step(t.optimizer)
            t.scaler.update()
            return norm, skipped
        fault = f"the gradient is {norm}"
    raise RuntimeError(
        f"step {step}: {fault}; lower lr (now {t.config.lr:g}), or train in another dtype"
        + _kept(t, step, fault, batch)
    )


def _kept(t: Training, step: int, fault: str, batch: Iterable[Sample]) -> str:
    """Save a batch for a person to look at; return a sentence that says where."""
    if t.failed is None:
        return ""
    rows = [
        {
            **{"step": step, "fault": fault, "state": state.id, "experience": text},
            **{"student_ids": student, "teacher_ids": teacher},
            **{"reply_ids": reply.ids, "reply": reply.text},
        }
        for state, text, student, teacher, reply in batch
    ]
    write_jsonl(t.failed, rows)
    return f". The batch is in {t.failed}"


@contextmanager
def oom_hint(what: str, **settings: int) -> Iterator[None]:
    """Turn "out of memory" into an error that names the settings to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        full = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not full and "can't allocate memory" not in str(error):  # as torch says it on a CPU
            raise
        lower = " or ".join(f"{name} (now {value})" for name, value in settings.items())
        raise RuntimeError(
            f"{what} ran out of memory: lower {lower}; oelkit.memory_plan says what a step takes"
        ) from error


def warn_of_chats(policy: Policy, prompts: Sequence[Sequence[Message]]) -> None:
    """Warn that the embedded model understands only boards, if no prompt has one."""
    boards = ("Board:" in str(m.get("content")) for prompt in prompts for m in prompt)
    if policy.name == "micro" and prompts and not any(boards):
        said = "micro, the embedded model, understands only boards: with chats it shows that "
        said += "everything runs, and no more. Use a model such as Qwen/Qwen3-1.7B"
        warnings.warn(said, stacklevel=3)


def warn_of(t: Training) -> None:
    """Warn at once about what went wrong in the last step."""
    *before, row = t.history
    if row["step"] >= t.config.off_policy_steps:  # another loss before: its level says nothing
        before = before[t.config.off_policy_steps :]
    level = max((old["loss"] for old in before[-3:]), default=row["loss"])
    if row["loss"] > JUMP * max(level, SMALL):
        warnings.warn(
            f"step {row['step']}: the loss jumped from {level:.3g} to {row['loss']:.3g} nats per "
            f"token; lower lr (now {t.config.lr:g}) or raise warmup (now {t.config.warmup})",
            stacklevel=3,
        )
    if row["skipped"]:
        skipped = sum(old.get("skipped", False) for old in t.history)
        warnings.warn(
            f"step {row['step']}: a gradient overflowed in float16, so the step was skipped "
            f"({skipped} of {len(t.history)} so far); the loss scale is {t.scaler.get_scale():g} "
            "from now on",
            stacklevel=3,
        )

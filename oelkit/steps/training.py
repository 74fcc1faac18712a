"""What a training is made of, checked before its first step; its updates and its checkpoint.

A checkpoint is one safetensors file with the student's and the optimiser's tensors; all else is
JSON in its header. From it a stopped training goes on with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from signal import SIGINT, default_int_handler, getsignal, signal
from threading import current_thread, main_thread
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .. import given
from ..config import DistillConfig
from ..model.memory import MemoryPlan, memory_plan
from ..model.policy import Policy
from ..model.prefix import SharedPrefix
from ..prompts import PromptSet, load_prompt_set, with_experience
from ..records import State, sync_folder, to_dict

ON_POLICY = ("reverse_kl", "jsd", "sampled_kl")  # learn from the student's replies
OFF_POLICY = ("forward_kl", "sft")  # learn from the teacher's
LOSSES = ON_POLICY + OFF_POLICY
MEET = 16  # tokens by which a text in a prompt may differ from the two apart
# A loss has jumped above JUMP times the three before it; one below SMALL (nats) says nothing. In
# 15 recorded trainings of 48 steps that learned, none did.
JUMP, SMALL = 3, 0.1


@dataclass
class Training:
    """What a step needs, and what it changes: student, optimiser, scaler, generator and lists."""

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
    pending: list[int] = field(default_factory=list)  # states that this pass has still to show
    history: list[dict[str, Any]] = field(default_factory=list)
    beginnings: dict[str, list[int]] = field(default_factory=dict)  # of prompts, by experience text
    prefixes: dict[str, SharedPrefix] = field(default_factory=dict)  # their KV, last used last


def prepare(
    policy: Policy,
    states: Sequence[State],
    experiences: str | Sequence[str],
    config: DistillConfig | None,
    prompt_set: str | PromptSet | None,
    seed: int,
    changes: dict[str, Any],
) -> Training:
    """Check all that can be wrong before the first step."""
    c = replace(config or DistillConfig(), **changes)
    given.a_policy(policy)
    states = given.records("states", states, State, " (oelkit.states makes them of trajectories)")
    texts = [text for text in given.texts("experiences", experiences) if text.strip()]
    if not states:
        raise ValueError("nothing to distill on: there are no states")
    if not texts:
        raise ValueError(
            "nothing to distill: no experience is left (no items were extracted, or all were "
            "rejected)"
        )
    if c.loss not in LOSSES:
        raise ValueError(f"loss={c.loss!r}: say one of {', '.join(LOSSES)}")
    if c.batch_size < 1 or not c.temperature > 0 or not 0 <= c.retention <= 1:
        raise ValueError(
            f"batch_size={c.batch_size}, temperature={c.temperature}, retention={c.retention}: "
            "need at least 1, above 0, and 0 to 1"
        )
    if not isinstance(prompt_set, PromptSet):
        prompt_set = load_prompt_set(prompt_set or policy.default_prompt_set)
    longest = c.max_new_tokens or prompt_set.max_new_tokens
    plain, read = _lengths(policy, states, texts, prompt_set, longest)
    plan = memory_plan(
        policy,
        read - plain,
        state_tokens=plain,
        reply_tokens=longest,
        batch_size=c.batch_size,
        retain=c.retention > 0,
        batch_tokens=c.batch_tokens,
        texts=len(set(texts)),
    )
    optimizer, scaler = _adamw(policy, c.lr), _scaler(policy, c.batch_size * longest)
    rng = random.Random(seed)
    return Training(policy, states, texts, c, prompt_set, seed, plan, optimizer, scaler, rng)


def _lengths(
    policy: Policy,
    states: Sequence[State],
    experiences: Sequence[str],
    prompt_set: PromptSet,
    max_new_tokens: int,
) -> tuple[int, int]:
    """Tokens of the longest state, alone and with the longest experience.

    What does not fit is said before the first step, not when chance draws the pair. A pair has the
    tokens of its parts but for a few where they meet: only pairs near the limit are counted.
    """

    def tokens(state: State, text: str) -> int:
        try:
            n = len(policy.encode(with_experience(prompt_set, state.prompt, text)))
        except ValueError as error:
            raise ValueError(f"state {state.id!r}: {error}") from error
        if n + max_new_tokens > policy.context_length:
            what = f"the experience that begins {text[:60]!r}, in front of " if text else ""
            todo = "lower budget_tokens or reject items" if text else "leave such states out"
            raise ValueError(
                f"{what}state {state.id!r} makes {n} tokens: with a reply of {max_new_tokens} that "
                f"is more than the context of {policy.context_length}; {todo}"
            )
        return n

    plain = [tokens(state, "") for state in states]
    longest = plain.index(max(plain))
    read = {text: tokens(states[longest], text) for text in experiences}
    text = max(read, key=lambda text: read[text])
    room = policy.context_length - max_new_tokens - MEET - (read[text] - plain[longest])
    for state, alone in zip(states, plain, strict=True):
        if alone > room or not any(m["role"] == "user" for m in state.prompt):
            tokens(state, text)
    return plain[longest], read[text]


def _adamw(policy: Policy, lr: float) -> torch.optim.Optimizer:
    """AdamW; on CUDA with 8-bit states that move to main memory when the card is full."""
    if policy.device.type == "cuda":
        import bitsandbytes  # only here: it prints and takes a second

        return bitsandbytes.optim.PagedAdamW8bit(policy.trainable(), lr=lr, weight_decay=0.0)
    return torch.optim.AdamW(policy.trainable(), lr=lr, weight_decay=0.0)


def _scaler(policy: Policy, tokens: int) -> torch.amp.GradScaler:
    """Keeps float16 gradients from vanishing: a loss is a mean over so many tokens at most."""
    scale, half = 2.0 ** math.ceil(math.log2(tokens)), policy.head.weight.dtype == torch.float16
    return torch.amp.GradScaler(policy.device.type, init_scale=scale, enabled=half)


def update(t: Training, step: int, loss: float) -> tuple[float, bool]:
    """One optimiser step on the student's gradient: (its norm before clipping, skipped or not).

    A float16 gradient that overflows is left out, and the next one is scaled by half.

    Raises:
        RuntimeError: loss or gradient are not finite; the weights are as they were.
    """
    fault = f"the loss is {loss}"
    if math.isfinite(loss):
        t.scaler.unscale_(t.optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(t.policy.trainable(), 1.0))
        skipped = not math.isfinite(norm)
        if not skipped or t.scaler.get_scale() > 1:  # 1: not in use, or nothing left to lower
            if not skipped:
                t.scaler.step(t.optimizer)
            t.scaler.update()
            return norm, skipped
        fault = f"the gradient is {norm}"
    raise RuntimeError(
        f"step {step}: {fault}; lower lr (now {t.config.lr:g}), or train in another dtype"
    )


def warn_of(t: Training) -> None:
    """Say at once what went wrong in the last step."""
    *before, row = t.history
    level = max((old["loss"] for old in before[-3:]), default=row["loss"])
    if row["loss"] > JUMP * max(level, SMALL):
        warnings.warn(
            f"step {row['step']}: the loss jumped from {level:.3g} to {row['loss']:.3g} nats per "
            f"token; lower lr (now {t.config.lr:g}) or raise warmup (now {t.config.warmup})",
            stacklevel=3,
        )
    if row["skipped"]:
        skipped = sum(old["skipped"] for old in t.history)
        warnings.warn(
            f"step {row['step']}: a gradient overflowed in float16, so that the step was skipped "
            f"({skipped} of {len(t.history)} so far); the loss scale is {t.scaler.get_scale():g} "
            "from now on",
            stacklevel=3,
        )


class Checkpoint:
    """The checkpoint of a training; it belongs to these states, texts, settings and weights."""

    def __init__(self, training: Training, path: Path):
        t = self.training = training
        self.path, self.student = path, t.policy.trainable()
        about = [asdict(t.config), asdict(t.prompt_set), t.seed, list(t.experiences)]
        about += [[to_dict(state) for state in t.states], torch.__version__]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for p in self.student:
            digest.update(p.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        self.identity = digest.hexdigest()

    def save(self) -> None:
        """Write the file as a whole or not at all; it is on disk when this returns."""
        t, scalars = self.training, {}
        tensors = {f"student.{i}": p.detach().cpu() for i, p in enumerate(self.student)}
        for i, values in t.optimizer.state_dict()["state"].items():
            for name, value in values.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer.{i}.{name}"] = value.detach().cpu().contiguous()
                else:
                    scalars.setdefault(str(i), {})[name] = value
        state = {"history": t.history, "pending": t.pending, "random": t.rng.getstate()}
        state["scaler"] = t.scaler.state_dict()
        header = {"identity": self.identity, "state": json.dumps({**state, "scalars": scalars})}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        save_file(tensors, partial, metadata=header)
        sync_folder(partial)  # the file, as well
        os.replace(partial, self.path)
        sync_folder(self.path.parent)

    def restore(self) -> None:
        """Go on from the file; one that is not there, damaged or of another training is ignored."""
        t = self.training
        try:
            with safe_open(self.path, "pt") as file:
                header = file.metadata() or {}
                if header.get("identity") != self.identity:
                    return
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return
        state = json.loads(header["state"])
        optimizer = {int(i): values for i, values in state["scalars"].items()}
        with torch.no_grad():
            for name, tensor in tensors.items():
                kind, i, *rest = name.split(".")
                if kind == "student":
                    self.student[int(i)].copy_(tensor)
                else:
                    optimizer.setdefault(int(i), {})[".".join(rest)] = tensor
        t.optimizer.load_state_dict({**t.optimizer.state_dict(), "state": optimizer})
        t.scaler.load_state_dict(state["scaler"])
        version, numbers, gauss = state["random"]
        t.rng.setstate((version, tuple(numbers), gauss))
        t.pending[:], t.history[:] = state["pending"], state["history"]


@contextmanager
def interrupt_deferred() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether Ctrl+C was pressed; a second Ctrl+C interrupts at once.

    Only in the main thread and where nobody else handles it; elsewhere Ctrl+C is as ever.
    """
    pressed = False

    def handler(number: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        print("\nstopping after this step (Ctrl+C again: at once)", flush=True)

    if current_thread() is not main_thread() or getsignal(SIGINT) is not default_int_handler:
        yield lambda: False
        return
    signal(SIGINT, handler)
    try:
        yield lambda: pressed
    finally:
        signal(SIGINT, default_int_handler)

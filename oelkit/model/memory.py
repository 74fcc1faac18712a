"""What a distillation step will need of memory, said before the run: `memory_plan`.

What it does: runs the model on a few tokens, watches what it holds (CUDA's own counter; on a CPU
each tensor) and extrapolates, which is exact enough because everything grows in a straight line
with a batch's tokens: neither logits nor attention scores of all tokens are ever held. From that
follow the size of micro-batches and whether gradient checkpointing is needed. What it does not:
know what other programs will take, or what an allocator loses to gaps."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache

from ..prompts import load_prompts
from . import losses as kl
from .policy import Policy
from .prefix import can_share, min_shared_prefix
from .sampling import BATCH_TOKENS

MAX_BATCH_TOKENS = 16_384  # tokens of a micro-batch; more keeps no card busier
CPU_SHARE = 2**29  # bytes that a micro-batch may take on a CPU, which small ones keep busy too
CUDA_SHARE = 0.8  # of what is free on the device; the rest is for gaps
PROBE_SHORT, PROBE_LONG = 32, 96  # tokens of the trial runs


@dataclass(frozen=True)
class MemoryPlan:
    """What fits and why, in bytes; print it for a table."""

    held: dict[str, int]
    """What stays: weights and adapters (loaded already), the optimiser's states, the experience's
    keys and values.
    """
    phases: dict[str, int]
    """The most that each phase of a step takes beside it, one phase at a time."""
    free: int
    """Free on the device (on a CPU: in main memory) when the plan was made."""
    batch_tokens: int
    """Tokens of a micro-batch of training, padding included."""
    scored_tokens: int
    """The same of the teacher's, which keeps nothing for a backward pass."""
    gradient_checkpointing: bool
    """Whether the longest sequence needs it."""

    @property
    def peak(self) -> int:
        """Bytes at the worst moment, above the loaded policy."""
        return (
            sum(self.held.values())
            - self.held["weights"]
            - self.held["adapters"]
            + max(self.phases.values())
        )

    @property
    def fits(self) -> bool:
        return self.peak <= self.free

    def __str__(self) -> str:
        rows = [
            *((name, size, "held") for name, size in self.held.items()),
            *((name, size, "one phase at a time") for name, size in self.phases.items()),
            ("peak above the loaded policy", self.peak, "held + largest phase"),
            ("free now", self.free, ""),
        ]
        how = "with" if self.gradient_checkpointing else "without"
        say = f"It fits in micro-batches of {self.batch_tokens:,} tokens {how} gradient checkpointing."
        if not self.fits:
            say = (
                f"It does NOT fit: {max(self.phases, key=self.phases.get)} is the largest phase. Lower budget_tokens, "
                "max_new_tokens or batch_size, set retain=0, or take a smaller model."
            )
        return "\n".join(
            [*(f"{name:<29} {size / 2**20:>9,.1f} MiB  {why}" for name, size, why in rows), say]
        )


def memory_plan(
    policy: Policy,
    experience_tokens: int = 0,
    *,
    state_tokens: int = 512,
    reply_tokens: int | None = None,
    batch_size: int = 32,
    retain: bool = False,
    batch_tokens: int | None = None,
) -> MemoryPlan:
    """What `distill` will need with such an experience, and the micro-batches that fit.

    state_tokens: of the longest state's prompt. reply_tokens: max_new_tokens (None: of the policy's
    prompt set). retain: whether the student, too, reads the experience, which makes its sequences
    that much longer. batch_tokens: of a micro-batch; None chooses. Runs the model on some hundred
    tokens and leaves its weights, gradients and modes alone."""
    reply = reply_tokens or load_prompts(policy.default_prompt_set).max_new_tokens
    shared = experience_tokens >= min_shared_prefix(policy) and can_share(policy)
    student = state_tokens + reply + experience_tokens * bool(retain)
    teacher = state_tokens + reply + experience_tokens * (not shared)
    kl_rows = min(kl.chunk_rows(policy.head_weight), batch_size * reply)
    states = 2 if policy.device.type == "cuda" else 8  # bytes of AdamW's two moments, 8 or 32 bits
    lora = {p for n, p in policy.model.named_parameters() if ".lora_" in n}
    held = {
        "weights": sum(p.nbytes for p in policy.model.parameters() if p not in lora),
        "adapters": sum(p.nbytes for p in lora),
        "optimiser": states * sum(p.numel() for p in policy.trainable()),
        "keys and values of experience": _cache_bytes(policy) * experience_tokens * shared,
    }
    free = _free(policy.device)
    room = CUDA_SHARE * (free - held["optimiser"] - held["keys and values of experience"])
    reading, training = (
        _line(policy, lambda n: _read(policy, n)),
        _line(policy, lambda n: _train(policy, n, kl_rows)),
    )
    if checkpointing := training(student) > room:
        with checkpointed(policy):
            training = _line(policy, lambda n: _train(policy, n, kl_rows))
    share = room if policy.device.type == "cuda" else min(room, CPU_SHARE)

    def tokens(
        line: Callable[[float], float], longest: int
    ) -> int:  # what is longer than a micro-batch goes alone
        most = batch_tokens or min(MAX_BATCH_TOKENS, int((share - line(0)) / (line(1) - line(0))))
        return max(longest, min(most, batch_size * longest))

    learnt, scored = tokens(training, student), tokens(reading, teacher)
    rows = min(batch_size, max(1, BATCH_TOKENS // student))
    phases = {
        "sampling": (_cache_bytes(policy) * student + 16 * len(policy.head_weight)) * rows
        + reading(rows * (student - reply)),
        "reading the experience": reading(experience_tokens) if shared else 0,
        "scoring": reading(scored),
        "training": training(learnt),
    }
    phases = {name: int(size) for name, size in phases.items()}
    return MemoryPlan(held, phases, free, learnt, scored, checkpointing)


@contextmanager
def checkpointed(policy: Policy) -> Iterator[None]:
    """Recompute each layer in the backward pass rather than keep what it computed; in train mode
    only.
    """
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # Transformers renames these two, and older ones lack the new names
        policy.base_lm.gradient_checkpointing_enable(
            {"use_reentrant": False}
        )  # this kind needs no trainable inputs
        try:
            yield
        finally:
            policy.base_lm.gradient_checkpointing_disable()


@torch.no_grad()
def _read(policy: Policy, tokens: int) -> None:
    """What the teacher does."""
    with policy.adapter("teacher", merge=True):
        policy.hidden(_ids(policy, tokens))


def _train(policy: Policy, tokens: int, kl_rows: int) -> None:
    """What the student does, with so many rows of the loss."""
    with policy.adapter("student"):
        policy.model.train()
        try:
            hidden = policy.hidden(_ids(policy, tokens))[0]
            hidden = hidden[torch.arange(kl_rows, device=hidden.device) % tokens]
            loss = kl.reverse_kl(hidden, hidden.detach(), policy.head_weight)
            torch.autograd.grad(loss, policy.trainable(), allow_unused=True)  # leaves .grad alone
        finally:
            policy.model.eval()


def _ids(policy: Policy, tokens: int) -> torch.Tensor:
    return torch.arange(tokens, device=policy.device)[None] % len(policy.head_weight)


@torch.no_grad()
def _cache_bytes(policy: Policy) -> int:
    """Bytes of keys and values a token."""
    cache = DynamicCache(config=policy.base_lm.config)
    policy.hidden(_ids(policy, 8), cache)
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) // 8


def _line(policy: Policy, work: Callable[[int], None]) -> Callable[[float], float]:
    """Peak bytes of work(tokens) as a straight line through two trial runs."""
    policy.head_weight  # its own check, once, is not part of the work
    short, long = (peak_bytes(lambda: work(n), policy.device) for n in (PROBE_SHORT, PROBE_LONG))
    slope = (long - short) / (PROBE_LONG - PROBE_SHORT)
    return lambda tokens: short + slope * (tokens - PROBE_SHORT)


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most that `work` holds at once in tensors, above what was there before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with _Alive() as alive:
        work()
    return alive.most


class _Alive(TorchDispatchMode):
    """Counts the bytes of the tensors made within, as long as they live (the profiler does too, but
    prints lines).
    """

    now = most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out, given = function(*args, **(kwargs or {})), tree_leaves((args, kwargs))
        old = {
            x.untyped_storage()._cdata for x in given if isinstance(x, torch.Tensor)
        }  # views and in-place results
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in old:
                storage = x.untyped_storage()
                old.add(storage._cdata)
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return out

    def _add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


def _free(device: torch.device) -> int:
    if (
        device.type == "cuda"
    ):  # what the allocator keeps for later is free too; a process may be held to a share
        free, total = torch.cuda.mem_get_info(device)
        used = torch.cuda.memory_allocated(device)
        share = torch.cuda.get_per_process_memory_fraction(device) * total
        return int(min(free + torch.cuda.memory_reserved(device), share) - used)
    return psutil.virtual_memory().available

"""Predict how much memory a distillation step needs: `memory_plan`.

It runs the model on a few tokens, measures what is held (CUDA's own counter; on a CPU each tensor)
and extrapolates linearly, which is exact enough because logits and attention scores of all tokens
are never held at once. The result determines the size of micro-batches and whether gradient
checkpointing is needed. It does not account for other programs or for allocator fragmentation.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode  # where PyTorch documents it
from transformers import DynamicCache

from .. import given
from ..prompts import load_prompt_set
from . import losses
from .attention import MAX_SCORES
from .packing import MAX_PACKED, can_pack
from .policy import Policy
from .prefix import can_share, min_shared_prefix
from .scoring import BATCH_TOKENS

MAX_BATCH_TOKENS = 16_384  # of a micro-batch; a card gains nothing from more
CPU_SHARE = 2**29  # bytes of a micro-batch on a CPU, which small ones keep busy too
TEXTS_SHARE = 0.5  # of free main memory, for the keys and values of all experience texts
CUDA_SHARE = 0.8  # of free memory on the device; the rest is for fragmentation
PROBE_TOKENS = 32, 96  # of the trial runs


@dataclass(frozen=True)
class MemoryPlan:
    """What a step needs and what fits, in bytes; print it to see a table."""

    held: dict[str, int]
    """Held throughout: weights and adapters (already loaded), optimiser, the experience's KV."""
    phases: dict[str, int]
    """Peak of each phase of a step on top of `held`; phases run one at a time."""
    free: int
    """Free memory on the device (on a CPU: main memory) when the plan was made."""
    batch_tokens: int
    """Tokens of a training micro-batch, including padding."""
    scored_tokens: int
    """Tokens of a teacher micro-batch, which keeps nothing for a backward pass."""
    gradient_checkpointing: bool
    """Whether the longest sequence needs it."""
    kept_texts: int = 1
    """Experience texts whose keys and values stay in main memory; the others are recomputed."""

    @property
    def peak(self) -> int:
        """Peak bytes, on top of the loaded policy."""
        loaded = self.held["weights"] + self.held["adapters"]
        return sum(self.held.values()) - loaded + max(self.phases.values())

    @property
    def fits(self) -> bool:
        """Whether the peak fits into the free memory."""
        return self.peak <= self.free

    def __str__(self) -> str:
        rows = [(name, size, "held") for name, size in self.held.items()]
        rows += [(name, size, "one phase at a time") for name, size in self.phases.items()]
        rows.append(("peak above the loaded policy", self.peak, "held + largest phase"))
        rows.append(("free now", self.free, ""))
        how = "with" if self.gradient_checkpointing else "without"
        size = f"{self.batch_tokens:,} tokens"
        verdict = f"It fits in micro-batches of {size} {how} gradient checkpointing."
        if not self.fits:
            largest = max(self.phases, key=lambda name: self.phases[name])
            verdict = (
                f"It does NOT fit: {largest} is the largest phase. Lower budget_tokens, "
                "max_new_tokens or batch_size, set retention=0, or take a smaller model."
            )
        lines = [f"{name:<29} {size / 2**20:>9,.1f} MiB  {why}" for name, size, why in rows]
        return "\n".join([*lines, verdict])


class _Cost(NamedTuple):
    """Bytes that some work takes, as a linear function of the number of tokens."""

    fixed: float
    per_token: float

    def __call__(self, tokens: int) -> int:
        return int(self.fixed + self.per_token * tokens)


# why: a third of it documents the arguments, the rest is one sum
def memory_plan(
    policy: Policy,
    experience_tokens: int = 0,
    *,
    state_tokens: int = 512,
    reply_tokens: int | None = None,
    batch_size: int = 32,
    retention: float = 0.0,
    batch_tokens: int | None = None,
    texts: int = 1,
) -> MemoryPlan:
    """Plan the memory that `distill` needs, and choose micro-batches that fit.

    Runs the model on a few hundred tokens; weights, gradients and modes stay as they are.

    Args:
        policy: the model.
        experience_tokens: length of the longest experience text.
        state_tokens: length of the longest state's prompt.
        reply_tokens: max_new_tokens (None: that of the policy's prompt set).
        batch_size: states per step.
        retention: share of the states with which the student reads the experience too.
        batch_tokens: tokens of a micro-batch (None: chosen here).
        texts: number of different experience texts, from which each sample draws one.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is too small or too large.
    """
    given.a_policy(policy, adapters=True)
    if reply_tokens is None:
        reply_tokens = load_prompt_set(policy.default_prompt_set).max_new_tokens
    experience_tokens = given.count("experience_tokens", experience_tokens, 0)
    state_tokens = given.count("state_tokens", state_tokens)
    reply, texts = given.count("reply_tokens", reply_tokens), given.count("texts", texts)
    batch_size = given.count("batch_size", batch_size)
    if not 0 <= (retention := given.setting("retention", retention, float)) <= 1:
        raise ValueError(f"retention={retention}: need a share from 0 to 1")
    batch_tokens = None if batch_tokens is None else given.count("batch_tokens", batch_tokens)
    shared = experience_tokens >= min_shared_prefix(policy) and can_share(policy)
    retained, own = math.ceil(retention * batch_size), state_tokens + reply
    student = own + experience_tokens * bool(retained)
    teacher = own + experience_tokens * (not shared)
    head, cuda = policy.head, policy.device.type == "cuda"
    kl_rows = min(head.chunk_rows, batch_size * reply)
    lora = {p for n, p in policy.model.named_parameters() if ".lora_" in n}
    kv, free = _cache_bytes(policy) * experience_tokens * shared, free_bytes(policy.device)
    spare = TEXTS_SHARE * (psutil.virtual_memory().available if cuda else free)
    kept = max(1, min(texts, int(spare / max(kv, 1))))
    held = {
        "weights": sum(p.nbytes for p in policy.model.parameters() if p not in lora),
        "adapters": sum(p.nbytes for p in lora),
        # AdamW's two moments, in 8 or 32 bits
        "optimiser": (2 if cuda else 8) * sum(p.numel() for p in policy.trainable()),
        # a card holds only the text in use; the others wait in main memory
        "keys and values of experience": kv * (1 if cuda else kept),
    }
    room = CUDA_SHARE * (free - held["optimiser"] - held["keys and values of experience"])
    reading = _cost(policy, lambda n: _read(policy, n))
    training = _cost(policy, lambda n: _train(policy, n, kl_rows))
    if checkpointing := training(student) > room:
        with checkpointed(policy):
            training = _cost(policy, lambda n: _train(policy, n, kl_rows))
    share = room if cuda else min(room, CPU_SHARE)

    def micro_batch(cost: _Cost, longest: int, whole: int) -> int:  # a longer sequence goes alone
        most = min(MAX_BATCH_TOKENS, int((share - cost.fixed) / cost.per_token))
        return max(longest, min(batch_tokens or most, whole))

    step, packs = batch_size * student, shared and student <= MAX_PACKED and can_pack(policy)
    if retained and packs:
        step = max(experience_tokens + retained * own, (batch_size - retained) * own)
    learned = micro_batch(training, student, step)
    scored = micro_batch(reading, teacher, batch_size * teacher)
    # after a shared prefix: scores of own tokens for a block of queries, three times in float32
    told = batch_size * reply * head.weight.shape[1] * head.weight.itemsize  # hidden states
    heads = shared * getattr(policy.base_lm.config.get_text_config(), "num_attention_heads", 0)
    scores = 12 * min(heads * teacher * scored, max(MAX_SCORES, heads * teacher))
    rows = min(batch_size, max(1, BATCH_TOKENS // student))
    asked = rows * state_tokens + experience_tokens * bool(retained) * (1 if shared else rows)
    # a packed row's mask, in the model's dtype and in booleans
    mask = packs * min(learned, MAX_PACKED) ** 2 * (policy.base_lm.dtype.itemsize + 1)
    phases = {
        "sampling": _cache_bytes(policy) * (asked + rows * reply)
        + 16 * len(head.weight) * rows
        + reading(asked),
        "reading the experience": reading(experience_tokens) if shared else 0,
        "scoring": reading(scored) + told + scores,
        "training": training(learned) + told + mask,
    }
    return MemoryPlan(held, phases, free, learned, scored, checkpointing, kept)


@contextmanager
def checkpointed(policy: Policy) -> Iterator[None]:
    """Recompute each layer in the backward pass instead of storing results (in train mode only)."""
    # Transformers is renaming these two methods, and older versions lack the new names
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        # this kind needs no trainable inputs
        policy.base_lm.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            yield
        finally:
            policy.base_lm.gradient_checkpointing_disable()


@torch.no_grad()
def _read(policy: Policy, tokens: int) -> None:
    """Do what the teacher does."""
    with policy.adapter("teacher", merge=True), policy.eval_mode():
        policy.hidden(policy.some_ids(tokens))


def _train(policy: Policy, tokens: int, kl_rows: int) -> None:
    """Do what the student does, with `kl_rows` rows of the loss."""
    with policy.adapter("student"), policy.train_mode():
        hidden = policy.hidden(policy.some_ids(tokens))[0]
        hidden = hidden[torch.arange(kl_rows, device=hidden.device) % tokens]
        loss = losses.reverse_kl(hidden, hidden.detach(), policy.head)
        torch.autograd.grad(loss, policy.trainable(), allow_unused=True)  # leaves .grad alone


@torch.no_grad()
def _cache_bytes(policy: Policy) -> int:
    """Return the bytes of keys and values per token; layers with a fixed-size state have none."""
    ids, cache = policy.some_ids(8), DynamicCache(config=policy.base_lm.config)
    try:
        policy.hidden(ids, cache)
    except ValueError:  # MiniMax takes only a cache of its own
        made = policy.base_lm.base_model(input_ids=ids, use_cache=True)
        cache = getattr(made, policy.cache_argument)
    kv = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    return sum(x.nbytes for x in kv if x is not None) // 8


def _cost(policy: Policy, work: Callable[[int], None]) -> _Cost:
    """Fit a straight line through the peak bytes of two trial runs."""
    short, long = PROBE_TOKENS
    if policy.device.type == "cuda":
        work(short)  # the first run allocates workspaces that stay
    low = peak_bytes(lambda: work(short), policy.device)
    high = peak_bytes(lambda: work(long), policy.device)
    per_token = max(1.0, (high - low) / (long - short))
    return _Cost(low - per_token * short, per_token)


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Return the peak bytes of tensors that `work` holds, on top of those held before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with _Alive() as alive:
        work()
    return alive.most


class _Alive(TorchDispatchMode):
    """Counts the bytes of tensors created inside the context, as long as they live."""

    now = most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        # views and in-place results are not new
        known = {x.untyped_storage().data_ptr() for x in _tensors((args, kwargs.values()))}
        for x in _tensors([out]):
            storage = x.untyped_storage()
            if storage.data_ptr() not in known:
                known.add(storage.data_ptr())
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return out

    def _add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for x in values:
        if isinstance(x, torch.Tensor):
            yield x
        elif isinstance(x, Iterable) and not isinstance(x, str):
            yield from _tensors(x)


def free_bytes(device: torch.device) -> int:
    """Return the free bytes of a device; for the CPU, those of main memory."""
    if device.type == "cuda":
        # memory that the allocator caches is free too; a process can be limited to a share
        free, total = torch.cuda.mem_get_info(device)
        share = torch.cuda.get_per_process_memory_fraction(device) * total
        free = min(free + torch.cuda.memory_reserved(device), share)
        return int(free - torch.cuda.memory_allocated(device))
    return psutil.virtual_memory().available

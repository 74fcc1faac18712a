"""What a distillation step will need of memory: `memory_plan`.

What it does: runs the model on a few tokens, watches what it holds (CUDA's own counter; on a CPU
each tensor) and extrapolates in a straight line, which is exact enough because neither logits nor
attention scores of all tokens are ever held. From that follow the size of micro-batches and whether
gradient checkpointing is needed. What it does not: know what other programs will take, or what an
allocator loses to gaps.
"""

from __future__ import annotations

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
from .policy import Policy
from .prefix import can_share, min_shared_prefix
from .scoring import BATCH_TOKENS

MAX_BATCH_TOKENS = 16_384  # of a micro-batch; more keeps no card busier
CPU_SHARE = 2**29  # bytes that a micro-batch may take on a CPU, which small ones keep busy too
TEXTS_SHARE = 0.5  # of free main memory, for the keys and values of all experience texts
CUDA_SHARE = 0.8  # of what is free on the device; the rest is for gaps
PROBE_TOKENS = 32, 96  # of the trial runs


@dataclass(frozen=True)
class MemoryPlan:
    """What fits and why, in bytes; print it for a table."""

    held: dict[str, int]
    """What stays: weights and adapters (loaded already), optimiser, the experience's KV."""
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
    kept_texts: int = 1
    """Experience texts whose keys and values stay in main memory; others are read again."""

    @property
    def peak(self) -> int:
        """Bytes at the worst moment, above the loaded policy."""
        loaded = self.held["weights"] + self.held["adapters"]
        return sum(self.held.values()) - loaded + max(self.phases.values())

    @property
    def fits(self) -> bool:
        """Whether the worst moment fits what is free."""
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
    """Bytes of some work on so many tokens."""

    fixed: float
    per_token: float

    def __call__(self, tokens: int) -> int:
        return int(self.fixed + self.per_token * tokens)


# why: a third of it says what its arguments are, the rest is one sum
def memory_plan(
    policy: Policy,
    experience_tokens: int = 0,
    *,
    state_tokens: int = 512,
    reply_tokens: int | None = None,
    batch_size: int = 32,
    retain: bool = False,
    batch_tokens: int | None = None,
    texts: int = 1,
) -> MemoryPlan:
    """What `distill` will need with such an experience, and the micro-batches that fit.

    Runs the model on some hundred tokens and leaves its weights, gradients and modes alone.

    Args:
        policy: the model.
        experience_tokens: of the longest experience text.
        state_tokens: of the longest state's prompt.
        reply_tokens: max_new_tokens (None: of the policy's prompt set).
        batch_size: states per step.
        retain: whether the student, too, reads the experience: its sequences are that much longer.
        batch_tokens: of a micro-batch; None chooses.
        texts: different experience texts, of which each sample draws one.

    Raises:
        TypeError: one of them is no whole number.
        ValueError: one is too small.
    """
    given.a_policy(policy, adapters=True)
    if reply_tokens is None:
        reply_tokens = load_prompt_set(policy.default_prompt_set).max_new_tokens
    experience_tokens = given.count("experience_tokens", experience_tokens, 0)
    state_tokens = given.count("state_tokens", state_tokens)
    reply, texts = given.count("reply_tokens", reply_tokens), given.count("texts", texts)
    batch_size, retain = given.count("batch_size", batch_size), given.one("retain", retain, bool)
    batch_tokens = None if batch_tokens is None else given.count("batch_tokens", batch_tokens)
    shared = experience_tokens >= min_shared_prefix(policy) and can_share(policy)
    student = state_tokens + reply + experience_tokens * retain
    teacher = state_tokens + reply + experience_tokens * (not shared)
    head, cuda = policy.head, policy.device.type == "cuda"
    kl_rows = min(head.chunk_rows, batch_size * reply)
    lora = {p for n, p in policy.model.named_parameters() if ".lora_" in n}
    kv, free = _cache_bytes(policy) * experience_tokens * shared, free_bytes(policy.device)
    spare = TEXTS_SHARE * (psutil.virtual_memory().available if cuda else free)
    kept = max(1, min(texts, int(spare / max(kv, 1))))
    held = {
        "weights": sum(p.nbytes for p in policy.model.parameters() if p not in lora),
        "adapters": sum(p.nbytes for p in lora),
        # AdamW's two moments, of 8 or of 32 bits
        "optimiser": (2 if cuda else 8) * sum(p.numel() for p in policy.trainable()),
        # a card holds those in use, the others wait in main memory
        "keys and values of experience": kv * (1 if cuda else kept),
    }
    room = CUDA_SHARE * (free - held["optimiser"] - held["keys and values of experience"])
    reading = _cost(policy, lambda n: _read(policy, n))
    training = _cost(policy, lambda n: _train(policy, n, kl_rows))
    if checkpointing := training(student) > room:
        with checkpointed(policy):
            training = _cost(policy, lambda n: _train(policy, n, kl_rows))
    share = room if cuda else min(room, CPU_SHARE)

    def micro_batch(cost: _Cost, longest: int) -> int:  # what is longer goes alone
        most = min(MAX_BATCH_TOKENS, int((share - cost.fixed) / cost.per_token))
        return max(longest, min(batch_tokens or most, batch_size * longest))

    learned, scored = micro_batch(training, student), micro_batch(reading, teacher)
    # behind a beginning: scores of own tokens, of some queries or of one; three times in float32
    told = batch_size * reply * head.weight.shape[1] * head.weight.itemsize  # hidden states
    heads = shared * getattr(policy.base_lm.config.get_text_config(), "num_attention_heads", 0)
    scores = 12 * min(heads * teacher * scored, max(MAX_SCORES, heads * teacher))
    rows = min(batch_size, max(1, BATCH_TOKENS // student))
    per_row = _cache_bytes(policy) * student + 16 * len(head.weight)
    phases = {
        "sampling": per_row * rows + reading(rows * (student - reply)),
        "reading the experience": reading(experience_tokens) if shared else 0,
        "scoring": reading(scored) + told + scores,
        "training": training(learned) + told,
    }
    return MemoryPlan(held, phases, free, learned, scored, checkpointing, kept)


@contextmanager
def checkpointed(policy: Policy) -> Iterator[None]:
    """Recompute each layer in the backward pass (in train mode only), rather than keep results."""
    with warnings.catch_warnings():
        # Transformers renames these two, and older ones lack the new names
        warnings.simplefilter("ignore", FutureWarning)
        # this kind needs no trainable inputs
        policy.base_lm.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            yield
        finally:
            policy.base_lm.gradient_checkpointing_disable()


@torch.no_grad()
def _read(policy: Policy, tokens: int) -> None:
    """What the teacher does."""
    with policy.adapter("teacher", merge=True), policy.eval_mode():
        policy.hidden(_ids(policy, tokens))


def _train(policy: Policy, tokens: int, kl_rows: int) -> None:
    """What the student does, with so many rows of the loss."""
    with policy.adapter("student"), policy.train_mode():
        hidden = policy.hidden(_ids(policy, tokens))[0]
        hidden = hidden[torch.arange(kl_rows, device=hidden.device) % tokens]
        loss = losses.reverse_kl(hidden, hidden.detach(), policy.head)
        torch.autograd.grad(loss, policy.trainable(), allow_unused=True)  # leaves .grad alone


def _ids(policy: Policy, tokens: int) -> torch.Tensor:
    return torch.arange(tokens, device=policy.device)[None] % len(policy.head.weight)


@torch.no_grad()
def _cache_bytes(policy: Policy) -> int:
    """Bytes of keys and values per token; layers with a state of fixed size have none."""
    cache = DynamicCache(config=policy.base_lm.config)
    policy.hidden(_ids(policy, 8), cache)
    kv = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    return sum(x.nbytes for x in kv if x is not None) // 8


def _cost(policy: Policy, work: Callable[[int], None]) -> _Cost:
    """A straight line through the peak bytes of two trial runs."""
    short, long = PROBE_TOKENS
    if policy.device.type == "cuda":
        work(short)  # the first run allocates workspaces that stay
    low = peak_bytes(lambda: work(short), policy.device)
    high = peak_bytes(lambda: work(long), policy.device)
    per_token = max(1.0, (high - low) / (long - short))
    return _Cost(low - per_token * short, per_token)


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
    """Counts the bytes of the tensors made within, as long as they live."""

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
    """Bytes that are free on a device; of the CPU, in main memory."""
    if device.type == "cuda":
        # what the allocator keeps for later is free too; a process may be held to a share
        free, total = torch.cuda.mem_get_info(device)
        share = torch.cuda.get_per_process_memory_fraction(device) * total
        free = min(free + torch.cuda.memory_reserved(device), share)
        return int(free - torch.cuda.memory_allocated(device))
    return psutil.virtual_memory().available

"""Shared prefixes: for prompts that begin alike, keys and values are computed and stored once.

`SharedPrefix` holds the KV of a prefix, and lets a forward pass or Transformers' `generate` attend
to it in addition to each row's own tokens, whatever the batch. The result is exact up to rounding:
attention over both parts is combined from their softmax sums (`attention`). There are no gradients
(the teacher and sampling need none). Models with sliding windows or recurrent layers work without
it, see `can_share`.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import DynamicCache

from .attention import prefix_obstacle, prefixed_cache
from .policy import Policy

PREFIX_PASS = 1.25  # cost of a pass that attends to a shared prefix, measured with SmolLM2-135M

_shares: WeakKeyDictionary[Policy, bool] = WeakKeyDictionary()  # results of can_share


class SharedPrefix:
    """The KV of `ids` under the active adapter.

    Args:
        policy: the model.
        ids: token ids of the prefix.
    """

    @torch.no_grad()
    def __init__(self, policy: Policy, ids: Sequence[int]) -> None:
        cache = DynamicCache(config=policy.base_lm.config)
        policy.hidden(torch.tensor([list(ids)], device=policy.device), cache)
        layers: list[Any] = cache.layers
        self.ids, self.kv = list(ids), [(layer.keys, layer.values) for layer in layers]

    def to(self, device: str | torch.device) -> SharedPrefix:
        """Return it on a device; nothing is copied if it is already there."""
        moved = copy.copy(self)
        moved.kv = [(k.to(device), v.to(device)) for k, v in self.kv]
        return moved

    def crop(self, n: int) -> None:
        """Shorten it to its first n tokens."""
        self.ids, self.kv = self.ids[:n], [(k[:, :, :n], v[:, :, :n]) for k, v in self.kv]

    def as_cache(self, policy: Policy) -> AbstractContextManager[DynamicCache]:
        """Return an empty cache that continues it: its first token has position len(ids)."""
        return prefixed_cache(policy.base_lm, self.to(policy.device).kv)


def min_shared_prefix(policy: Policy) -> int:
    """Return the fewest tokens for which a shared prefix is worth a pass.

    On a CPU each token costs time, on a GPU each kernel.
    """
    return 64 if policy.device.type == "cpu" else 256


def group_by_shared_prefix(
    prompts: Sequence[Sequence[int]], least: int
) -> list[tuple[int, list[int]]]:
    """Group prompts that share their first `least` tokens.

    Returns:
        Pairs (tokens that the group shares, or 0; indices of its prompts).
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt[:least]) if len(prompt) > least else (), []).append(i)
    single, pairs = groups.pop((), []), []
    for rows in groups.values():
        # sorted; a group ends where the next prompt would halve its prefix
        rows.sort(key=lambda i: list(prompts[i]))
        group, shared = [rows[0]], len(prompts[rows[0]]) - 1
        for i in rows[1:]:
            n = shared_length(prompts[group[0]][:shared], prompts[i])
            if n < shared / 2 and len(group) > 1:
                pairs.append((shared, group))
                group, shared = [i], len(prompts[i]) - 1
            else:
                group, shared = [*group, i], n
        pairs.append((shared, group))
    single += [group[0] for _, group in pairs if len(group) == 1]
    alone = [(0, sorted(single))] if single else []
    return alone + [(n, sorted(group)) for n, group in pairs if len(group) > 1]


def pass_tokens(policy: Policy) -> int:
    """Return the fixed cost of a pass, in tokens that could be read in the same time.

    On a CPU a pass reads all weights, whatever the number of tokens; in that time SmolLM2-135M and
    Qwen2.5-Coder-0.5B read about 40. On a GPU a pass waits for its kernels to be launched; in that
    time an H100 read 17,000 tokens with a model of 1.7 B, and a small card reads fewer.
    """
    return 40 if policy.device.type == "cpu" else 4_000


def join_small_groups(
    groups: list[tuple[int, list[int]]],
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    batch_tokens: int,
    pass_tokens: int,
) -> list[tuple[int, list[int]]]:
    """Join groups that save less than sampling them separately costs.

    Args:
        groups: as `group_by_shared_prefix` returns them.
        prompts: ids of each prompt.
        new_tokens: number of passes that sampling a batch takes.
        batch_tokens: most tokens in a batch.
        pass_tokens: cost of a pass, in tokens.
    """
    passes = new_tokens * pass_tokens

    def cost(shared: int, rows: list[int]) -> float:
        own = sum(len(prompts[i]) + new_tokens - shared for i in rows)
        batches = -(-own // max(1, batch_tokens))
        return batches * passes * (PREFIX_PASS if shared else 1) + own + shared

    apart, joined = [], []
    for shared, rows in groups:
        whole = sum(len(prompts[i]) + new_tokens for i in rows)
        if shared and cost(shared, rows) < whole / max(1, batch_tokens) * passes + whole:
            apart.append((shared, rows))
        else:
            joined += rows
    if not joined:
        return apart
    shared = min(shared_length(prompts[joined[0]], prompts[i]) for i in joined)
    worth = cost(shared, joined) < cost(0, joined)
    return [(shared * worth, sorted(joined)), *apart]


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the common prefix of a and b, less than len(b)."""
    return min(len(b) - 1, len(os.path.commonprefix([list(a), list(b[: len(a)])])))


def can_share(policy: Policy) -> bool:
    """Whether hidden states are the same with a shared prefix; if not, warn once and say why."""
    if policy not in _shares:
        try:
            with policy.eval_mode():
                reason = prefix_obstacle(policy.base_lm) or _trial(policy)
        except Exception as error:  # a model can raise anything on what it does not take
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            reason = f"a trial run failed ({reason})"
        if reason:
            alike = "prompts that begin alike are computed in full"
            warnings.warn(f"{policy.name}: {alike}, because {reason}", stacklevel=2)
        _shares[policy] = not reason
    return _shares[policy]


@torch.no_grad()
def _trial(policy: Policy) -> str:
    """Try two rows that share 8 tokens; return what is wrong with their hidden states, or ""."""
    ids = policy.some_ids(24).view(2, 12)
    ids[1, :8] = ids[0, :8]
    want = policy.hidden(ids)[:, 8:]
    with SharedPrefix(policy, ids[0, :8].tolist()).as_cache(policy) as cache:
        return trial_fault(policy.hidden(ids[:, 8:], cache), want)


def trial_fault(got: torch.Tensor, want: torch.Tensor) -> str:
    """Return how far hidden states [..., T, D] are off; "" if they are the same up to rounding.

    In 16 bits a row's median counts, because a few tokens can take another expert.
    """
    off, exact = (got - want).norm(dim=-1) / want.norm(dim=-1), want.dtype.itemsize >= 4
    worst = float((off if exact else off.median(-1).values).max())
    return "" if worst < (1e-4 if exact else 0.05) else f"a trial run was off by {worst:.0e}"

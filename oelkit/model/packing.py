"""Packing: the student's prompts that begin alike are read once, and gradients still reach all.

A batch of states often shares a system prompt, tools or an experience text. Such rows stand one
after another in a single row, behind their common prefix. A mask hides them from one another, and
each continues the positions of the prefix. So its keys and values are computed once, forward and
backward, and losses and gradients are the same up to rounding. (`prefix` does this without
gradients, for any number of rows.)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain
from weakref import WeakKeyDictionary

import torch

from .policy import Policy
from .prefix import (
    can_share,
    group_by_shared_prefix,
    join_small_groups,
    min_shared_prefix,
    pass_tokens,
    trial_fault,
)
from .scoring import fed, reply_hidden, token_batches

MAX_PACKED = 8_192  # tokens in a packed row; its mask has the square of it
ALIGNED = 16  # attention kernels on CUDA copy a mask whose rows are not a multiple of this

_packs: WeakKeyDictionary[Policy, bool] = WeakKeyDictionary()  # results of can_pack


def packed_batches(
    policy: Policy, prompts: Sequence[Sequence[int]], lengths: Sequence[int], batch_tokens: int
) -> list[tuple[int, list[int]]]:
    """Group rows into micro-batches of at most batch_tokens; a longer row goes alone.

    Args:
        policy: the model.
        prompts: ids of each row's prompt.
        lengths: tokens of each prompt and its reply.
        batch_tokens: most tokens in a micro-batch, padding included (packed rows have none).

    Returns:
        Pairs (tokens of the prefix that `packed_hidden` reads once, or 0; indices of the rows).
    """
    groups = group_by_shared_prefix(prompts, min_shared_prefix(policy))
    if any(shared for shared, _ in groups) and can_pack(policy):
        groups = join_small_groups(groups, prompts, 1, batch_tokens, pass_tokens(policy))
    else:
        groups = [(0, list(range(len(prompts))))]
    batches = []
    for shared, group in groups:
        room = min(batch_tokens, MAX_PACKED) - shared
        if max(lengths[i] for i in group) - shared > room:
            shared, room = 0, batch_tokens
        for rows in token_batches([lengths[i] - shared for i in group], room, padded=not shared):
            batches.append((shared if len(rows) > 1 else 0, [group[row] for row in rows]))
    return batches


def packed_hidden(
    policy: Policy, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], shared: int
) -> torch.Tensor:
    """Return what `reply_hidden` returns, reading the prompts' first `shared` tokens once.

    Args:
        policy: the model; `can_pack` must hold if shared is above 0.
        prompts: ids of each prompt, longer than `shared`.
        replies: ids of each reply.
        shared: number of tokens with which all prompts begin.
    """
    if not shared:
        return reply_hidden(policy, prompts, replies)
    own = [fed(p, r)[shared:] for p, r in zip(prompts, replies, strict=True)]
    ids = [*prompts[0][:shared], *chain.from_iterable(own)]
    ends = list(accumulate(map(len, own), initial=shared))[1:]
    row_of = [0] * shared + [i for i, part in enumerate(own, 1) for _ in part]
    positions = [*range(shared), *(shared + at for part in own for at in range(len(part)))]
    rest = -len(ids) % ALIGNED
    number = torch.tensor([*row_of, *[-1] * rest], device=policy.device)
    seen = ((number[:, None] == number) | (number == 0)).tril()
    # one tensor for all layers: a mask of booleans would be converted and kept once per layer
    mask = torch.zeros(seen.shape, dtype=policy.base_lm.dtype, device=policy.device)
    mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)
    hidden = policy.hidden(
        torch.tensor([[*ids, *[policy.pad_id] * rest]], device=policy.device),
        attention_mask=mask[None, None],
        position_ids=torch.tensor([[*positions, *[0] * rest]], device=policy.device),
    )[0]
    # a reply of n tokens is predicted at the last n places of its row, or n = 0 at none
    return torch.cat([hidden[end - len(r) : end] for end, r in zip(ends, replies, strict=True)])


def can_pack(policy: Policy) -> bool:
    """Whether hidden states are the same when packed, found by a trial run if `can_share` holds."""
    if policy not in _packs:
        _packs[policy] = can_share(policy) and _trial(policy)
    return _packs[policy]


@torch.no_grad()
def _trial(policy: Policy) -> bool:
    ids = policy.some_ids(24)[0].tolist()
    prompts, replies = [ids[:8] + ids[n : n + 2] for n in (8, 16)], [ids[10:16], ids[18:]]
    with policy.eval_mode():
        try:
            want = reply_hidden(policy, prompts, replies)
            got = packed_hidden(policy, prompts, replies, 8)
        except Exception:  # a model can raise anything on what it does not take
            return False
    return not trial_fault(got.view(2, 6, -1), want.view(2, 6, -1))

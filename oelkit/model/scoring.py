"""Hidden states and log-probabilities of given replies, micro-batch by micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch.nn.utils.rnn import pad_sequence

from .policy import Policy
from .prefix import SharedPrefix

BATCH_TOKENS = 32_768  # prompt + reply tokens sampled at once


def reply_hidden(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    replies: Sequence[Sequence[int]],
    prefix: SharedPrefix | None = None,
) -> torch.Tensor:
    """Return the hidden states [N, D] that predict the N reply tokens, row after row.

    Runs one forward pass over one micro-batch, under the current adapter and grad mode.

    Args:
        policy: the model.
        prompts: ids of each prompt.
        replies: ids of each reply.
        prefix: a prefix of all prompts, computed earlier under the same adapter.

    Raises:
        ValueError: a prompt is empty, or prompt + reply is longer than the context.
    """
    skip, rows, starts = len(prefix.ids) if prefix else 0, [], []
    for i, (p, r) in enumerate(zip(prompts, replies, strict=True)):
        if not p or len(p) + len(r) > policy.context_length:
            raise ValueError(
                f"sequence {i}: {len(p)} prompt and {len(r)} reply tokens; the prompt must not be "
                f"empty and both together must fit the context of {policy.context_length}"
            )
        rows.append(torch.tensor(fed(p, r)[skip:]))
        starts.append(len(p) - 1 - skip)
    ids = pad_sequence(rows, batch_first=True, padding_value=policy.pad_id).to(policy.device)
    with prefix.as_cache(policy) if prefix else nullcontext() as cache:
        hidden = policy.hidden(ids, cache)
    ends = [start + len(r) for start, r in zip(starts, replies, strict=True)]
    return torch.cat([row[a:b] for row, a, b in zip(hidden, starts, ends, strict=True)])


def fed(prompt: Sequence[int], reply: Sequence[int]) -> list[int]:
    """Return the ids of a row; the last reply token is not fed, because it predicts nothing."""
    return [*prompt, *reply][:-1] if len(reply) else [*prompt]


@torch.no_grad()
def token_logprobs(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    replies: Sequence[Sequence[int]],
    *,
    adapter: str | None = "student",
    temperature: float = 1.0,
    batch_tokens: int = 16_384,
) -> list[torch.Tensor]:
    """Return the log-probability of each reply token: float32 [len(reply)] per reply, in order."""
    head, out = policy.head, {}
    lengths = [len(p) + len(r) for p, r in zip(prompts, replies, strict=True)]
    with policy.adapter(adapter, merge=True), policy.eval_mode():
        for batch in token_batches(lengths, batch_tokens):
            ids = [replies[i] for i in batch]
            hidden = reply_hidden(policy, [prompts[i] for i in batch], ids)
            flat = torch.tensor([t for y in ids for t in y], dtype=torch.long, device=hidden.device)
            rows, parts = head.chunk_rows, []  # never all [N, V] logits at once
            for h, t in zip(hidden.split(rows), flat.split(rows), strict=True):
                logprobs = head.logits(h, temperature).log_softmax(-1)
                parts.append(logprobs.gather(-1, t[:, None])[:, 0])
            per_reply = torch.cat(parts).cpu().split([len(y) for y in ids])
            out |= zip(batch, per_reply, strict=True)
    return [out[i] for i in range(len(prompts))]


def token_batches(
    lengths: Sequence[int], batch_tokens: int, padded: bool = True
) -> list[list[int]]:
    """Group indices by similar length, each group at most batch_tokens, its padding included.

    A longer sequence goes alone.
    """
    groups: list[list[int]] = []
    # longest first: it sets the group's width
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        rows = [*groups[-1], i] if groups else []
        held = len(rows) * lengths[rows[0]] if rows and padded else sum(lengths[j] for j in rows)
        if not rows or held > batch_tokens:
            groups.append([])
        groups[-1].append(i)
    return groups

"""Sampling replies: token ids in, token ids out, for many prompts at once.

What it does: batches prompts of like length, samples with Transformers' `generate`, and now and
then drops the rows that have finished; where prompts begin alike (an experience), the beginning is
computed and kept once, and a prompt that is there several times (games on one map, many samples of
a state) is read once. What it does not: parse replies, play games, tokenise. A reply is exactly the
ids that were sampled; the teacher scores those, never a re-tokenised text.

In float32 greedy replies do not depend on the batch. In 16 bits they may: another batch shape sums
in another order, two nearly equal logits can swap, and the replies differ from that token on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from tqdm import tqdm
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from .policy import Policy, token_batches
from .prefix import GrowingLayer, SharedPrefix, can_share, group_by_shared_prefix, min_shared_prefix

BATCH_TOKENS = 32_768  # prompt + reply tokens that are sampled at once
PRUNE_EVERY = 16  # new tokens between two looks at which rows have finished


@dataclass(frozen=True)
class Reply:
    """What the model said to one prompt."""

    ids: list[int]
    """The sampled ids, the end-of-sequence token included if one was sampled."""
    text: str
    """Those ids decoded, special tokens left out."""
    truncated: bool
    """True where max_new_tokens cut the reply off."""


def generate(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.7,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    adapter: str | None = "student",
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = False,
) -> list[Reply]:
    """One reply a prompt, in the order given; temperature=0 is greedy.

    Of the model's own generation_config only the end-of-sequence ids count. The seed fixes the
    replies for the same prompts and batch_tokens (prompt + reply tokens in a batch at most: lower
    it when memory runs out); the global random generators are left alone. adapter: "student",
    "teacher" or None for the base model. ValueError, naming the index, where a prompt is empty or
    does not leave room for max_new_tokens in the context."""
    if max_new_tokens < 1 or temperature < 0 or not 0 < top_p <= 1 or top_k < 0:
        raise ValueError(
            f"max_new_tokens={max_new_tokens}, temperature={temperature}, top_p={top_p}, top_k={top_k}: "
            "need max_new_tokens >= 1, temperature >= 0, 0 < top_p <= 1 and top_k >= 0"
        )
    for i, prompt in enumerate(prompts):
        if not prompt or len(prompt) + max_new_tokens > policy.context_length:
            raise ValueError(
                f"prompt {i} has {len(prompt)} tokens: it must not be empty and must leave room for "
                f"{max_new_tokens} new ones in the context of {policy.context_length}"
            )
    # fresh, so that the folder's own penalties and cut-offs do not alter the distribution that
    # training assumes
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": top_k}
        if temperature
        else {}
    )
    eos = policy.eos_ids
    config = GenerationConfig(eos_token_id=eos or None, pad_token_id=policy.pad_id, **sampling)
    causal, out = policy.base_lm, [None] * len(prompts)
    own, training = causal.generation_config, policy.model.training
    devices = [policy.device] if policy.device.type == "cuda" else []
    bar = tqdm(
        total=len(prompts), desc="generate", unit="reply", disable=not progress, mininterval=1
    )
    try:
        causal.generation_config = config
        policy.model.eval()
        with (
            torch.random.fork_rng(devices),
            torch.no_grad(),
            policy.adapter(adapter, merge=True),
            bar,
        ):
            torch.manual_seed(seed)
            groups = group_by_shared_prefix(prompts, min_shared_prefix(policy))
            if any(shared for shared, _ in groups) and not can_share(policy):
                groups = [(0, list(range(len(prompts))))]
            for shared, group in groups:
                prefix = SharedPrefix(policy, prompts[group[0]][:shared]) if shared else None
                for rows in token_batches(
                    [len(prompts[i]) - shared + max_new_tokens for i in group], batch_tokens
                ):
                    batch = [group[row] for row in rows]
                    for i, ids in zip(
                        batch,
                        _sample(policy, [prompts[i] for i in batch], max_new_tokens, eos, prefix),
                    ):
                        out[i] = Reply(ids, policy.decode(ids), ids[-1] not in eos)
                    bar.update(len(batch))
    finally:
        causal.generation_config = own
        policy.model.train(training)
    return out


def _sample(
    policy: Policy,
    prompts: list[Sequence[int]],
    max_new_tokens: int,
    eos: list[int],
    prefix: SharedPrefix | None = None,
) -> list[list[int]]:
    """Sampled ids of one batch; every PRUNE_EVERY tokens the finished rows leave the batch and its KV
    cache.
    """
    begin, pad, device = prefix.ids if prefix else [], policy.pad_id, policy.device
    prompts = [list(p[len(begin) :]) for p in prompts]
    width = max(map(len, prompts))
    ids = torch.tensor([begin + [pad] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor(
        [[1] * len(begin) + [0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device
    )
    ends = torch.tensor(eos, device=device)
    first: dict[tuple[int, ...], int] = {}  # each different prompt, and its number
    copies = [first.setdefault(tuple(p), len(first)) for p in prompts]
    with (
        prefix.as_cache(policy)
        if prefix
        else nullcontext(DynamicCache(config=policy.base_lm.config)) as cache
    ):
        cache.layers = [
            GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
        ]
        if len(first) < len(prompts) and width > 1:
            once = [copies.index(n) for n in range(len(first))]
            policy.base_lm.base_model(
                input_ids=ids[once, len(begin) : -1],
                attention_mask=mask[once, :-1],
                past_key_values=cache,
                use_cache=True,
                position_ids=(mask[once].cumsum(1) - 1).clamp(min=0)[:, len(begin) : -1],
            )
            cache.batch_select_indices(torch.tensor(copies, device=device))
        rows, replies = list(range(len(prompts))), [[] for _ in prompts]
        for start in range(0, max_new_tokens, PRUNE_EVERY):
            before = ids.shape[1]
            ids = policy.base_lm.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                max_new_tokens=min(PRUNE_EVERY, max_new_tokens - start),
            )
            new = ids[:, before:]
            ended = torch.isin(new, ends)
            for row, tokens, end in zip(rows, new.tolist(), ended.tolist()):
                replies[row] += tokens[: end.index(True) + 1] if True in end else tokens
            alive = (~ended.any(1)).nonzero()[:, 0]
            if not len(alive):
                break
            if len(alive) < len(rows):
                cache.batch_select_indices(alive)
                ids, mask, rows = ids[alive], mask[alive], [rows[i] for i in alive.tolist()]
            mask = torch.cat([mask, mask.new_ones(len(rows), ids.shape[1] - before)], 1)
    return replies

"""Sampling replies: token ids in, token ids out, for many prompts at once.

What it does: batches prompts of like length, samples with Transformers' `generate`, and now and
then drops the rows that have finished; where prompts begin alike (an experience), the prefix is
computed and kept once, and a prompt that is there several times (games on one map, many samples of
a state) is read once. What it does not: parse replies, play games, tokenise. A reply is exactly the
ids that were sampled; the teacher scores those, never a re-tokenised text.

In float32 greedy replies do not depend on the batch. In 16 bits they may: another batch shape sums
in another order, two nearly equal logits can swap, and the replies differ from that token on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GenerationConfig

from ..config import Sampling
from ..progress import Bar
from ..prompts import load_prompt_set
from .attention import growing_cache
from .lora import seeded
from .policy import Policy
from .prefix import SharedPrefix, can_share, group_by_shared_prefix, min_shared_prefix
from .scoring import token_batches

BATCH_TOKENS = 32_768  # prompt + reply tokens that are sampled at once
PRUNE_EVERY = 16  # new tokens between two looks at which rows have finished


@dataclass(frozen=True)
class Reply:
    """What the model answered to one prompt."""

    ids: list[int]
    """The sampled ids, the end-of-sequence token included if one was sampled."""
    text: str
    """Those ids decoded, with no special tokens but those that mark a thought."""
    truncated: bool
    """True where max_new_tokens cut the reply off."""


def generate(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling | None = None,
    *,
    seed: int = 0,
    adapter: str | None = "student",
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = False,
    **changes: Any,
) -> list[Reply]:
    """One reply per prompt, in the order given.

    Of the model's own generation_config only the end-of-sequence ids count.

    Args:
        policy: the model.
        prompts: token ids of each prompt.
        sampling: how to draw (None: the defaults of `Sampling`).
        seed: fixes the replies for the same prompts and batch_tokens; the global random generators
            are left alone.
        adapter: "student", "teacher" or None for the base model.
        batch_tokens: prompt + reply tokens in a batch at most; lower it when memory runs out.
        progress: show a bar.
        **changes: fields of `sampling` as keywords (temperature=0, max_new_tokens=64).

    Raises:
        ValueError: a prompt (its index is named) is empty or leaves no room for max_new_tokens in
            the context; settings that make no sense.
    """
    sampling = replace(sampling or Sampling(), **changes)
    new_tokens = sampling.max_new_tokens
    if new_tokens is None:
        new_tokens = load_prompt_set(policy.default_prompt_set).max_new_tokens
    _check(policy, prompts, sampling, new_tokens)
    if not isinstance(policy, Policy):  # an exported model in plain Transformers, say: see `plain`
        return policy.generate(prompts, replace(sampling, max_new_tokens=new_tokens), seed)
    replies: dict[int, Reply] = {}
    eos, rng = policy.eos_ids, seeded(seed, policy.device)
    bar = Bar("generate", len(prompts), "reply", progress)
    with _generating(policy, sampling), rng, torch.no_grad(), policy.adapter(adapter, True), bar:
        groups = group_by_shared_prefix(prompts, min_shared_prefix(policy))
        if any(shared for shared, _ in groups) and not can_share(policy):
            groups = [(0, list(range(len(prompts))))]
        for shared, group in groups:
            prefix = SharedPrefix(policy, prompts[group[0]][:shared]) if shared else None
            lengths = [len(prompts[i]) - shared + new_tokens for i in group]
            for rows in token_batches(lengths, batch_tokens):
                batch = [group[row] for row in rows]
                sampled = _sample(policy, [prompts[i] for i in batch], new_tokens, prefix)
                for i, ids in zip(batch, sampled, strict=True):
                    replies[i] = Reply(ids, policy.reply_text(prompts[i], ids), ids[-1] not in eos)
                bar.update(len(batch))
    return [replies[i] for i in range(len(prompts))]


def _check(policy: Policy, prompts: Sequence[Sequence[int]], s: Sampling, new_tokens: int) -> None:
    if new_tokens < 1 or s.temperature < 0 or not 0 < s.top_p <= 1 or s.top_k < 0:
        raise ValueError(
            f"max_new_tokens={new_tokens}, temperature={s.temperature}, top_p={s.top_p}, "
            f"top_k={s.top_k}: need max_new_tokens >= 1, temperature >= 0, 0 < top_p <= 1 and "
            "top_k >= 0"
        )
    for i, prompt in enumerate(prompts):
        if not prompt or len(prompt) + new_tokens > policy.context_length:
            raise ValueError(
                f"prompt {i} has {len(prompt)} tokens: it must not be empty and must leave room "
                f"for {new_tokens} new ones in the context of {policy.context_length}"
            )


@contextmanager
def _generating(policy: Policy, s: Sampling) -> Iterator[None]:
    """Eval mode, and a fresh generation_config.

    The folder's own penalties and cut-offs would alter the distribution that training assumes.
    """
    draw = {"do_sample": True, "temperature": s.temperature, "top_p": s.top_p, "top_k": s.top_k}
    base_lm, training = policy.base_lm, policy.model.training
    own = base_lm.generation_config
    base_lm.generation_config = GenerationConfig(
        eos_token_id=policy.eos_ids or None,
        pad_token_id=policy.pad_id,
        **(draw if s.temperature else {}),
    )
    policy.model.eval()
    try:
        yield
    finally:
        base_lm.generation_config = own
        policy.model.train(training)


def _sample(
    policy: Policy, prompts: list[Sequence[int]], max_new_tokens: int, prefix: SharedPrefix | None
) -> list[list[int]]:
    """Sampled ids of one batch; rows that have finished leave it and its KV cache."""
    begin, pad, device = prefix.ids if prefix else [], policy.pad_id, policy.device
    ends = torch.tensor(policy.eos_ids, device=device)
    own = [list(p[len(begin) :]) for p in prompts]
    pads = [max(map(len, own)) - len(p) for p in own]
    ids = torch.tensor(
        [begin + [pad] * n + p for n, p in zip(pads, own, strict=True)], device=device
    )
    mask = torch.tensor(
        [[1] * len(begin) + [0] * n + [1] * len(p) for n, p in zip(pads, own, strict=True)],
        device=device,
    )
    cache: Any  # Transformers' stub of reorder_cache wants a LongTensor
    with prefix.as_cache(policy) if prefix else nullcontext(growing_cache(policy.base_lm)) as cache:
        _read_once(policy, own, ids, mask, cache)
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
            for row, tokens, end in zip(rows, new.tolist(), ended.tolist(), strict=True):
                replies[row] += tokens[: end.index(True) + 1] if True in end else tokens
            alive = (~ended.any(1)).nonzero()[:, 0]
            if not len(alive):
                break
            if len(alive) < len(rows):
                cache.reorder_cache(alive)
                ids, mask, rows = ids[alive], mask[alive], [rows[i] for i in alive.tolist()]
            mask = torch.cat([mask, mask.new_ones(len(rows), new.shape[1])], 1)
    return replies


def _read_once(
    policy: Policy, own: list[list[int]], ids: torch.Tensor, mask: torch.Tensor, cache: Any
) -> None:
    """Fill the cache with all but the last token of each row, equal rows computed once."""
    number: dict[tuple[int, ...], int] = {}  # of each different prompt
    copies = [number.setdefault(tuple(p), len(number)) for p in own]
    start = ids.shape[1] - max(map(len, own))
    if len(number) == len(own) or start == ids.shape[1] - 1:
        return
    once = [copies.index(n) for n in range(len(number))]
    policy.base_lm.base_model(
        input_ids=ids[once, start:-1],
        attention_mask=mask[once, :-1],
        position_ids=(mask[once].cumsum(1) - 1).clamp(min=0)[:, start:-1],
        past_key_values=cache,
        use_cache=True,
    )
    cache.reorder_cache(torch.tensor(copies, device=ids.device))

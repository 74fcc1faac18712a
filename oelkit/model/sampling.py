"""Sample replies: token ids in, token ids out, for many prompts at once.

Prompts of similar length are batched and sampled with Transformers' `generate`, and finished rows
are dropped every few tokens. A prefix that prompts share (an experience text) is computed and
stored once, and repeated prompts (games on one map, many samples of a state) are read once. A reply
is exactly the sampled ids; the teacher scores those, never re-tokenised text.

In float32, greedy replies do not depend on the batch. In 16 bits they can: another batch shape sums
in another order, two nearly equal logits can swap, and the replies differ from that token on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from math import inf
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn.functional import pad
from transformers import GenerationConfig

from .. import given
from ..config import Sampling, also_takes
from ..progress import Bar
from ..prompts import load_prompt_set
from .attention import growing_cache, has_own_layers
from .kept import Kept, KeysValues
from .lora import seeded
from .policy import Policy
from .prefix import (
    SharedPrefix,
    can_share,
    group_by_shared_prefix,
    join_small_groups,
    min_shared_prefix,
    pass_tokens,
    trial_fault,
)
from .scoring import BATCH_TOKENS, token_batches

PRUNE_EVERY = 16  # new tokens between two checks for finished rows

_batches: WeakKeyDictionary[Policy, tuple[bool, bool]] = WeakKeyDictionary()  # see _batching


@dataclass(frozen=True)
class Reply:
    """The model's reply to one prompt."""

    ids: list[int]
    """The sampled ids, the end-of-sequence token included if one was sampled."""
    text: str
    """The ids decoded, without special tokens except those that mark a thought."""
    truncated: bool
    """Whether max_new_tokens cut the reply off."""
    error: Exception | None = None
    """Why a server gave no reply."""


# why: a third of it documents the arguments
@also_takes(Sampling)
def generate(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling | None = None,
    *,
    seed: int = 0,
    adapter: str | None = "student",
    progress: bool = False,
    kept: Kept | None = None,
    **changes: Any,
) -> list[Reply]:
    """Sample one reply per prompt, in the order given.

    The model's own generation_config is ignored except for its end-of-sequence ids.

    Args:
        policy: the model.
        prompts: token ids of each prompt.
        sampling: how to sample (None: the defaults of `Sampling`).
        seed: fixes the replies for the same prompts and batch_tokens; the global random generators
            are left alone.
        adapter: "student", "teacher" or None for the base model.
        progress: show a progress bar.
        kept: cache of earlier calls with the same adapter, which these prompts continue; updated.
        **changes: fields of `sampling` as keywords (temperature=0, max_new_tokens=64).

    Raises:
        ValueError: a prompt (the message gives its index) is empty or leaves no room for
            max_new_tokens in the context, or settings are invalid.
    """
    sampling = given.settings("sampling", Sampling, sampling, changes)
    new_tokens, batch_tokens = sampling.max_new_tokens, sampling.batch_tokens or BATCH_TOKENS
    if new_tokens is None:
        new_tokens = load_prompt_set(policy.default_prompt_set).max_new_tokens
    _check(policy, prompts, sampling, new_tokens)
    if not isinstance(policy, Policy):  # such as an exported model, see `plain`
        if adapter != "student":
            told = "it has no adapters to choose from, use oelkit.load_policy(…)"
            raise ValueError(f"{policy.name}, adapter={adapter!r}: {told}")
        return policy.generate(prompts, replace(sampling, max_new_tokens=new_tokens), seed)
    replies: dict[int, Reply] = {}
    eos, rng = policy.eos_ids, seeded(seed, policy.device)
    bar = Bar("generate", len(prompts), "reply", progress)
    with _generating(policy, sampling), rng, torch.no_grad(), policy.adapter(adapter, True), bar:
        groups = group_by_shared_prefix(prompts, min_shared_prefix(policy))
        groups = join_small_groups(groups, prompts, new_tokens, batch_tokens, pass_tokens(policy))
        if (kept or any(shared for shared, _ in groups)) and not can_share(policy):
            groups, kept = [(0, list(range(len(prompts))))], None
        kept = kept or Kept(0)
        for shared, group in groups:
            of_group = [prompts[i] for i in group]
            prefix = kept.prefix(policy, of_group, shared) if shared else None
            start = len(prefix.ids) if prefix else 0
            lengths = [len(prompt) - start + new_tokens for prompt in of_group]
            found = [kept.find(prompt, start)[0] for prompt in of_group]
            parts = [*zip(lengths, found, strict=True)]
            pads = len({*parts}) == 1 or _batching(policy)[0]
            # separates rows with something in the cache from rows read from the beginning
            kinds = [(0, n > 0) if pads else (length, n) for length, n in parts]
            for rows in _split(token_batches(lengths, batch_tokens), kinds):
                batch = [group[row] for row in rows]
                sampled = _sample(policy, [prompts[i] for i in batch], new_tokens, prefix, kept)
                for i, ids in zip(batch, sampled, strict=True):
                    replies[i] = Reply(ids, policy.reply_text(prompts[i], ids), ids[-1] not in eos)
                bar.update(len(batch))
        kept.turn()
    return [replies[i] for i in range(len(prompts))]


def _check(policy: Policy, prompts: Sequence[Sequence[int]], s: Sampling, new_tokens: int) -> None:
    heat = s.temperature == 0 or 1e-6 <= s.temperature < inf  # below, logits overflow
    if new_tokens < 1 or not (heat and 0 < s.top_p <= 1 and s.top_k >= 0):
        raise ValueError(
            f"max_new_tokens={new_tokens}, temperature={s.temperature}, top_p={s.top_p}, "
            f"top_k={s.top_k}: need max_new_tokens >= 1, temperature 0 or >= 1e-6, "
            "0 < top_p <= 1 and top_k >= 0"
        )
    for i, prompt in enumerate(prompts):
        if not prompt or len(prompt) + new_tokens > policy.context_length:
            raise ValueError(
                f"prompt {i} has {len(prompt)} tokens: it must not be empty and must leave room "
                f"for {new_tokens} new ones in the context of {policy.context_length}; lower "
                "max_new_tokens, or shorten the prompt or the experience in it"
            )


@contextmanager
def _generating(policy: Policy, s: Sampling) -> Iterator[None]:
    """Set eval mode and a fresh generation_config.

    The folder's own penalties and cut-offs would alter the distribution that training assumes.
    """
    draw = {"do_sample": True, "temperature": s.temperature, "top_p": s.top_p, "top_k": s.top_k}
    base_lm = policy.base_lm
    own = base_lm.generation_config
    base_lm.generation_config = GenerationConfig(
        eos_token_id=policy.eos_ids or None,
        pad_token_id=policy.pad_id,
        **(draw if s.temperature else {}),
    )
    try:
        with policy.eval_mode():
            yield
    finally:
        base_lm.generation_config = own


def _split(batches: list[list[int]], kinds: list[Any]) -> Iterator[list[int]]:
    """Split batches so that each has rows of one kind."""
    for rows in batches:
        for _, same in groupby(sorted(rows, key=kinds.__getitem__), kinds.__getitem__):
            yield list(same)


def _batching(policy: Policy) -> tuple[bool, bool]:
    """Whether padding leaves the model's results unchanged, and whether it accepts our cache.

    Found by a trial run; MiniMax has a cache of its own. Cache layers that a model brings along
    (DeepSeek-V4, MiniMax-M3) count padding into their blocks, which can exceed a trial.
    """
    if policy not in _batches:
        ids = policy.some_ids(24)
        mask = torch.ones_like(ids)
        mask[:, :7] = 0
        how = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
        want, ours = policy.hidden(ids[:, 7:])[0], True
        try:
            got = policy.hidden(ids, growing_cache(policy.base_lm), **how)
        except Exception:  # a model can raise anything on what it does not take
            made = policy.base_lm.base_model(input_ids=ids, use_cache=True, **how)
            ours, got = False, made.last_hidden_state
        pads = not has_own_layers(policy.base_lm) and not trial_fault(got[0, 7:], want)
        _batches[policy] = pads, ours
    return _batches[policy]


def _sample(
    policy: Policy,
    prompts: list[Sequence[int]],
    max_new_tokens: int,
    prefix: SharedPrefix | None,
    kept: Kept,
) -> list[list[int]]:
    """Sample the ids of one batch; finished rows are removed from it and its KV cache."""
    cache: Any = growing_cache(policy.base_lm) if prefix or _batching(policy)[1] else None
    every = max_new_tokens if cache is None else PRUNE_EVERY
    with prefix.as_cache(policy) if prefix else nullcontext(cache) as cache:
        ends = torch.tensor(policy.eos_ids, device=policy.device)
        ids, mask = _read(policy, prompts, prefix.ids if prefix else [], cache, kept)
        rows, replies = list(range(len(prompts))), [[] for _ in prompts]
        for start in range(0, max_new_tokens, every):
            before = ids.shape[1]
            ids = policy.base_lm.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=min(every, max_new_tokens - start),
                **{policy.cache_argument: cache},
            )
            new = ids[:, before:]
            ended = torch.isin(new, ends)
            for row, tokens, end in zip(rows, new.tolist(), ended.tolist(), strict=True):
                replies[row] += tokens[: end.index(True) + 1] if True in end else tokens
            alive = (~ended.any(1)).nonzero()[:, 0]
            if not len(alive) or start + every >= max_new_tokens:
                break
            if len(alive) < len(rows):
                cache.reorder_cache(alive)
                ids, mask, rows = ids[alive], mask[alive], [rows[i] for i in alive.tolist()]
            mask = torch.cat([mask, mask.new_ones(len(rows), new.shape[1])], 1)
    return replies


def _read(
    policy: Policy, prompts: list[Sequence[int]], begin: list[int], cache: Any, kept: Kept
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask of a batch whose cache continues `begin`.

    If something is or will be kept, or prompts are equal, the cache is filled with all but the last
    token of each prompt; equal prompts are read once.
    """
    found = [kept.find(p, len(begin)) for p in prompts]
    own = [p[len(begin) :] for p in prompts]
    # each row is padding, its kept tokens, padding, the rest
    wide = max(n for n, _ in found)
    longest = max(len(p) - n for p, (n, _) in zip(own, found, strict=True))
    table, masks = [], []
    for p, (n, _) in zip(own, found, strict=True):
        a, b = wide - n, longest - len(p) + n
        table.append([*begin, *[policy.pad_id] * a, *p[:n], *[policy.pad_id] * b, *p[n:]])
        masks.append([1] * len(begin) + [0] * a + [1] * n + [0] * b + [1] * (len(p) - n))
    ids, mask = (torch.tensor(x, device=policy.device) for x in (table, masks))
    number: dict[tuple[int, ...], int] = {}  # of each distinct prompt
    copies = [number.setdefault(tuple(p), len(number)) for p in own]
    once = [copies.index(n) for n in range(len(number))]
    if cache is None or not (kept.keeps or len(once) < len(own)) or ids.shape[1] == len(begin) + 1:
        return ids, mask
    if wide:
        _fill(cache, [found[row] for row in once], wide)
    if longest > 1:
        start = len(begin) + wide
        policy.hidden(
            ids[once, start:-1],
            cache,
            attention_mask=mask[once, :-1],
            position_ids=(mask[once].cumsum(1) - 1).clamp(min=0)[:, start:-1],
        )
    end = wide + longest - 1
    for i, row in enumerate(once if kept.keeps else []):
        n, new = found[row][0], len(own[row]) - found[row][0] - 1
        there = slice(wide - n, wide), slice(end - new, end)
        kept.add(list(prompts[row][:-1]), len(begin), cache.layers, i, there)
    if len(once) < len(own):
        cache.reorder_cache(torch.tensor(copies, device=ids.device))
    return ids, mask


def _fill(cache: Any, found: list[tuple[int, KeysValues]], wide: int) -> None:
    """Put the kept tokens of each row into an empty cache, right-aligned in `wide` columns."""
    some = next(kv for n, kv in found if n)
    for i, layer in enumerate(cache.layers):
        of_layer = [(n, kv[i] if n else some[i]) for n, kv in found]
        keys, values = (
            torch.stack([pad(kv[part][:, :n], (0, 0, wide - n, 0)) for n, kv in of_layer])
            for part in (0, 1)
        )
        layer.update(keys, values)

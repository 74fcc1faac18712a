"""Prompts that begin alike: the keys and values of the beginning are computed once and kept once,
not a copy a row.

What it does: holds the KV of a beginning, and lets a forward pass or Transformers' `generate`
attend to it beside each row's own tokens, whatever its batch. Exact but for rounding: attention
over both parts is put together from the two parts' softmax sums. What it does not: gradients (the
teacher and sampling need none), sliding windows, recurrent layers; those models go on without it,
see `can_share`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from .policy import Policy

CACHE_GROWTH = 16  # tokens by which a growing cache is enlarged
MAX_SCORES = 2**24  # attention scores among a batch's own tokens that are held at once


class SharedPrefix:
    """The KV of `ids` under the adapter in use; `device`: where it is kept between uses (None:
    where the model is).
    """

    @torch.no_grad()
    def __init__(self, policy: Policy, ids: Sequence[int], device: str | None = None) -> None:
        cache = DynamicCache(config=policy.base_lm.config)
        policy.base_lm.base_model(
            input_ids=torch.tensor([list(ids)], device=policy.device),
            past_key_values=cache,
            use_cache=True,
        )
        self.ids, self.kv = list(ids), [(layer.keys, layer.values) for layer in cache.layers]
        if device:
            self.kv = [(k.to(device), v.to(device)) for k, v in self.kv]

    def crop(self, prompts: Sequence[Sequence[int]]) -> int:
        """Shorten it to what all prompts begin with, at least one token of each left over; returns
        its length.
        """
        n = min(
            min(len(p) - 1, len(os.path.commonprefix([self.ids, list(p[: len(self.ids)])])))
            for p in prompts
        )
        if n < len(self.ids):
            self.ids, self.kv = self.ids[:n], [(k[:, :, :n], v[:, :, :n]) for k, v in self.kv]
        return n

    @contextmanager
    def as_cache(self, policy: Policy) -> Iterator[DynamicCache]:
        """Give an empty cache that stands behind this beginning: its first token has position
        len(ids).
        """
        cache, own = (
            DynamicCache(config=policy.base_lm.config),
            policy.base_lm.config._attn_implementation,
        )
        cache.layers = [PrefixedLayer(k.to(policy.device), v.to(policy.device)) for k, v in self.kv]
        policy.base_lm.set_attn_implementation("shared_prefix")
        try:
            yield cache
        finally:
            policy.base_lm.set_attn_implementation(own)


def min_shared_prefix(policy: Policy) -> int:
    """Tokens from which a common beginning is worth a pass: on a CPU each token costs, on a GPU
    each kernel.
    """
    return 64 if policy.device.type == "cpu" else 256


def group_by_shared_prefix(
    prompts: Sequence[Sequence[int]], least: int
) -> list[tuple[int, list[int]]]:
    """Group prompts that share their first `least` tokens: (tokens that the group shares, or 0;
    indices).
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt[:least]) if len(prompt) > least else (), []).append(i)
    found, single = [], []
    for beginning, rows in groups.items():
        if not beginning or len(rows) == 1:
            single += rows
            continue
        rows.sort(
            key=lambda i: list(prompts[i])
        )  # within the group, texts that differ later stand apart
        group, shared = [rows[0]], len(prompts[rows[0]]) - 1
        for i in rows[1:]:
            n = min(
                len(prompts[i]) - 1,
                len(os.path.commonprefix([prompts[group[0]][:shared], prompts[i][:shared]])),
            )
            if n < shared / 2 and len(group) > 1:
                found.append((shared, group))
                group, shared = [i], len(prompts[i]) - 1
            else:
                group, shared = [*group, i], n
        found.append((shared, group))
    found = [(n, rows) if len(rows) > 1 else (0, rows) for n, rows in found]
    single += [i for n, rows in found if not n for i in rows]
    return [(0, sorted(single))] * bool(single) + [(n, sorted(rows)) for n, rows in found if n]


@torch.no_grad()
def can_share(policy: Policy) -> bool:
    """Whether the model gives the same hidden states with a shared beginning; if not, one warning
    says why.
    """
    if policy.shares is None:
        reason, ids = (
            "",
            torch.arange(24, device=policy.device).view(2, 12) % policy.base_lm.config.vocab_size,
        )
        ids[1, :8] = ids[0, :8]
        cache, training = DynamicCache(config=policy.base_lm.config), policy.model.training
        policy.model.eval()
        try:
            if any(type(layer) is not DynamicLayer for layer in cache.layers):
                reason = "it has sliding windows or recurrent layers"
            elif not policy.base_lm._can_set_attn_implementation():
                reason = "its attention cannot be exchanged"
            else:
                want = policy.hidden(ids)[:, 8:]
                with SharedPrefix(policy, ids[0, :8].tolist()).as_cache(policy) as behind:
                    error = (policy.hidden(ids[:, 8:], behind) - want).norm() / want.norm()
                if not error < (1e-4 if want.dtype == torch.float32 else 0.05):
                    reason = f"a trial run was off by {error:.0e}"
        except (ValueError, RuntimeError, NotImplementedError, AttributeError) as error:
            reason = f"a trial run failed ({str(error).splitlines()[0]})"
        finally:
            policy.model.train(training)
        if reason:
            warnings.warn(
                f"{policy.name}: prompts that begin alike are computed in full, because {reason}",
                stacklevel=2,
            )
        policy.shares = not reason
    return policy.shares


class GrowingLayer(DynamicLayer):
    """A KV cache layer that has room to grow: Transformers' own copies all keys and values again
    for each new token.
    """

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._append("_key_room", self.keys, key_states)
        self.values = self._append("_value_room", self.values, value_states)
        return self.keys, self.values

    def _append(self, name: str, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        room, used = getattr(self, name, None), old.shape[-2] if old.numel() else 0
        total = used + new.shape[-2]
        # rows dropped or cache cropped by others: old is then no view of the room any more
        if room is None or total > room.shape[-2] or old.data_ptr() != room.data_ptr():
            room = new.new_empty(*new.shape[:2], total + CACHE_GROWTH, new.shape[-1])
            if used:
                room[:, :, :used] = old
            setattr(self, name, room)
        room[:, :, used:total] = new
        return room[:, :, :total]


class PrefixedLayer(GrowingLayer):
    """A row's own keys and values, counted from the end of a shared beginning, whose [1, heads, P,
    d] hang on them.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.shared = keys, values

    def update(self, key_states, value_states, *args, **kwargs):
        keys, values = super().update(key_states, value_states)
        keys.shared = (
            self.shared
        )  # attention functions are given the keys, and nothing else of the cache
        return keys, values

    def get_seq_length(self) -> int:
        return self.shared[0].shape[-2] + super().get_seq_length()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return super().get_seq_length() + query_length, self.shared[0].shape[-2]


def _attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Attention of [B, H, S, d] queries over a shared beginning and their own keys; the mask is of
    the latter.
    """
    if not hasattr(key, "shared"):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    if any(
        kwargs.get(name) is not None
        for name in ("softcap", "s_aux", "sliding_window", "position_bias")
    ):
        raise NotImplementedError("capped, sunk, windowed or biased attention")
    (batch, heads, s, d), kv_heads = query.shape, key.shape[1]
    scale = d**-0.5 if scaling is None else scaling
    query = query.reshape(batch, kv_heads, -1, d)  # a key head serves heads / kv_heads query heads
    # all rows' queries as one long list: the beginning is read once, not once a row
    out, total = _with_sum(query.transpose(0, 1).reshape(1, kv_heads, -1, d), *key.shared, scale)
    out, total = (
        x.reshape(kv_heads, batch, -1, *x.shape[3:]).transpose(0, 1) for x in (out, total)
    )
    if attention_mask is None:
        attention_mask = torch.ones(s, key.shape[2], dtype=torch.bool, device=key.device).tril(
            key.shape[2] - s
        )
    mask = attention_mask.expand(batch, 1, s, -1)
    parts = []
    for rows in torch.arange(batch, device=key.device).split(
        max(1, MAX_SCORES // (heads * s * key.shape[2]))
    ):
        scores = (query[rows] @ key[rows].transpose(2, 3)).float() * scale
        seen = mask[rows].repeat(1, 1, heads // kv_heads, 1)
        scores = (
            scores.masked_fill_(~seen, -torch.inf) if seen.dtype == torch.bool else scores + seen
        )
        both = torch.logaddexp(total[rows], scores.logsumexp(-1))
        own = scores.sub_(both[..., None]).exp_().to(value.dtype) @ value[rows]
        parts.append(out[rows] * (total[rows] - both).exp()[..., None].to(value.dtype) + own)
    return torch.cat(parts).reshape(batch, heads, s, -1).transpose(1, 2).contiguous(), None


def _with_sum(query, key, value, scale):
    """Attention without a mask, and the log of each query's softmax sum, which the public function
    does not return.
    """
    if query.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, scale=scale
        )
    if query.device.type == "cuda":
        attend = torch.ops.aten._scaled_dot_product_efficient_attention
        out, total, *_ = attend(query, key, value, None, True, scale=scale)
        return out, total[..., : query.shape[2]]  # padded to a multiple of 32
    scores = (query @ key.transpose(2, 3)).float() * scale
    return scores.softmax(-1).to(value.dtype) @ value, scores.logsumexp(-1)


AttentionInterface.register("shared_prefix", _attention)
AttentionMaskInterface.register("shared_prefix", sdpa_mask)

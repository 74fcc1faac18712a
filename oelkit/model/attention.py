"""Attention over two parts, a shared prefix and a row's own tokens, and the cache layers for it.

This is the only file in the package that uses private names of Transformers and torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

CACHE_GROWTH = 16  # spare tokens allocated whenever a cache grows
MAX_SCORES = 2**24  # attention scores of a batch's own tokens held at once


class GrowingLayer(DynamicLayer):
    """A KV cache layer with spare room; Transformers' own copies everything for each new token."""

    def update(self, key_states, value_states, *args, **kwargs):
        """Append new tokens' keys and values [B, heads, S, d]; return those of all tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._append("_key_room", self.keys, key_states)
        self.values = self._append("_value_room", self.values, value_states)
        return self.keys, self.values

    def _append(self, name: str, old: Any, new: torch.Tensor) -> torch.Tensor:
        room, used = getattr(self, name, None), old.shape[-2] if old.numel() else 0
        total = used + new.shape[-2]
        # once rows are dropped or the cache is cropped, old is no longer a view of the room
        if room is None or total > room.shape[-2] or old.data_ptr() != room.data_ptr():
            room = new.new_empty(*new.shape[:2], total + CACHE_GROWTH, new.shape[-1])
            if used:
                room[:, :, :used] = old
            setattr(self, name, room)
        room[:, :, used:total] = new
        return room[:, :, :total]


class PrefixedLayer(GrowingLayer):
    """A row's own keys and values, positioned after a prefix that all rows share."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.shared = keys, values  # [1, heads, P, d]

    def update(self, key_states, value_states, *args, **kwargs):
        """Append as in `GrowingLayer`, for own tokens only."""
        keys, values = super().update(key_states, value_states)
        # of the cache, attention functions receive only the keys
        keys.shared = self.shared  # pyright: ignore[reportAttributeAccessIssue]
        return keys, values

    def get_seq_length(self) -> int:
        """Return the tokens of prefix and row, which is the position of the next token."""
        return self.shared[0].shape[-2] + super().get_seq_length()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of own tokens under the mask and the position of the first."""
        return super().get_seq_length() + query_length, self.shared[0].shape[-2]


def growing_cache(model: PreTrainedModel) -> DynamicCache:
    """Return an empty cache; layers that keep all tokens have spare room."""
    cache = DynamicCache(config=model.config)
    layers = [GrowingLayer() if type(x) is DynamicLayer else x for x in cache.layers]
    cache.layers = layers
    return cache


def has_own_layers(model: PreTrainedModel) -> bool:
    """Whether the model brings along cache layers that Transformers has for no other model."""
    return any(
        type(x).__module__ != DynamicCache.__module__
        for x in DynamicCache(config=model.config).layers
    )


def repeat_key_heads(model: PreTrainedModel) -> None:
    """Avoid the kernel that holds all [T, T] scores, on cards below compute capability 8.

    There torch has no other kernel for grouped queries without a mask (`enable_gqa`).
    """
    device = model.device
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] >= 8:
        return
    if model.config._attn_implementation == "sdpa" and model._can_set_attn_implementation():
        model.set_attn_implementation("repeated_keys")


@contextmanager
def prefixed_cache(
    model: PreTrainedModel, kv: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> Iterator[DynamicCache]:
    """Yield an empty cache that continues a prefix, given by its keys and values per layer."""
    cache = DynamicCache(config=model.config)
    own: Any = model.config._attn_implementation
    cache.layers[:] = [PrefixedLayer(k, v) for k, v in kv]
    model.set_attn_implementation("shared_prefix")
    try:
        yield cache
    finally:
        model.set_attn_implementation(own)


def prefix_obstacle(model: PreTrainedModel) -> str:
    """Return why the model cannot attend to a shared prefix; "" if no reason is known."""
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=model.config).layers):
        return "it has sliding windows or recurrent layers"
    return "" if model._can_set_attn_implementation() else "its attention cannot be replaced"


def _attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Attention of [B, H, S, d] queries; the mask covers own keys, not the prefix."""
    if not hasattr(key, "shared"):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    others = "softcap", "s_aux", "sliding_window", "position_bias"
    if any(kwargs.get(name) is not None for name in others):
        raise NotImplementedError("capped, sunk, windowed or biased attention")
    (batch, heads, s, d), kv_heads = query.shape, key.shape[1]
    scale = d**-0.5 if scaling is None else scaling
    whole = 2.0 ** math.floor(math.log2(scale))  # exact; an unscaled q k can overflow float16
    # a key head serves heads / kv_heads query heads
    query = query.reshape(batch, kv_heads, -1, s, d)
    # all rows' queries as one long list: the prefix is read once, not once per row
    flat = query.transpose(0, 1).reshape(1, kv_heads, -1, d)
    both_parts = _with_logsumexp(flat, key.shared[0], key.shared[1], scale)
    out, total = (
        x.reshape(kv_heads, batch, *query.shape[2:4], *x.shape[3:]).transpose(0, 1)
        for x in both_parts
    )
    queries_at_once = max(1, MAX_SCORES // (heads * key.shape[2]))
    rows_at_once, found = max(1, queries_at_once // s), torch.empty_like(query)
    for first in range(0, batch, rows_at_once):
        rows = slice(first, first + rows_at_once)  # a view: an index would copy keys and values
        its_keys, its_values = key[rows].transpose(2, 3), value[rows]
        for start in range(0, s, queries_at_once):
            part = rows, slice(None), slice(None), slice(start, start + queries_at_once)
            asked, before = query[part], total[part]
            scores = (asked.flatten(2, 3) * whole @ its_keys).float().mul_(scale / whole)
            scores = scores.unflatten(2, asked.shape[2:4])
            if attention_mask is None:
                ones = torch.ones(scores.shape[3:], dtype=torch.bool, device=key.device)
                seen = ones.tril(key.shape[2] - s + start)
            else:
                seen = attention_mask.expand(batch, 1, s, -1)[rows, :, None, part[3]]
            if seen.dtype == torch.bool:
                scores.masked_fill_(~seen, -torch.inf)
            else:
                scores = scores + seen
            both = torch.logaddexp(before, scores.logsumexp(-1))
            own = scores.sub_(both[..., None]).exp_().to(value.dtype).flatten(2, 3) @ its_values
            share = (before - both).exp()[..., None].to(value.dtype)
            found[part] = out[part] * share + own.view_as(asked)
    return found.reshape(batch, heads, s, -1).transpose(1, 2).contiguous(), None


def _repeated_keys(module, query, key, value, attention_mask, **kwargs):
    """Transformers' attention, with key heads repeated to match the query heads."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    layer: Any = SimpleNamespace(is_causal=getattr(module, "is_causal", True))  # without groups
    return sdpa_attention_forward(layer, query, key, value, attention_mask, **kwargs)


def _with_logsumexp(query, key, value, scale):
    """Return attention without a mask and each query's logsumexp (no public function does)."""
    if query.device.type == "cpu":
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return attend(query, key, value, scale=scale)
    if query.device.type == "cuda":
        attend = torch.ops.aten._scaled_dot_product_efficient_attention
        out, total, *_ = attend(query, key, value, None, True, scale=scale)
        return out, total[..., : query.shape[2]]  # padded to a multiple of 32
    scores = (query @ key.transpose(2, 3)).float() * scale
    return scores.softmax(-1).to(value.dtype) @ value, scores.logsumexp(-1)


for _name, _function in (("shared_prefix", _attention), ("repeated_keys", _repeated_keys)):
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, sdpa_mask)

"""A base model as loaded: context length, padding, argument for a cache, unused files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch

# scales of activations and of cached keys and values, for low-precision kernels
_OF_ACTIVATIONS = ("input_scale", "activation_scale", "output_scale", "k_scale", "v_scale")


def context_length(config: Any, tokenizer: Any) -> int:
    """Return the longest prompt + reply, in tokens, of a model with this config.

    Longrope models are limited to the length where their factors change, because Transformers
    changes the factors for a batch as a whole.
    """
    config = config.get_text_config()
    most = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if "longrope" in str(rope):
        original = "original_max_position_embeddings"
        parts = [rope, *(part for part in rope.values() if isinstance(part, dict))]  # by layer type
        lengths = [part[original] for part in parts if part.get(original)]
        most = min(lengths, default=getattr(config, original, most))
    return most or tokenizer.model_max_length


def padding_id(tokenizer: Any, ends: Sequence[int | None], known: int) -> int:
    """Return the id to pad with; the embedding, which knows so many ids, always has it."""
    ids = (tokenizer.pad_token_id, *ends, 0)
    return next(i for i in ids if i is not None and 0 <= i < known)


def check_weights(base: Any, info: Mapping[str, Any], name: str) -> None:
    """Refuse a model that does not compute with the weights in its files.

    Args:
        base: the loaded model.
        info: loading info from `from_pretrained`.
        name: name of the model, for errors.

    Raises:
        ValueError: a tensor is missing or has another shape; the model would ignore a tensor of one
            of its layers (a scale, a bias); or the weights are dense although the config says that
            they are quantised.
    """
    todo = (
        "the weights are quantised in a way that Transformers does not support, or config.json "
        "belongs to another model; use the dense model"
    )
    if info["missing_keys"]:
        missing = min(info["missing_keys"])
        raise ValueError(f"{name}: its weight files lack {missing} and perhaps more")
    for key, theirs, ours in sorted(info["mismatched_keys"], key=str)[:1]:
        shapes = f"is {[*theirs]} in its weight files and {[*ours]} by its config.json"
        raise ValueError(f"{name}: {key} {shapes}: {todo}")
    layers = {
        n
        for n, m in base.named_modules()
        if not list(m.children()) and list(m.parameters(recurse=False))
    }
    for key in sorted(info["unexpected_keys"]):
        parts = key.split(".")
        inside = any(".".join(parts[:n]) in layers for n in range(1, len(parts)))
        if inside and parts[-1] not in _OF_ACTIVATIONS:
            what = f"its weight files hold {key}, which the model would leave out"
            raise ValueError(f"{name}: {what}: {todo}")
    for module in base.modules():
        packed = type(module).__module__.startswith("bitsandbytes")
        if packed and type(module.weight) is torch.nn.Parameter:
            raise ValueError(
                f"{name}: its config.json has a quantization_config, but its weights are dense; "
                "delete that from the config.json"
            )


def cache_argument(base: Any) -> str:
    """Return the name of the argument that takes a KV cache, or "" if the model has a state of its
    own. It is `cache` from Transformers 5.24 on, and `past_key_values` before; XLM's `cache` is a
    dict."""
    known = signature(base.base_model.forward).parameters
    if "cache" in known and "Cache" in str(known["cache"].annotation):
        return "cache"
    return "past_key_values" if "past_key_values" in known else ""


def warn_of_slow(dtype: torch.dtype, name: str) -> None:
    """Warn of 16 bits on an x86 CPU without AVX-512; on one, float32 products took a seventh."""
    if dtype.itemsize < 4 and torch.backends.cpu.get_cpu_capability() == "AVX2":
        short = str(dtype).removeprefix("torch.")
        warnings.warn(
            f"{name}: this CPU computes {short} several times slower than float32; pass "
            'dtype="float32" if it has the memory',
            stacklevel=3,
        )

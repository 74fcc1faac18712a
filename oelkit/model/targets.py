"""Which linear layers of a base model get no adapter, found by trial."""

from __future__ import annotations

import re
from typing import Any

import torch
from peft import LoraConfig
from transformers import PreTrainedModel


def no_adapter(base: PreTrainedModel, more: Any = None) -> Any:
    """Return a pattern of linear layers that get no adapter, `more` among them, which is a pattern
    or names as in PEFT's `exclude_modules`. If all others can have one, `more` is returned.

    These are towers for images or sound, through which text does not pass; matrices that Mamba's
    kernels read without calling their layer, so that an adapter would have no effect; layers that
    are linear by type only (Llama 4's router); and layers that plain PEFT would not find again,
    because it renames their weights (Laguna).
    """
    modules, decoder = dict(base.named_modules()), base.get_decoder()
    path = next((name for name, m in modules.items() if m is decoder), "")
    head = base.get_output_embeddings()
    linear = [n for n, m in modules.items() if isinstance(m, torch.nn.Linear) and m is not head]
    out = [n for n in linear if path and not n.startswith(path + ".")]
    mamba = [n for n, m in modules.items() if "mamba" in f"{n.split('.')[-1]} {type(m)}".lower()]
    read = [f"{n}.{x}" for n in mamba for x in ("out_proj", "dt_proj") if f"{n}.{x}" in modules]
    read += [n for n in linear if not _is_product(modules[n])]
    read += _renamed(base, linear)
    patterns = {re.sub(r"\.\d+\.", ".[0-9]+.", name).replace(".", r"\.") for name in out + read}
    if not patterns:
        return more
    if more:
        own = more if isinstance(more, str) else rf"(.*\.)?({'|'.join(map(re.escape, more))})"
        patterns.add(f"(?:{own})")
    return "|".join(sorted(patterns))


def _renamed(base: PreTrainedModel, layers: list[str]) -> list[str]:
    """Return the layers whose adapters PEFT renames when it loads a folder."""
    try:
        from peft.utils import transformers_weight_conversion as conversion
    except ImportError:  # before 0.19 PEFT renames nothing
        return []
    keys = {f"base_model.model.{n}.lora_A.weight": n for n in layers}
    state = {key: torch.zeros(1, 1) for key in keys}
    convert = conversion.convert_peft_adapter_state_dict_for_transformers
    loaded = convert(base, LoraConfig(), state, "default")
    return [n for key, n in keys.items() if key not in loaded]


def _is_product(layer: Any) -> bool:
    """Whether a linear layer computes just x W + bias; tried if its class comes with a model."""
    if not type(layer).__module__.startswith("transformers.models"):
        return True
    x = layer.weight.new_ones(2, layer.in_features)
    try:
        return torch.allclose(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
    except (TypeError, RuntimeError, ValueError, IndexError):
        return False

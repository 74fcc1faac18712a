"""Quantised weights: which layers become NF4, and what a quantised base must still do."""

from __future__ import annotations

import itertools
import re
import warnings
from typing import Any

import torch
from peft import PeftModel
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel


def four_bits(empty: Any, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return the NF4 config for a model's linear layers, except head and routers.

    Some models read a router's weights without calling its layer, and rounding can change the
    choice of an expert. A router is a layer with as many outputs as the config counts experts.
    """
    counts = vars(empty.config.get_text_config()).items()
    experts = {v for k, v in counts if "expert" in k and type(v) is int and v > 1}
    experts |= {a + b for a, b in itertools.combinations(experts, 2)}  # real and empty ones
    head = empty.get_output_embeddings()
    linear = ((n, m) for n, m in empty.named_modules() if isinstance(m, torch.nn.Linear))
    dense = {n for n, m in linear if m is head or m.out_features in experts}
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=sorted({re.sub(r"\.\d+\.", ".[0-9]+.", n) for n in dense}),
    )


def say_what_stays_dense(base: PreTrainedModel, name: str) -> None:
    """Warn if most weights stay dense; Transformers does not quantise experts in one tensor."""
    outer: Any = base.get_input_embeddings(), base.get_output_embeddings()
    ends = {id(m.weight) for m in outer}
    inner = [p for p in base.parameters() if id(p) not in ends]
    held = {True: 0, False: 0}
    for p in inner:  # a number of any dtype can hold weights of 4 bits
        four = hasattr(p, "quant_state")
        held[is_packed(p)] += p.numel() * p.itemsize * 2 if four else p.numel()
    share = held[True] / max(1, sum(held.values()))
    if share < 0.5:
        warnings.warn(
            f"{name}: only {share:.0%} of its inner weights are quantised: Transformers does "
            "not quantise the others in this kind of model, so they take their full memory",
            stacklevel=4,
        )


def is_packed(weight: torch.Tensor) -> bool:
    """Whether a weight holds codes of a quantised one, which bitsandbytes stores in any dtype."""
    ours = type(weight).__module__.startswith("bitsandbytes")
    return ours or not weight.is_floating_point()


def quantised_with(config: PreTrainedConfig) -> str:
    """Return the method with which the folder's weights are quantised; "" if they are dense."""
    own = getattr(config, "quantization_config", None) or {}
    own = own if isinstance(own, dict) else own.to_dict()
    return str(own.get("quant_method") or ("bitsandbytes" if own.get("load_in_4bit") else ""))


@torch.enable_grad()
def check_gradients(model: PeftModel, name: str, method: str) -> None:
    """Refuse quantised layers that pass no gradient once they have run without gradients."""
    base: Any = model.get_base_model()
    weights = [p for p in model.parameters() if p.requires_grad]
    ids = torch.arange(8, device=base.device)[None]
    with torch.no_grad():
        base.base_model(ids)
    try:
        out = base.base_model(ids).last_hidden_state.float().square().sum()
        passed = all(g is not None for g in torch.autograd.grad(out, weights, allow_unused=True))
    except RuntimeError:
        passed = False
    if not passed:
        raise ValueError(
            f"{name}: no gradient passes through its {method} layers; load the dense model, "
            "or one in bitsandbytes' 4 bits"
        )


def keep_gradients(model: torch.nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on a CPU.

    Its packed product has no autograd: after one generate in eval mode, every gradient through the
    layer would be silently lost (bitsandbytes 0.50).
    """
    # imported only if something is quantised: it prints and takes a second
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False

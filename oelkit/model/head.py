"""The head: hidden states to logits, as the model itself computes them, and the gradient back.

It detects what a model does to its logits (a bias, a scale as in Cohere and Granite, a soft-cap as
in Gemma 2), and computes logits in float32 and the gradient with respect to the hidden states. It
does not train the head.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from .quantised import is_packed

# numbers of a config with such names are tried as scale and cap
NUMBERS = re.compile("logit|multiplier|cap")
LOUD = 64.0  # largest logit in the trial, large enough to reveal a cap
TRIAL_IDS = 4096  # vocabulary ids on which candidates are compared


@dataclass(frozen=True, eq=False)
class Head:
    """The frozen last layer: hidden state h gives cap * tanh(scale * (W h + bias) / cap)."""

    weight: Tensor
    """W, [V, D]."""
    bias: Tensor | None = None
    """[V]."""
    scale: float = 1.0
    cap: float | None = None
    """None: no tanh."""

    @property
    def chunk_rows(self) -> int:
        """Rows per chunk, so that a [rows, V] float32 buffer is small; larger products on a GPU."""
        return max(1, (2**25 if self.weight.is_cuda else 2**22) // len(self.weight))

    def logits(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """Return logits / temperature [n, V] of hidden states [n, D], in float32 or wider."""
        z = _product(hidden.to(self.weight.dtype), self.weight.T)
        return self.shaped(z if self.bias is None else z + self.bias) / temperature

    def shaped(self, z: Tensor) -> Tensor:
        """Apply scale and cap to products [n, V]."""
        if self.scale != 1:
            z = z * self.scale
        return z if self.cap is None else self.cap * torch.tanh(z / self.cap)

    def gradient(self, dz: Tensor, z: Tensor, temperature: float = 1.0) -> Tensor:
        """Turn the gradient dz [n, V] with respect to z = `logits` into that of the hidden states.

        Returns [n, D]; dz is overwritten.
        """
        if self.cap is not None:
            dz.mul_(1 - (z * (temperature / self.cap)).square())
        back = _product(dz.to(self.weight.dtype), self.weight)
        return back * (self.scale / temperature)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b in float32 or wider; where the device can, without rounding to 16 bits first."""
    if a.is_cuda and a.dtype.itemsize == 2 and "dtype" in torch.ops.aten.mm.overloads():
        return torch.mm(a, b, out_dtype=torch.float32)
    z = a @ b
    return z.to(torch.promote_types(z.dtype, torch.float32))


@torch.no_grad()
def head_of(model: Any, name: str) -> Head:
    """Return the head of a causal language model in eval mode; errors call the model `name`.

    Raises:
        ValueError: the head is trained or quantised, or logits are another function of the hidden
            states.
    """
    layer = model.get_output_embeddings()
    if isinstance(layer, LoraLayer) or any(p.requires_grad for p in layer.parameters()):
        raise ValueError(
            f"{name}: its head is trained, but the losses give it no gradient; leave lm_head "
            "out of target_modules and modules_to_save"
        )
    if not isinstance(layer, torch.nn.Linear):
        raise ValueError(f"{name}: its head is a {type(layer).__name__}, not one matrix")
    if is_packed(layer.weight):
        raise ValueError(
            f"{name}: its head is quantised, which the losses cannot read; take a model whose "
            "head is dense, or the dense model"
        )
    bias = None if layer.bias is None else layer.bias.detach()
    plain, seen = Head(layer.weight.detach(), bias), list[Tensor]()

    def louder(module: Any, args: Any) -> Any:
        loud = args[0] * (LOUD / plain.logits(args[0][0]).abs().max())
        seen.extend((args[0][0], loud[0]))
        return (loud,)

    ids = torch.arange(8, device=plain.weight.device)[None] % len(plain.weight)
    hook = layer.register_forward_pre_hook(louder)
    try:
        logits = model(input_ids=ids, use_cache=False).logits[0].float()
    finally:
        hook.remove()
    exact = plain.weight.dtype.itemsize >= 4
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    off = 1e-4 if exact else 0.05
    alike = seen[0].shape == hidden.shape and (seen[0] - hidden).norm() <= off * hidden.norm()
    z = plain.logits(seen[1])
    numbers = vars(model.config.get_text_config()).items()
    found = {float(v) for k, v in numbers if NUMBERS.search(k) and type(v) in (int, float) and v}
    scales = [1.0, *sorted(found), *sorted(1 / v for v in found)]
    pairs = itertools.product(scales, (None, *sorted(found)))  # scale, cap
    heads = [Head(plain.weight, bias, *pair) for pair in pairs]

    def error(head: Head, most: int | None = TRIAL_IDS) -> float:
        want = logits[:, :most]
        return float((head.shaped(z[:, :most]) - want).norm() / want.norm())

    best = min(heads, key=error)
    if not alike or not error(best, None) <= (1e-4 if exact else 0.02):  # it can be NaN
        raise ValueError(
            f"{name}: its logits are neither the product of hidden states and head nor a scaled or "
            "capped one; such a model is not supported"
        )
    return best

"""The head: hidden states to logits, as the model itself makes them, and the way back.

What it does: finds out what a model does to its logits (a bias, a scale as in Cohere and Granite, a
soft-cap as in Gemma 2), and gives logits in float32 and the gradient by the hidden states. What it
does not: training the head.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

# numbers of a config with such names are tried as scale and cap; a trial decides
NUMBERS = re.compile("logit|multiplier|cap")
LOUD = 64.0  # size of the logits in the trial: large enough for a cap to show
TRIAL_IDS = 4096  # ids in the trial, at most


@dataclass(frozen=True, eq=False)
class Head:
    """The frozen last layer: logits are cap * tanh(scale * (W h + bias) / cap) of hidden h."""

    weight: Tensor
    """W, [V, D]."""
    bias: Tensor | None = None
    """[V]."""
    scale: float = 1.0
    cap: float | None = None
    """None: no tanh."""

    @property
    def chunk_rows(self) -> int:
        """Rows per chunk: one [rows, V] float32 buffer is small; a GPU wants larger products."""
        return max(1, (2**25 if self.weight.is_cuda else 2**22) // len(self.weight))

    def logits(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """Logits / temperature, [n, V], of hidden states [n, D]; at least in float32."""
        z = _product(hidden.to(self.weight.dtype), self.weight.T)
        return self.shaped(z if self.bias is None else z + self.bias) / temperature

    def shaped(self, z: Tensor) -> Tensor:
        """Scale and cap of products [n, V]."""
        if self.scale != 1:
            z = z * self.scale
        return z if self.cap is None else self.cap * torch.tanh(z / self.cap)

    def gradient(self, dz: Tensor, z: Tensor, temperature: float = 1.0) -> Tensor:
        """From a gradient dz [n, V] by z = `logits` to that by the hidden states, [n, D].

        dz is used up.
        """
        if self.cap is not None:
            dz.mul_(1 - (z * (temperature / self.cap)).square())
        back = _product(dz.to(self.weight.dtype), self.weight)
        return back * (self.scale / temperature)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The product a @ b, at least in float32; summed and given so where the device can."""
    if a.is_cuda and a.dtype.itemsize == 2 and "dtype" in torch.ops.aten.mm.overloads():
        return torch.mm(a, b, out_dtype=torch.float32)
    z = a @ b
    return z.to(torch.promote_types(z.dtype, torch.float32))


@torch.no_grad()
def head_of(model: Any, name: str) -> Head:
    """The head of a causal language model, in eval mode, which is called `name` in errors.

    Raises:
        ValueError: it is trained, or the logits are another function of the hidden states.
    """
    layer = model.get_output_embeddings()
    if isinstance(layer, LoraLayer) or any(p.requires_grad for p in layer.parameters()):
        raise ValueError(
            f"{name}: its head is trained, but the losses give a head no gradient; leave lm_head "
            "out of target_modules and modules_to_save"
        )
    if not isinstance(layer, torch.nn.Linear):
        raise ValueError(f"{name}: its head is a {type(layer).__name__}, not one matrix")
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
    fault = (
        seen[0].shape != hidden.shape
        or (seen[0] - hidden).norm() > (1e-4 if exact else 0.05) * hidden.norm()
    )
    z = plain.logits(seen[1])
    numbers = vars(model.config.get_text_config()).items()
    found = {float(v) for k, v in numbers if NUMBERS.search(k) and type(v) in (int, float) and v}
    scales = [1.0, *sorted(found), *sorted(1 / v for v in found)]
    heads = [
        Head(plain.weight, bias, scale, cap)
        for scale, cap in itertools.product(scales, (None, *sorted(found)))
    ]

    def error(head: Head, most: int | None = TRIAL_IDS) -> float:
        want = logits[:, :most]
        return float((head.shaped(z[:, :most]) - want).norm() / want.norm())

    best = min(heads, key=error)
    if fault or error(best, None) > (1e-4 if exact else 0.02):
        raise ValueError(
            f"{name}: its logits are neither the product of hidden states and head nor a scaled or "
            "capped one; such a model is not supported"
        )
    return best

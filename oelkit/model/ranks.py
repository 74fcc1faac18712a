"""Processes that train together, started by `accelerate launch`; alone, all of it does nothing.

Each learns from its share of a step's states, and gradients are summed before the optimiser's step,
so that all take the same one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import torch
from accelerate import PartialState
from torch import distributed


def join() -> torch.device | None:
    """Meet the other processes; the device of this one, None where there is no other."""
    launched = int(os.environ.get("WORLD_SIZE", 1)) > 1 and "LOCAL_RANK" in os.environ
    return PartialState(cpu=not torch.cuda.is_available()).device if launched else None


def rank() -> int:
    """Number of this process; 0 writes and prints."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def total(values: Sequence[float], device: torch.device) -> list[float]:
    """The sums over all processes."""
    if count() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(sums)
    return sums.tolist()


def add_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes, in one message."""
    if count() == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads])
    distributed.all_reduce(flat)
    for grad, summed in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(summed.view_as(grad))

"""Processes that train together, started by `accelerate launch`; no effect in a single process.

Each learns from its share of a step's states, and gradients are summed before the optimiser's step,
so that all processes take the same step."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from accelerate import PartialState
from torch import distributed

Row = TypeVar("Row")


def join() -> torch.device | None:
    """Join the other processes; return this one's device, or None if there are no others."""
    launched = int(os.environ.get("WORLD_SIZE", 1)) > 1 and "LOCAL_RANK" in os.environ
    return PartialState(cpu=not torch.cuda.is_available()).device if launched else None


def rank() -> int:
    """Return the number of this process; number 0 writes and prints."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def count() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def share(rows: list[Row]) -> list[Row]:
    """Return this process's part of the rows."""
    return rows[rank() :: count()]


def total(values: Sequence[float], device: torch.device) -> list[float]:
    """Return the sums over all processes."""
    if count() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(sums)
    return sums.tolist()


def add_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes, in one message.

    Some can be missing here: those of an expert that no token of this process's states reached.
    """
    if count() == 1:
        return
    parameters = list(parameters)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    here = grads[0].new_tensor([p.grad is not None for p in parameters])
    flat = torch.cat([here, *(grad.flatten() for grad in grads)])
    distributed.all_reduce(flat)
    anywhere, *sums = flat.split([len(grads), *(grad.numel() for grad in grads)])
    for p, grad, part, there in zip(parameters, grads, sums, anywhere.tolist(), strict=True):
        p.grad = grad.copy_(part.view_as(grad)) if there else None

"""Cached keys and values of prompts, reused by prompts that continue them: a game's next turn.

`Kept` stores what one call of `generate` has read, within a share of free memory, and looks up the
beginning of each prompt of the next call. It does not notice when the weights change: use one
`Kept` per adapter and state of its weights, for example for the games of one rollout. Models whose
cache cannot be cropped (sliding windows, recurrent layers) work without it, see `can_share`.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch

from .memory import free_bytes
from .policy import Policy
from .prefix import SharedPrefix, shared_length

KEPT_SHARE = 0.25  # of free memory; the rest is for sampling

KeysValues = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Row:
    """The cached part of one prompt."""

    ids: list[int]
    """All token ids read, including the shared prefix."""
    start: int
    """Length of that prefix, in tokens."""
    kv: KeysValues
    """Keys and values of ids[start:], [heads, len(ids) - start, d] each; a pair per layer."""


class Kept:
    """Keys and values from one call of `generate`, for the next call.

    Args:
        most: most bytes to keep (None: a share of free memory).
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self.prefixes: list[SharedPrefix] = []
        self.rows: list[Row] = []  # of the last call, sorted by their ids
        self._new: list[Row] = []  # of this call
        self._bytes = {"prefixes": 0, "new": 0}

    @property
    def keeps(self) -> bool:
        """Whether anything can be kept."""
        return self.most != 0

    def turn(self) -> None:
        """End a call: make what it has read available to the next."""
        self.rows, self._new = sorted(self._new, key=attrgetter("ids")), []
        self._bytes["new"] = 0

    def prefix(self, policy: Policy, prompts: Sequence[Sequence[int]], length: int) -> SharedPrefix:
        """Return a prefix of all prompts: a kept one of at least half the length, or a new one."""
        for kept in self.prefixes:
            shared = min(shared_length(kept.ids, p) for p in prompts)
            if shared >= length / 2:
                kept.crop(shared)
                return kept
        prefix = SharedPrefix(policy, prompts[0][:length])
        if self._fits("prefixes", sum(x.nbytes for pair in prefix.kv for x in pair), policy.device):
            self.prefixes.append(prefix)
        return prefix

    def find(self, prompt: Sequence[int], start: int) -> tuple[int, KeysValues]:
        """Find what is kept of a prompt after a prefix of `start` tokens.

        Returns:
            The number of tokens, and keys and values of at least those tokens.
        """
        best: tuple[int, KeysValues] = 0, []
        at = bisect(self.rows, list(prompt), key=attrgetter("ids"))
        for row in self.rows[max(0, at - 1) : at + 1]:  # sorted: the best match is a neighbour
            n = shared_length(row.ids, prompt) - start
            if row.start == start and n > best[0]:
                best = n, row.kv
        return best

    def add(
        self, ids: list[int], start: int, layers: Sequence[Any], row: int, there: Sequence[slice]
    ) -> None:
        """Keep what has been read of a prompt, if there is room.

        Args:
            ids: all token ids read.
            start: length of the shared prefix, in tokens.
            layers: layers of the cache.
            row: the prompt's row in the cache.
            there: the prompt's columns in the cache, without padding.
        """
        pairs = [(layer.keys, layer.values) for layer in layers]
        token = sum(x[row, :, 0].nbytes for pair in pairs for x in pair)
        if self._fits("new", token * (len(ids) - start), pairs[0][0].device):
            kv: Any = [tuple(torch.cat([x[row, :, s] for s in there], 1) for x in p) for p in pairs]
            self._new.append(Row(ids, start, kv))

    def _fits(self, what: str, size: int, device: torch.device) -> bool:
        """Reserve `size` bytes if there is room; return whether there was.

        Half of the room is for the rows of the last call, which are held until this call ends.
        """
        if self.most is None:
            self.most = int(KEPT_SHARE * free_bytes(device))
        fits = sum(self._bytes.values()) + size <= self.most / 2
        self._bytes[what] += size * fits
        return fits

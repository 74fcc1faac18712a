"""Keys and values of prompts, kept for prompts that go on where those ended: a game's next turn.

What it does: keeps what a call of `generate` has read, within a share of free memory, and finds for
each prompt of the next call what it begins with. What it does not: notice that the weights have
changed; one `Kept` is for one adapter as it is, say for the games of one rollout. Models whose
cache cannot be cut (sliding windows, recurrent layers) go on without it, see `can_share`.
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

KEPT_SHARE = 0.25  # of free memory; the rest is for what is sampled

KeysValues = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Row:
    """What has been read of one prompt."""

    ids: list[int]
    """All that has been read, the prefix that it stands behind among it."""
    start: int
    """Tokens of that prefix."""
    kv: KeysValues
    """Of ids[start:], [heads, len(ids) - start, d] each, a pair per layer."""


class Kept:
    """What one call of `generate` has read, for the next call.

    Args:
        most: bytes that are kept at most (None: a share of what is free).
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self.prefixes: list[SharedPrefix] = []
        self.rows: list[Row] = []  # of the last call, sorted by their ids
        self._new: list[Row] = []  # of this one
        self._bytes = {"prefixes": 0, "new": 0}

    @property
    def keeps(self) -> bool:
        """Whether there is room for anything."""
        return self.most != 0

    def turn(self) -> None:
        """A call is over: what it has read is there for the next."""
        self.rows, self._new = sorted(self._new, key=attrgetter("ids")), []
        self._bytes["new"] = 0

    def prefix(self, policy: Policy, prompts: Sequence[Sequence[int]], length: int) -> SharedPrefix:
        """What all prompts begin with, or half of it at least where that much is kept."""
        for kept in self.prefixes:
            if min(shared_length(kept.ids, p) for p in prompts) >= length / 2:
                kept.crop(prompts)
                return kept
        prefix = SharedPrefix(policy, prompts[0][:length])
        if self._fits("prefixes", sum(x.nbytes for pair in prefix.kv for x in pair), policy.device):
            self.prefixes.append(prefix)
        return prefix

    def find(self, prompt: Sequence[int], start: int) -> tuple[int, KeysValues]:
        """What is there of a prompt behind a prefix of `start` tokens.

        Returns:
            A number of tokens, and keys and values of those and perhaps more.
        """
        best: tuple[int, KeysValues] = 0, []
        at = bisect(self.rows, list(prompt), key=attrgetter("ids"))
        for row in self.rows[max(0, at - 1) : at + 1]:  # the likest stand beside it
            n = shared_length(row.ids, prompt) - start
            if row.start == start and n > best[0]:
                best = n, row.kv
        return best

    def add(
        self, ids: list[int], start: int, layers: Sequence[Any], row: int, there: Sequence[slice]
    ) -> None:
        """Keep what has been read of a prompt, where there is room.

        Args:
            ids: all that has been read.
            start: tokens of the prefix that it stands behind.
            layers: of the cache.
            row: where it is in the cache.
            there: its columns, between padding.
        """
        pairs = [(layer.keys, layer.values) for layer in layers]
        token = sum(x[row, :, 0].nbytes for pair in pairs for x in pair)
        if self._fits("new", token * (len(ids) - start), pairs[0][0].device):
            kv: Any = [tuple(torch.cat([x[row, :, s] for s in there], 1) for x in p) for p in pairs]
            self._new.append(Row(ids, start, kv))

    def _fits(self, what: str, size: int, device: torch.device) -> bool:
        """Whether there is room, which is taken then.

        Half of it is for the rows of the last call, which are held until this one is over.
        """
        if self.most is None:
            self.most = int(KEPT_SHARE * free_bytes(device))
        fits = sum(self._bytes.values()) + size <= self.most / 2
        self._bytes[what] += size * fits
        return fits

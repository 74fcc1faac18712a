"""What the teacher of a distillation reads and computes.

Its prompts with the same experience text begin alike, and it is frozen: the keys and values of this
prefix are computed once per round and text."""

from __future__ import annotations

import os

import torch

from ..model.prefix import SharedPrefix, can_share, min_shared_prefix
from ..model.sampling import Reply
from ..model.scoring import reply_hidden, token_batches
from ..prompts import with_experience
from ..records import State
from .training import Training

PREFIX_STATES = 16  # states whose prompts determine the prefix


def prompt_ids(t: Training, state: State, text: str) -> list[int]:
    """Return the ids of the teacher's prompt: a state behind an experience text."""
    return t.policy.encode(with_experience(t.prompt_set, state.prompt, text))


def group_by_prefix(
    t: Training, texts: list[str], teacher_ids: list[list[int]]
) -> list[tuple[str | None, list[int]]]:
    """Group rows by the text whose prefix their teacher prompts share; the rest under None."""
    groups: dict[str | None, list[int]] = {}
    for i, (text, ids) in enumerate(zip(texts, teacher_ids, strict=True)):
        begin = _beginning(t, text)
        fits = begin and len(ids) > len(begin) and ids[: len(begin)] == begin
        groups.setdefault(text if fits else None, []).append(i)
    # texts with a kept prefix come first, before others replace it
    return sorted(groups.items(), key=lambda group: group[0] not in t.prefixes)


def _beginning(t: Training, text: str) -> list[int]:
    """Return the prefix of prompts with this text, from the first states; [] if it is too short.

    It does not depend on the batch, so that a resumed training computes the same.
    """
    if text not in t.beginnings:
        prompts = [prompt_ids(t, state, text) for state in t.states[:PREFIX_STATES]]
        shared = min(len(os.path.commonprefix(prompts)), *(len(ids) - 1 for ids in prompts))
        worth = shared >= min_shared_prefix(t.policy) and can_share(t.policy)
        t.beginnings[text] = prompts[0][:shared] if worth else []
    return t.beginnings[text]


def _prefix(t: Training, text: str) -> SharedPrefix:
    """Return the prefix on the device; main memory keeps as many as the plan allows."""
    prefix = t.prefixes.pop(text, None)
    while len(t.prefixes) >= t.plan.kept_texts:
        del t.prefixes[next(iter(t.prefixes))]
    t.prefixes[text] = prefix or SharedPrefix(t.policy, t.beginnings[text]).to("cpu")
    return t.prefixes[text].to(t.policy.device)


@torch.no_grad()
def hidden_states(
    t: Training,
    teacher_ids: list[list[int]],
    replies: list[Reply],
    groups: list[tuple[str | None, list[int]]],
    adapter: str | None = "teacher",
) -> list[torch.Tensor]:
    """Return the hidden states [reply tokens, D] for each reply, of the teacher or another."""
    hidden_of: dict[int, torch.Tensor] = {}
    with t.policy.adapter(adapter, merge=True), t.policy.eval_mode():
        for text, group in groups:
            prefix = _prefix(t, text) if text else None
            skip = len(prefix.ids) if prefix else 0
            lengths = [len(teacher_ids[i]) - skip + len(replies[i].ids) for i in group]
            for batch in token_batches(lengths, t.plan.scored_tokens):
                rows = [group[i] for i in batch]
                ids = [replies[i].ids for i in rows]
                hidden = reply_hidden(t.policy, [teacher_ids[i] for i in rows], ids, prefix)
                hidden_of |= zip(rows, hidden.split([len(y) for y in ids]), strict=True)
            del prefix  # before the next one is moved to the device
    return [hidden_of[i] for i in range(len(replies))]

"""Extract: the policy reads its own trajectories and writes down in a line or two what they teach.

One game a step, with the experience so far shown (or not); items are appended, over the cap the
oldest go first (arXiv 2603.16856, section 3). Draws are independent passes over the games, each in
its own order; all draws of a step are one generation call. The strict parser is the paper's; the
default also takes what real models write instead (see `parse_items`). How many replies gave no item
is counted (`on_step`). Departure from the paper: what one reply says twice is one item, and the
last item of a reply that was cut off is dropped."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

from tqdm import tqdm

from ..model.policy import Policy
from ..model.sampling import generate
from ..prompts import PromptSet, extract_messages, load_prompt_set
from ..records import Evidence, ExperienceItem, Trajectory
from ..text import answer_text, join_experience, parse_items, truncate_to_budget


def extract(
    policy: Policy,
    trajectories: Sequence[Trajectory],
    previous: str | Sequence[str] = "",
    *,
    draws: int = 1,
    show_previous: bool = True,
    budget_tokens: int | None = 8192,
    strict: bool = False,
    prompt_set: str | PromptSet | None = None,
    temperature: float = 0.7,
    max_new_tokens: int | None = None,
    seed: int = 0,
    round: int = 0,
    on_step: Callable[[dict], None] | None = None,
    progress: bool = False,
) -> list[ExperienceItem]:
    """Read the games one by one and return the items of all draws, oldest first within each draw.

    previous: experience from before that the draws start from, one text for all or one a draw.
    draws: independent passes, told apart by `ExperienceItem.draw`. show_previous: whether a draw
    reads what it knows so far. budget_tokens: cap of a draw's experience, `previous` included; the
    oldest lines go first. on_step: gets {"replies", "empty", "items"} of each step, `empty` being
    the replies in which the parser found no item (because nothing was new, or because of their
    form). ValueError for no trajectories, no draws, or a `previous` of another length."""
    if not trajectories:
        raise ValueError("nothing to extract from: the list of trajectories is empty")
    before = [previous] * draws if isinstance(previous, str) else list(previous)
    if draws < 1 or len(before) != draws:
        raise ValueError(
            f"{draws} draws with {len(before)} previous experiences: need a draw, and a text for each"
        )
    if not isinstance(prompt_set, PromptSet):
        prompt_set = load_prompt_set(prompt_set or policy.default_prompt_set)
    orders = [
        random.Random(f"{seed}/{d}").sample(range(len(trajectories)), len(trajectories))
        for d in range(draws)
    ]
    pairs = [
        [(d, trajectories[orders[d][step]]) for d in range(draws)]
        for step in range(len(trajectories))
    ]
    if not show_previous:  # nothing depends on what came before: one call
        pairs = [[pair for step in pairs for pair in step]]
    items: list[list[ExperienceItem]] = [[] for _ in range(draws)]
    known, counts = (
        [truncate_to_budget(text, budget_tokens, policy.tokenizer) for text in before],
        Counter(),
    )
    bar = tqdm(pairs, desc="extract", unit="game", disable=not progress, mininterval=1)
    for step, group in enumerate(bar):
        asked = [
            policy.encode(extract_messages(prompt_set, t, known[d] if show_previous else ""))
            for d, t in group
        ]
        replies = generate(
            policy,
            asked,
            max_new_tokens=max_new_tokens or prompt_set.max_new_tokens,
            temperature=temperature,
            seed=seed * 1009 + step,
        )
        # what a model says over and over is one item, and the last one of a reply that was cut off
        # is cut off too
        found = [
            parse_items(answer_text(r.text), strict)[: -1 if r.truncated else None] for r in replies
        ]
        found = [list(dict.fromkeys(texts)) for texts in found]
        for (d, t), texts in zip(group, found, strict=True):
            evidence = (Evidence(t.id, max(0, len(t.turns) - 1)),)
            items[d] += [
                ExperienceItem(f"r{round}-d{d}-{t.id}-{n}", text, evidence, policy.name, round, d)
                for n, text in enumerate(texts)
            ]
            known[d] = truncate_to_budget(
                join_experience(before[d], items[d]), budget_tokens, policy.tokenizer
            )
            lines = known[d].count("\n") + bool(known[d])  # an item is one line
            items[d] = items[d][max(0, len(items[d]) - lines) :]
        row = {
            "replies": len(found),
            "empty": sum(not texts for texts in found),
            "items": sum(map(len, found)),
        }
        counts.update(row)
        bar.set_postfix(counts, refresh=False)
        if on_step:
            on_step(row)
    return [item for draw in items for item in draw]

"""Extract: the policy reads its own trajectories and writes down in a line or two what they teach.

One game per step, with the experience so far shown (or not); items are appended, over the budget
the oldest go first (arXiv 2603.16856, section 3). Draws are independent passes over the games, each
in its own order; all draws of a step are one generation call. The strict parser is the paper's; the
default also takes what real models write instead (see `parse_items`).

Departure from the paper: what one reply says twice is one item, and the last item of a reply that
was cut off is dropped."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from ..config import Sampling
from ..model.policy import Policy
from ..model.sampling import Reply, generate
from ..prompts import PromptSet, extract_messages, load_prompt_set
from ..records import Evidence, ExperienceItem, Trajectory
from ..text import join_experience, parse_items, truncate_to_budget


# why: fourteen, for the first eight say what is read and written, the rest how a run drives it;
# half of the lines are the docstring
def extract(
    policy: Policy,
    trajectories: Sequence[Trajectory],
    previous: str | Sequence[str] = "",
    sampling: Sampling | None = None,
    *,
    num_draws: int = 1,
    show_previous: bool = True,
    budget_tokens: int | None = 8192,
    strict: bool = False,
    prompt_set: str | PromptSet | None = None,
    seed: int = 0,
    round: int = 0,
    on_step: Callable[[dict], None] | None = None,
    progress: bool = False,
    **changes: Any,
) -> list[ExperienceItem]:
    """Read the games one by one and write down experience items.

    Args:
        policy: its student reads and writes.
        trajectories: the games.
        previous: experience that the draws start from, one text for all or one per draw.
        sampling: how replies are drawn.
        num_draws: number of independent passes (`ExperienceItem.draw`).
        show_previous: whether a draw reads what it knows so far.
        budget_tokens: cap of a draw's experience text, `previous` included.
        strict: take only the paper's form of an item.
        prompt_set: asks for the items (None: the policy's own).
        seed: fixes orders and replies.
        round: goes into the records.
        on_step: gets {"replies", "empty", "items"} of each step; `empty` are the replies in which
            the parser sees no item (nothing new, or another form).
        progress: shows a bar.
        **changes: fields of the sampling, as keywords (temperature=0).

    Returns:
        The items of all draws, oldest first within each draw.

    Raises:
        ValueError: no trajectories or draws, another number of texts, a prompt over the context.
    """
    if not trajectories:
        raise ValueError("nothing to extract from: the list of trajectories is empty")
    before = [previous] * num_draws if isinstance(previous, str) else list(previous)
    if num_draws < 1 or len(before) != num_draws:
        raise ValueError(f"{num_draws} draws with {len(before)} previous texts: need one for each")
    if not isinstance(prompt_set, PromptSet):
        prompt_set = load_prompt_set(prompt_set or policy.default_prompt_set)
    options = replace(sampling or Sampling(), **changes).options(prompt_set.max_new_tokens)
    seen = [_Draw(d, text, budget_tokens, policy) for d, text in enumerate(before)]
    n, orders = len(trajectories), {}
    for d in range(num_draws):
        orders[d] = random.Random(f"{seed}/{d}").sample(trajectories, n)
    steps = [[(draw, orders[draw.index][i]) for draw in seen] for i in range(n)]
    if not show_previous:  # nothing depends on what came before: one call
        steps = [[pair for step in steps for pair in step]]
    counts: Counter[str] = Counter()
    bar = tqdm(steps, desc="extract", unit="game", disable=not progress, mininterval=1)
    for step, pairs in enumerate(bar):
        prompts = []
        for draw, game in pairs:
            messages = extract_messages(prompt_set, game, draw.known if show_previous else "")
            prompts.append(policy.encode(messages))
        replies = generate(policy, prompts, seed=seed * 1009 + step, **options)
        new = [_items_of(policy, reply, strict) for reply in replies]
        for (draw, game), texts in zip(pairs, new, strict=True):
            draw.add(texts, game, round)
        empty = sum(not texts for texts in new)
        row = {"replies": len(new), "empty": empty, "items": sum(map(len, new))}
        counts.update(row)
        bar.set_postfix(counts, refresh=False)
        if on_step:
            on_step(row)
    return [item for draw in seen for item in draw.items]


class _Draw:
    """One pass over the games: its items, and the experience text that it knows."""

    def __init__(self, index: int, before: str, budget_tokens: int | None, policy: Policy):
        self.index, self.before, self.policy = index, before, policy
        self.budget_tokens = budget_tokens
        self.known = truncate_to_budget(before, budget_tokens, policy.tokenizer)
        self.items: list[ExperienceItem] = []

    def add(self, texts: list[str], game: Trajectory, round: int) -> None:
        """Append the items of a game; over the budget the oldest go."""
        evidence = (Evidence(game.id, max(0, len(game.turns) - 1)),)
        about = evidence, self.policy.name, round, self.index
        for i, text in enumerate(texts):
            name = f"r{round}-d{self.index}-{game.id}-{i}"
            self.items.append(ExperienceItem(name, text, *about))
        known = join_experience(self.before, self.items)
        self.known = truncate_to_budget(known, self.budget_tokens, self.policy.tokenizer)
        lines = self.known.count("\n") + bool(self.known)  # an item is one line
        self.items = self.items[max(0, len(self.items) - lines) :]


def _items_of(policy: Policy, reply: Reply, strict: bool) -> list[str]:
    """The items of a reply, each once; the last one of a reply that was cut off is cut off too."""
    texts = parse_items(policy.answer_text(reply.text), strict)
    return list(dict.fromkeys(texts[:-1] if reply.truncated else texts))

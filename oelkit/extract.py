"""Extract: the policy reads its own trajectories and writes down in a line or two what they teach.

One game a step, with the experience so far shown (or not); items are appended, over the cap the oldest go first
(arXiv 2603.16856, section 3). Draws are independent runs over the games in another order and with another seed; all draws
of a step are one generation call. The strict parser is the paper's; the default also takes what real models write instead.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from tqdm import tqdm

from .curate import experience_text, one_line
from .generation import generate
from .policy import Policy, answer_text
from .prompts import MARKER, Prompts, extract_messages, load_prompts
from .records import Evidence, ExperienceItem, Trajectory

_TOLERANT = re.compile(r"[-*•#>\d.()\s]*\**\s*experience[ _-]*items?\s*#?\d*\s*\**\s*:\s*\**", re.IGNORECASE)


def parse_items(text: str, strict: bool = False) -> list[str]:
    """The items of a reply, one line each, in order.

    strict: only lines that start with exactly `- EXPERIENCE ITEM:`. Else also `### EXPERIENCE ITEM:`, `- Experience Item:`,
    no dash, a number, bold, several on a line, and the text on the line after the marker.
    """
    if strict:
        found = [line[len(MARKER) :] for line in text.split("\n") if line.startswith(MARKER)]
    else:
        marks = list(_TOLERANT.finditer(text))
        ends = [m.start() for m in marks[1:]] + [len(text)]
        # \s* of the marker has eaten a line break where the text stands on the next line
        found = [text[m.end() : end].split("\n")[0].strip(" *_`") for m, end in zip(marks, ends, strict=True)]
    return [item for item in map(one_line, found) if item]


def extract(
    policy: Policy,
    trajectories: Sequence[Trajectory],
    previous: str | Sequence[str] = "",
    *,
    draws: int = 1,
    show_previous: bool = True,
    budget_tokens: int | None = 8192,
    strict: bool = False,
    prompts: str | Prompts | None = None,
    temperature: float = 0.7,
    max_new_tokens: int | None = None,
    seed: int = 0,
    round: int = 0,
    progress: bool = False,
) -> list[ExperienceItem]:
    """Read the games one by one and return the items of all draws, oldest first within each draw.

    previous: experience from before that the draws start from, one text for all or one a draw. budget_tokens: cap of a draw's items (with `previous`
    first to go out of sight). draws: independent passes, told apart by `ExperienceItem.draw`. ValueError for no trajectories.
    """
    if not trajectories:
        raise ValueError("nothing to extract from: the list of trajectories is empty")
    prompts = prompts if isinstance(prompts, Prompts) else load_prompts(prompts or policy.prompts)
    orders = [random.Random(f"{seed}/{d}").sample(range(len(trajectories)), len(trajectories)) for d in range(draws)]
    items: list[list[ExperienceItem]] = [[] for _ in range(draws)]

    before = [previous] * draws if isinstance(previous, str) else list(previous)

    def known(draw: int) -> str:
        return join_experience(before[draw], items[draw])

    def add(draw: int, trajectory: Trajectory, reply: str) -> None:
        for n, text in enumerate(parse_items(answer_text(reply), strict)):
            evidence = Evidence(trajectory.id, len(trajectory.turns) - 1)
            name = f"r{round}-d{draw}-{trajectory.id}-{n}"
            items[draw].append(ExperienceItem(name, text, (evidence,), policy.name, round, draw))
        while budget_tokens is not None and len(policy.tokenizer(experience_text(items[draw]))["input_ids"]) > budget_tokens:
            items[draw].pop(0)

    pairs = [[(d, trajectories[orders[d][step]]) for d in range(draws)] for step in range(len(trajectories))]
    if not show_previous:  # nothing depends on what came before: one call
        pairs = [[pair for step in pairs for pair in step]]
    for step, group in enumerate(tqdm(pairs, desc="extract", unit="game", disable=not progress, mininterval=1)):
        asked = [policy.encode(extract_messages(prompts, t, known(d) if show_previous else "")) for d, t in group]
        replies = generate(policy, asked, max_new_tokens=max_new_tokens or prompts.max_new_tokens, temperature=temperature,
                           seed=seed * 1009 + step)  # fmt: skip
        for (draw, trajectory), reply in zip(group, replies, strict=True):
            add(draw, trajectory, reply.text)
    return [item for draw in items for item in draw]


def join_experience(previous: str, items: Sequence[ExperienceItem]) -> str:
    """Experience from before with new items behind it, as the teacher reads it."""
    return "\n".join(filter(None, (previous, experience_text(items))))

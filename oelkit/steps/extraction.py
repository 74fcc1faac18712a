"""Extract: the policy reads its own trajectories and writes down in a line or two what they teach.

Each step reads one game, with or without the experience so far. Items are appended; over the
budget, the oldest are dropped first (arXiv 2603.16856, section 3). Draws are independent passes
over the games, each in its own order; all draws of a step are one generation call. A game longer
than the context is read in windows of whole turns, and later windows show the items of earlier
ones. The strict parser is the paper's; the default also accepts what real models write instead (see
`parse_items`).

Departures from the paper: an item repeated in a reply counts once, and the last item of a reply
that was cut off is dropped."""

from __future__ import annotations

import random
import warnings
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import given
from ..config import Sampling, also_takes
from ..likeness import teaching_turn
from ..messages import plain
from ..model.policy import Policy
from ..model.sampling import Reply, generate
from ..progress import Bar
from ..prompts import PromptSet, extract_messages, load_prompt_set
from ..records import Evidence, ExperienceItem, Message, Trajectory
from ..text import (
    answer_text,
    experience_text,
    join_experience,
    parse_items,
    says_nothing_new,
    truncate_to_budget,
)
from .training import MEET, oom_hint, warn_of_chats


# why: fifteen, because eight say what is read and written, and a run drives it with the rest; half
# of the lines are the docstring
@also_takes(Sampling)
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
    writer: Callable[[list[Message]], str] | None = None,
    on_step: Callable[[dict], None] | None = None,
    progress: bool = False,
    **changes: Any,
) -> list[ExperienceItem]:
    """Read the games one by one and write down experience items.

    Args:
        policy: its student reads and writes.
        trajectories: the games.
        previous: experience that the draws start from, one text for all or one per draw.
        sampling: how replies are sampled.
        num_draws: number of independent passes (`ExperienceItem.draw`).
        show_previous: whether a draw is shown its experience text so far.
        budget_tokens: most tokens of a draw's experience text, including `previous`.
        strict: accept only the paper's form of an item.
        prompt_set: asks for the items (None: the policy's own).
        seed: fixes the order of games and the replies.
        round: stored in the records.
        writer: function that answers messages instead of the policy, such as a larger model behind
            an API. The paper finds that a model learns best from its own items (section 4.4).
        on_step: called with {"replies", "empty", "nothing_new", "items"} after each step. `empty`
            counts replies without an item, `nothing_new` those that say there is nothing new.
        progress: show a progress bar.
        **changes: fields of the sampling (`oelkit.config.Sampling`: temperature, top_p, top_k,
            max_new_tokens, batch_tokens), as keywords.

    Returns:
        The items of all draws, oldest first within each draw.

    Raises:
        ValueError: no trajectories or draws, two trajectories with the same id, a wrong number of
            previous texts, or no game fits the context. If some fit, a warning counts the others.
    """
    given.a_policy(policy)
    trajectories = given.records("trajectories", trajectories, Trajectory)
    before = given.texts("previous", previous)
    if not trajectories:
        raise ValueError("nothing to extract from: the list of trajectories is empty")
    double, count = Counter(game.id for game in trajectories).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{count} trajectories are called {double!r}: each needs its own id")
    given.function("writer", writer)
    given.function("on_step", on_step)
    num_draws, seed = given.whole("num_draws", num_draws), given.whole("seed", seed)
    round = given.whole("round", round)
    before = before * num_draws if isinstance(previous, str) else before
    if budget_tokens is not None and given.whole("budget_tokens", budget_tokens) < 0:
        raise ValueError(f"budget_tokens={budget_tokens}: need 0 or more; None is no limit")
    if num_draws < 1 or len(before) != num_draws:
        raise ValueError(f"{num_draws} draws with {len(before)} previous texts: need one per draw")
    prompt_set = load_prompt_set(prompt_set or policy.default_prompt_set)
    drawn = given.settings("sampling", Sampling, sampling, changes)
    options = drawn.options(prompt_set.max_new_tokens)
    room = policy.context_length - options["max_new_tokens"]
    room = None if writer else room  # another model has a context of its own
    seen = [_Draw(d, text, budget_tokens, policy) for d, text in enumerate(before)]
    trajectories = _readable(policy, prompt_set, trajectories, room)
    prompts = [t.prompt for g in trajectories if g.env_id == "log" for t in g.turns]
    warn_of_chats(policy, prompts)
    _warn_of_tools(policy, prompts)
    n, lanes = len(trajectories), list[_Lane]()
    for draw in seen:
        games = random.Random(f"{seed}/{draw.index}").sample(trajectories, n)
        lanes.append(_Lane(draw, games, show_previous))
    if not show_previous:  # nothing depends on what came before: one call
        lanes = [_Lane(lane.draw, [lane.games[i]], False) for i in range(n) for lane in lanes]
    step, written, bar = 0, 0, Bar("extract", n * num_draws, "reading", progress)
    read = "conversations" if all(g.env_id == "log" for g in trajectories) else "games"
    with bar:
        while lanes:
            messages = [lane.messages(prompt_set, room) for lane in lanes]
            if writer:
                said = (given.one("what writer gives", writer(plain(m)), str) for m in messages)
                replies = [Reply([], text, False) for text in said]
                prompts = [list[int]() for _ in replies]
            else:
                prompts = [policy.encode(asked) for asked in messages]
                longest = options["max_new_tokens"]
                with oom_hint("extraction", max_new_tokens=longest, num_draws=num_draws):
                    replies = generate(policy, prompts, seed=seed * 1009 + step, **options)
            if all(reply.error for reply in replies):
                raise RuntimeError("the model's server answered no request") from replies[0].error
            answers = [
                policy.answer_text(reply.text, prompt) if prompt else answer_text(reply.text)
                for prompt, reply in zip(prompts, replies, strict=True)
            ]
            new = [_items_of(a, r.truncated, strict) for a, r in zip(answers, replies, strict=True)]
            done = [lane.add(texts, round) for lane, texts in zip(lanes, new, strict=True)]
            row = {"replies": len(new), "empty": sum(not texts for texts in new)}
            row |= {"nothing_new": sum(map(says_nothing_new, answers)), "items": sum(map(len, new))}
            written += row["items"]
            bar.set_postfix({read: n, "items": written}, refresh=False)
            bar.update(sum(done))
            if on_step:
                on_step(row)
            lanes, step = [lane for lane in lanes if lane.games], step + 1
    return [item for draw in seen for item in draw.items]


class _Draw:
    """One pass over the games: its items, and its experience text so far."""

    def __init__(self, index: int, before: str, budget_tokens: int | None, policy: Policy):
        self.index, self.before, self.policy = index, before, policy
        self.budget_tokens = budget_tokens
        self.known = truncate_to_budget(before, budget_tokens, policy.tokenizer)
        self.items: list[ExperienceItem] = []

    def add(self, texts: dict[str, Evidence], round: int, first: int) -> None:
        """Append the items of a window that begins with turn `first`, within the budget."""
        about = self.policy.name, round, self.index
        place = f" from turn {first + 1}" if first else ""  # "a-2" can be another game's id
        for i, (text, evidence) in enumerate(texts.items()):
            name = f"r{round}-d{self.index}-{evidence.trajectory_id}{place}-{i}"
            self.items.append(ExperienceItem(name, text, (evidence,), *about))
        known = join_experience(self.before, self.items)
        self.known = truncate_to_budget(known, self.budget_tokens, self.policy.tokenizer)
        lines = self.known.count("\n") + bool(self.known)  # an item is one line
        self.items = self.items[max(0, len(self.items) - lines) :]


@dataclass
class _Lane:
    """Games that a draw reads one after another, a long one in windows of whole turns."""

    draw: _Draw
    games: list[Trajectory]
    show_previous: bool
    first: int = 0  # turn with which the window of the first game begins
    end: int = 0

    def messages(self, prompt_set: PromptSet, room: int | None) -> list[Message]:
        """Return the prompt for the largest window that fits `room` tokens (None: the whole game).

        Later windows of a game always show the items of earlier ones.
        """
        game, policy = self.games[0], self.draw.policy
        known = self.draw.known if self.show_previous else self._earlier()
        self.end = n = len(game.turns)
        messages = _asked(prompt_set, game, self.first, n, known)
        if room is None or len(policy.encode(messages)) <= room:
            return messages

        def too_long(end: int) -> bool:
            return len(policy.encode(_asked(prompt_set, game, self.first, end, known))) > room

        fits = bisect_left(range(self.first + 1, n), True, key=too_long)
        self.end = max(self.first + 1, self.first + fits)
        if not fits:  # not even one turn fits: drop known items, the oldest first
            alone = policy.encode(_asked(prompt_set, game, self.first, self.end, "-"))
            left = max(0, room - len(alone) - MEET)
            known = truncate_to_budget(known, left, policy.tokenizer) if left else ""
        return _asked(prompt_set, game, self.first, self.end, known)

    def _earlier(self) -> str:
        """Return the items from earlier windows of the same game."""
        own = [i for i in self.draw.items if i.evidence[0].trajectory_id == self.games[0].id]
        return experience_text(own) if self.first else ""

    def add(self, texts: list[str], round: int) -> bool:
        """Add the items of the window to the draw; return whether its game is done."""
        game = self.games[0]
        turns = game.turns[self.first : self.end]
        taught = {t: Evidence(game.id, self.first + teaching_turn(t, turns)) for t in texts}
        self.draw.add(taught, round, self.first)
        self.first = 0 if (done := self.end >= len(game.turns)) else self.end
        self.games = self.games[done:]
        return done


def _asked(prompt_set: PromptSet, game: Trajectory, first: int, end: int, known: str) -> Any:
    return extract_messages(prompt_set, replace(game, turns=game.turns[first:end]), known, first)


def _readable(
    policy: Policy, prompt_set: PromptSet, games: Sequence[Trajectory], room: int | None
) -> list[Trajectory]:
    """Return the games that windows can read; warn about those with a turn over the context."""
    games = [game for game in games if game.turns]  # without turns, its world failed at once
    if not games:
        raise ValueError("nothing to extract from: no game has a turn")
    if room is None:
        return games
    good, why = list[Trajectory](), ""

    def tokens(game: Trajectory, first: int, end: int) -> int:
        return len(policy.encode(_asked(prompt_set, game, first, end, "")))

    for game in games:
        n = len(game.turns)
        turns = [] if tokens(game, 0, n) <= room else [tokens(game, i, i + 1) for i in range(n)]
        if max(turns, default=room) <= room:
            good.append(game)
            continue
        why = why or (
            f"turn {turns.index(max(turns)) + 1} of {game.id!r} alone takes {max(turns)} "
            f"tokens, but the context has room for {room} beside a reply; "
            "leave this game out, or lower max_new_tokens"
        )
    if not good:
        raise ValueError(why)
    if why:
        few = f"{len(games) - len(good)} of {len(games)} games"
        told = "are left out because a turn does not fit the context"
        warnings.warn(f"{few} {told}: {why}", stacklevel=3)
    return good


def _warn_of_tools(policy: Policy, prompts: Sequence[Sequence[Message]]) -> None:
    """Warn at once of prompts that the chat template rejects: training leaves them out."""
    refused = list[str]()
    for prompt in prompts:
        if any({"tools", "tool_calls"} & m.keys() for m in prompt):
            try:
                policy.encode(prompt)
            except ValueError as error:
                refused.append(str(error))
    if refused:
        told = f"training will leave out {len(refused)} of the {len(prompts)} replies in these logs"
        warnings.warn(f"{told}: {refused[0]}", stacklevel=3)


def _items_of(answer: str, truncated: bool, strict: bool) -> list[str]:
    """Return the items of an answer, each once; without the last one if the reply was cut off."""
    texts = parse_items(answer, strict)
    return list(dict.fromkeys(texts[:-1] if truncated else texts))

"""Rollout: the policy plays text worlds and leaves trajectories.

All live games of a turn are one generation call. No reward reaches a trajectory, only the outcome.
The protocol of the paper is the world's (`envs`); sampling is the paper's T = 0.7 by default."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from hashlib import sha256
from itertools import compress
from typing import Any

from tqdm import tqdm

from .. import envs, given
from ..config import Sampling
from ..model.policy import Policy
from ..model.sampling import Reply, generate
from ..prompts import PromptSet, act_messages, game_text, load_prompt_set, with_experience
from ..records import Outcome, State, Trajectory, Turn


# why: thirteen, for the first five say what is played, the rest how a run drives and records it
def rollout(
    policy: Policy,
    env_id: str,
    seeds: Sequence[int],
    experience: str | Sequence[str] = "",
    sampling: Sampling | None = None,
    *,
    prompt_set: str | PromptSet | None = None,
    system: str | None = None,
    seed: int = 0,
    round: int = 0,
    adapter: str | None = "student",
    env_kwargs: dict[str, Any] | None = None,
    progress: bool = False,
    **changes: Any,
) -> list[Trajectory]:
    """Play one game per map seed.

    Args:
        policy: the player.
        env_id: a registered world.
        seeds: one map seed per game.
        experience: a text for all prompts, or one text per game.
        sampling: how replies are drawn.
        prompt_set: also chooses the board's rendering and the default of max_new_tokens (None: the
            policy's own).
        system: the agent's system prompt, in front of each state (None: the prompt set's).
        seed: fixes the replies.
        round: goes into the records.
        adapter: "student", "teacher", or None for the base model.
        env_kwargs: arguments of the world.
        progress: shows a bar.
        **changes: fields of the sampling, as keywords (temperature=0).

    Returns:
        The trajectories, in the order of the seeds. A game whose prompt outgrows the context ends
        there (turn_limit, its prompt's tokens as `extra["overflow"]`), and a warning counts them.

    Raises:
        ValueError: unknown world, no seeds, or another number of texts.
        TypeError: seeds or texts are something else, a text for a list of them say.
    """
    given.a_policy(policy)
    seeds, texts = given.seeds("seeds", seeds), given.texts("experience", experience)
    if not seeds:
        raise ValueError("no games to play: seeds is empty")
    texts = texts * len(seeds) if isinstance(experience, str) else texts
    if len(texts) != len(seeds):
        raise ValueError(f"{len(texts)} experience texts for {len(seeds)} games: one, or one each")
    if not isinstance(prompt_set, PromptSet):
        prompt_set = load_prompt_set(prompt_set or policy.default_prompt_set)
    if system is not None:
        prompt_set = replace(prompt_set, system=system)
    options = replace(sampling or Sampling(), **changes).options(prompt_set.max_new_tokens)
    kwargs = {"board": prompt_set.board, **(env_kwargs or {})}
    room = policy.context_length - options["max_new_tokens"]
    bar = tqdm(total=len(seeds), desc="rollout", unit="game", disable=not progress, mininterval=1)
    with bar, ExitStack() as worlds:  # closed also where one of them raises
        games = [
            _Game(worlds.enter_context(closing(envs.make(env_id, **kwargs))), s, t)
            for s, t in zip(seeds, texts)
        ]
        for turn in range(max(game.env.max_turns for game in games)):
            live = [game for game in games if game.outcome is None]
            prompts = [game.prompt(prompt_set) for game in live]
            ids = [policy.encode(prompt) for prompt in prompts]
            fits = [len(encoded) <= room for encoded in ids]
            if turn or any(fits):  # else the settings are wrong, as `generate` will say
                for game, encoded, fit in zip(live, ids, fits, strict=True):
                    if not fit:  # it has outgrown the context: the others go on
                        game.outcome, game.extra = Outcome.TURN_LIMIT, {"overflow": len(encoded)}
                live, prompts = [*compress(live, fits)], [*compress(prompts, fits)]
                ids = [*compress(ids, fits)]
            if not live:
                break
            replies = generate(policy, ids, seed=seed * 1009 + turn, adapter=adapter, **options)
            for game, prompt, prompt_ids, reply in zip(live, prompts, ids, replies, strict=True):
                game.play(prompt, len(prompt_ids), reply, policy.answer_text(reply.text))
            bar.update(sum(game.outcome is not None for game in live))
    out = []
    for i, game in enumerate(games):
        name = f"{env_id.split('/')[-1]}-r{round}-m{game.seed}-s{seed}-{i}"
        about = name + _arm(adapter, game.text), env_id, game.seed, policy.name, round
        outcome = game.outcome or Outcome.UNKNOWN
        feedback = game.turns[-1].feedback if game.turns else ""
        out.append(Trajectory(*about, tuple(game.turns), outcome, feedback, game.extra))
    if over := [game.seed for game in games if "overflow" in game.extra]:
        warnings.warn(
            f"{len(over)} of {len(games)} games outgrew the context of {policy.context_length} "
            f"tokens and ended there (maps {', '.join(map(str, over[:5]))})",
            stacklevel=2,
        )
    return out


class _Game:
    """A game that is going on, and the experience text that its player reads."""

    def __init__(self, env: Any, seed: int, text: str):
        self.env, self.seed, self.text = env, seed, text
        self.board, info = env.reset(seed=seed)
        self.about = _about(info)
        self.turns: list[Turn] = []
        self.outcome: Outcome | None = None
        self.extra: dict[str, int] = {}

    def prompt(self, prompt_set: PromptSet) -> list[dict]:
        """The messages of this turn."""
        limits = self.env.max_turns, self.env.moves
        state = act_messages(prompt_set, self.board, self.turns, *limits)
        return with_experience(prompt_set, state, self.text)

    def play(self, prompt: list[dict], prompt_tokens: int, reply: Reply, answer: str) -> None:
        """Record the reply and give its answer to the world."""
        before = self.board
        self.board, _, _, _, info = self.env.step(answer)
        move, lengths = (info["action"], info["feedback"]), (prompt_tokens, len(reply.ids))
        rest = reply.truncated, self.about
        self.turns.append(Turn(before, prompt, reply.text, *move, *lengths, *rest))
        self.outcome, self.about = info["outcome"], _about(info)


def _about(info: dict[str, Any]) -> dict[str, Any]:
    """What a world says of the board that it shows, for the record of the turn."""
    return {"level": info["level"]} if "level" in info else {}


def _arm(adapter: str | None, text: str) -> str:
    """What sets the id apart from that of the student's game on the same map without experience."""
    weights = "" if adapter == "student" else f"-{adapter or 'base'}"
    return weights + (f"-{sha256(text.encode()).hexdigest()[:8]}" if text else "")


def states(trajectories: Sequence[Trajectory]) -> list[State]:
    """The training states of trajectories played without experience: every turn's prompt.

    Raises:
        ValueError: there is none.
    """
    out = []
    for t in given.records("trajectories", trajectories, Trajectory):
        out += [State(f"{t.id}/{i}", t.id, i, turn.prompt) for i, turn in enumerate(t.turns)]
    if not out:
        raise ValueError("no states: the trajectories are empty")
    return out


def raw_games_text(trajectories: Sequence[Trajectory], prompt_set: PromptSet) -> str:
    """Raw trajectories as an experience text, for the arm that skips extraction."""
    return "\n".join(game_text(prompt_set, game) for game in trajectories).strip("\n")

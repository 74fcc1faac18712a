"""Rollout: the policy plays text worlds, all live games of a turn in one generation call, and
leaves trajectories.

What it does not: judge or train. No reward reaches a trajectory, only the outcome. It holds the
paper's protocol through the world itself (`envs.protocol`); sampling defaults to the paper's T =
0.7."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from .. import envs
from ..model.policy import Policy
from ..model.sampling import generate
from ..prompts import PromptSet, act_messages, game_text, load_prompt_set, with_experience
from ..records import Outcome, State, Trajectory, Turn
from ..text import answer_text


def rollout(
    policy: Policy,
    env_id: str,
    seeds: Sequence[int],
    experience: str | Sequence[str] = "",
    *,
    prompt_set: str | PromptSet | None = None,
    temperature: float = 0.7,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int | None = None,
    seed: int = 0,
    round: int = 0,
    adapter: str | None = "student",
    env_kwargs: dict[str, Any] | None = None,
    progress: bool = False,
) -> list[Trajectory]:
    """Play one game a map seed and return the trajectories in that order.

    experience: text for every prompt, or one text a game. prompt_set: a set or its name (None: the
    model's default), which also chooses the board's rendering and the default of max_new_tokens.
    seed: of the sampling. ValueError for an unknown world, no seeds, or a list of experiences of
    another length; a prompt over the context is one of `generate`."""
    if not len(seeds):
        raise ValueError("no games to play: seeds is empty")
    texts = [experience] * len(seeds) if isinstance(experience, str) else list(experience)
    if len(texts) != len(seeds):
        raise ValueError(
            f"{len(texts)} experiences for {len(seeds)} games: give one text, or one a game"
        )
    if not isinstance(prompt_set, PromptSet):
        prompt_set = load_prompt_set(prompt_set or policy.default_prompt_set)
    games = [envs.make(env_id, **{"board": prompt_set.board, **(env_kwargs or {})}) for _ in seeds]
    boards = [game.reset(seed=int(s))[0] for game, s in zip(games, seeds, strict=True)]
    played: list[list[Turn]] = [[] for _ in seeds]
    outcomes: list[Outcome | None] = [None] * len(seeds)
    bar = tqdm(total=len(seeds), desc="rollout", unit="game", disable=not progress, mininterval=1)
    for turn in range(max(game.max_turns for game in games)):
        live = [i for i, outcome in enumerate(outcomes) if outcome is None]
        if not live:
            break
        messages = [
            act_messages(prompt_set, boards[i], played[i], games[i].max_turns, games[i].moves)
            for i in live
        ]
        asked = [
            with_experience(prompt_set, m, texts[i]) for i, m in zip(live, messages, strict=True)
        ]
        ids = [policy.encode(m) for m in asked]
        replies = generate(
            policy,
            ids,
            max_new_tokens=max_new_tokens or prompt_set.max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed * 1009 + turn,
            adapter=adapter,
        )
        for i, prompt, prompt_ids, reply in zip(live, asked, ids, replies, strict=True):
            before = boards[i]
            boards[i], _, _, _, info = games[i].step(answer_text(reply.text))
            played[i].append(
                Turn(
                    before,
                    prompt,
                    reply.text,
                    info["action"],
                    info["feedback"],
                    len(prompt_ids),
                    len(reply.ids),
                    reply.truncated,
                )
            )
            outcomes[i] = info["outcome"]
        bar.update(sum(outcome is not None for outcome in outcomes) - bar.n)
    bar.close()
    name = f"{env_id.split('/')[-1]}-r{round}"
    return [
        Trajectory(
            f"{name}-m{s}-s{seed}-{i}",
            env_id,
            int(s),
            policy.name,
            round,
            tuple(turns),
            outcome,
            turns[-1].feedback,
        )
        for i, (s, turns, outcome) in enumerate(zip(seeds, played, outcomes, strict=True))
    ]


def states(trajectories: Sequence[Trajectory]) -> list[State]:
    """The training states of trajectories: every turn's prompt, to be answered again without an
    environment.

    The games must have been played without experience; ValueError where there is none.
    """
    found = [
        State(f"{t.id}/{i}", t.id, i, turn.prompt)
        for t in trajectories
        for i, turn in enumerate(t.turns)
    ]
    if not found:
        raise ValueError("no states: the trajectories are empty")
    return found


def raw_games_text(trajectories: Sequence[Trajectory], prompt_set: PromptSet) -> str:
    """Raw trajectories as the text of an experience, for the arm that skips extraction."""
    return "\n".join(game_text(prompt_set, game) for game in trajectories).strip("\n")

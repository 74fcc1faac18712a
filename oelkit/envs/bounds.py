"""Floors and ceiling of a world, computed and not sampled: what a player gets who has learned
nothing, and the most.

Value iteration over (where things are, turns left), layout by layout: exact also where the ice is
slippery. The best fixed plan comes from playing every plan of `max_turns` moves on every layout.
Nothing here knows of models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..records import Outcome
from .text_env import ACTIONS, TextEnv

NAMES = {"random": "random policy", "fixed_plan": "best fixed plan", "ceiling": "ceiling"}
_WON, _LOST = 0, 1
_MOST_TURNS = 10  # of 4^10 plans


def _transitions(env: TextEnv) -> tuple[np.ndarray, np.ndarray]:
    """Where each action leads and how probably, both [nodes, 4, ends]; nodes: won, lost, (position,
    warned) …

    The start is node 2.
    """
    start = (env.position, False)
    numbers, depth = {"won": _WON, "lost": _LOST, start: 2}, {start: 0}
    rows, queue = [[[(_WON, 1.0)]] * 4, [[(_LOST, 1.0)]] * 4], [start]
    for node in queue:  # grows while it is walked
        row = []
        for action in ACTIONS if depth[node] < env.max_turns else ():
            (env.position, warned), ends = node, []
            for chance, position, outcome in env._chances(action):
                invalid = outcome is Outcome.INVALID
                after = (
                    "won"
                    if outcome is Outcome.SUCCESS
                    else "lost"
                    if outcome is Outcome.FAILURE
                    else None
                )
                after = after or ("lost" if invalid and warned else (position, invalid))
                if after not in numbers:
                    numbers[after], depth[after] = len(numbers), depth[node] + 1
                    queue.append(after)
                ends.append((numbers[after], chance))
            row.append(ends)
        rows.append(row or [[(_LOST, 1.0)]] * 4)  # out of turns
    most = max(len(ends) for row in rows for ends in row)
    table = np.array([[ends + [(_LOST, 0.0)] * (most - len(ends)) for ends in row] for row in rows])
    return table[..., 0].astype(int), table[..., 1]


def bounds(env: str | TextEnv, seeds: Iterable[int], **env_kwargs: Any) -> dict[str, Any]:
    """Pass rates in [0, 1] on the layouts of `seeds`: random player, best fixed plan, best policy
    (the ceiling).

    `env` is an id (made with `env_kwargs`) or a TextEnv. Returns {"random", "fixed_plan",
    "ceiling", "plan", "n"}; `plan` is the one sequence of moves that passes most layouts. Both are
    None over 10 turns and where moves lead to places by chance, all are None for a world of which
    there is no model. Raises ValueError without seeds."""
    from . import make

    env = make(env, **env_kwargs) if isinstance(env, str) else env
    seeds = list(seeds)
    if not (n := len(seeds)):
        raise ValueError("bounds needs at least one seed")
    found: dict[str, Any] = {**dict.fromkeys(NAMES), "plan": None, "n": n}
    if not isinstance(env, TextEnv):
        return found
    random, ceiling, wins = (
        0.0,
        0.0,
        np.zeros(4**env.max_turns if env.max_turns <= _MOST_TURNS else 0, dtype=int),
    )
    for seed in seeds:
        env.reset(seed=seed)
        to, chance = _transitions(env)
        best = mean = (np.arange(len(to)) == _WON).astype(float)
        for _ in range(env.max_turns):
            best, mean = (chance * best[to]).sum(2).max(1), (chance * mean[to]).sum(2).mean(1)
        ceiling, random = ceiling + best[2], random + mean[2]
        if to.shape[2] > 1:
            wins = wins[:0]
        if wins.size:
            nodes = np.array([2])
            for _ in range(env.max_turns):
                nodes = to[nodes, :, 0].reshape(-1)  # plan number = its actions as digits in base 4
            wins += nodes == _WON
    env.reset()  # the look-ahead has left it in the middle of nowhere
    found |= {"random": float(random / n), "ceiling": float(ceiling / n)}
    if wins.size:
        plan = int(wins.argmax())
        moves = [env.moves[plan // 4**k % 4] for k in reversed(range(env.max_turns))]
        found |= {"fixed_plan": float(wins[plan] / n), "plan": moves}
    return found


def describe(found: dict[str, Any]) -> str:
    """What `bounds` found, in words; those that are None are left out."""
    return ", ".join(
        f"{name} {found[key]:.1%}" for key, name in NAMES.items() if found[key] is not None
    )

"""Floors and ceilings of a world, computed and not sampled: what a player gets who has learned nothing, and the most.

Every plan of `max_turns` moves is played on every layout. A player who moves at random draws one of these plans, so
the mean over the plans is exactly its pass rate. Nothing here knows of models.
"""

from __future__ import annotations

from typing import Any, Iterable

import numpy as np

from ..records import Outcome
from .protocol import ACTIONS, TextEnv

_WON, _LOST = 0, 1


def _transitions(env: TextEnv) -> np.ndarray:
    """Where each action leads, [nodes, 4]; nodes are won, lost, then (position, warned), the start first."""
    start = (env.position, False)
    numbers, depth = {"won": _WON, "lost": _LOST, start: 2}, {start: 0}
    rows, queue = [[_WON] * 4, [_LOST] * 4], [start]
    for node in queue:  # grows while it is walked
        row = []
        for action in ACTIONS if depth[node] < env.max_turns else ():
            env.position, warned = node
            _, outcome = env._move(action)
            invalid = outcome is Outcome.INVALID
            if outcome is Outcome.SUCCESS or outcome is Outcome.FAILURE or (invalid and warned):
                row.append(_WON if outcome is Outcome.SUCCESS else _LOST)
                continue
            after = (env.position, invalid)
            if after not in numbers:
                numbers[after], depth[after] = len(numbers), depth[node] + 1
                queue.append(after)
            row.append(numbers[after])
        rows.append(row or [_LOST] * 4)  # out of turns
    return np.array(rows)


def bounds(env: str | TextEnv, seeds: Iterable[int], **env_kwargs: Any) -> dict[str, Any]:
    """Pass rates in [0, 1] on the layouts of `seeds`: random player, best fixed plan, solvable within the turns.

    `env` is an id (made with `env_kwargs`) or a TextEnv. Returns {"random", "fixed_plan", "solvable", "plan", "n"};
    `plan` is the one sequence of moves that passes most layouts. Raises ValueError without seeds, and where there are
    too many plans to play them all (over 10 turns).
    """
    from . import make

    env = make(env, **env_kwargs) if isinstance(env, str) else env
    seeds = list(seeds)
    if not seeds:
        raise ValueError("bounds needs at least one seed")
    if env.max_turns > 10:
        raise ValueError(f"bounds plays all 4^{env.max_turns} plans: make the environment with max_turns <= 10")
    wins, solvable = np.zeros(4**env.max_turns, dtype=int), 0
    for seed in seeds:
        env.reset(seed=seed)
        table, nodes = _transitions(env), np.array([2])
        for _ in range(env.max_turns):
            nodes = table[nodes].reshape(-1)  # plan number = its actions as digits in base 4
        wins += nodes == _WON
        solvable += bool((nodes == _WON).any())
    env.reset()  # the look-ahead has left it in the middle of nowhere
    best = int(wins.argmax())
    plan = [ACTIONS[best // 4**k % 4] for k in reversed(range(env.max_turns))]
    n = len(seeds)
    rates = {"random": float(wins.mean() / n), "fixed_plan": float(wins[best] / n), "solvable": solvable / n}
    return {**rates, "plan": plan, "n": n}

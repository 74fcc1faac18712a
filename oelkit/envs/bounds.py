"""Floors and ceiling of a world, computed and not sampled: the pass rates of players who have
learned nothing, and of the best player.

The method is value iteration over (where things are, turns left) for each layout, which is exact
even on slippery ice. The best fixed plan comes from playing every plan of `max_turns` moves on
every layout. Nothing here knows of models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np

from .. import given
from ..records import Outcome
from .board import ACTIONS, DESCENT_ROLES, neighbours
from .descent import DescentBoard, DescentEnv
from .text_env import TextEnv, TextEnvWrapper
from .worlds import opened

NAMES = {"random": "random policy", "fixed_plan": "best fixed plan", "ceiling": "ceiling"}
_WON, _LOST, _START = 0, 1, 2  # node numbers; other nodes are a position, warned or not
_MAX_PLAN_TURNS = 10  # 4^10 plans
_AT_ONCE = 64  # layouts, to bound the memory


def _transitions(env: TextEnv) -> tuple[np.ndarray, np.ndarray]:
    """Return where each action leads and with what probability, both [nodes, actions, ends]."""
    start = (env.position, False)
    numbers: dict[Any, int] = {Outcome.SUCCESS: _WON, Outcome.FAILURE: _LOST, start: _START}
    depth, queue = {start: 0}, [start]
    rows = [[[(_WON, 1.0)]] * len(ACTIONS), [[(_LOST, 1.0)]] * len(ACTIONS)]
    for node in queue:  # grows while it is walked
        row: list[list[tuple[int, float]]] = []
        for action in ACTIONS if depth[node] < env.max_turns else ():
            (env.position, warned), ends = node, []
            for chance, position, outcome in env.chances(action):
                invalid = outcome is Outcome.INVALID
                after: Any = Outcome.FAILURE if invalid and warned else outcome
                if outcome is None or (invalid and not warned):
                    after = (position, invalid)
                if after not in numbers:
                    numbers[after], depth[after] = len(numbers), depth[node] + 1
                    queue.append(after)
                ends.append((numbers[after], chance))
            row.append(ends)
        rows.append(row or rows[_LOST])  # out of turns
    most = max(len(ends) for row in rows for ends in row)
    table = np.array([[ends + [(_LOST, 0.0)] * (most - len(ends)) for ends in row] for row in rows])
    return table[..., 0].astype(int), table[..., 1]


def bounds(
    env: str | TextEnv | TextEnvWrapper, seeds: Iterable[int], **env_kwargs: Any
) -> dict[str, Any]:
    """Return pass rates in [0, 1] of a random policy, the best fixed plan and the best policy.

    Args:
        env: a TextEnv, or the id of one to make with `env_kwargs`.
        seeds: seeds of the layouts.
        **env_kwargs: arguments of `make`.

    Returns:
        random, fixed_plan, ceiling, plan (the one sequence of moves that passes most layouts) and
        n; for a Descent of several levels also known_levels (`knowledge_bounds`). fixed_plan and
        plan are None above 10 turns and if moves have random results. For a world that is not a
        TextEnv, all rates are None unless it has a `bounds` method of its own.

    Raises:
        ValueError: there are no seeds.
    """
    if isinstance(env, str):
        with opened(env, **env_kwargs) as made:
            return bounds(made, seeds)
    world, seeds = env, given.seeds("seeds", seeds)
    if not seeds:
        raise ValueError("bounds needs at least one seed")
    found: dict[str, Any] = {**dict.fromkeys(NAMES), "plan": None, "n": len(seeds)}
    if not isinstance(world, TextEnv):
        own = getattr(world.unwrapped, "bounds", None)  # a world's own scripted players
        return found | cast(Any, own)(seeds) if callable(own) else found
    plans = len(ACTIONS) ** world.max_turns if world.max_turns <= _MAX_PLAN_TURNS else 0
    random, ceiling, wins = 0.0, 0.0, np.zeros(plans, dtype=int)
    for seed in seeds:
        world.reset(seed=seed)
        to, chance = _transitions(world)
        best = mean = (np.arange(len(to)) == _WON).astype(float)
        for _ in range(world.max_turns):
            best, mean = (chance * best[to]).sum(2).max(1), (chance * mean[to]).sum(2).mean(1)
        ceiling, random = ceiling + best[_START], random + mean[_START]
        if to.shape[2] > 1:
            wins = wins[:0]
        if wins.size:
            nodes = np.array([_START])
            for _ in range(world.max_turns):
                nodes = to[nodes, :, 0].reshape(-1)  # plan number = its actions as digits in base 4
            wins += nodes == _WON
    world.reset()  # the look-ahead leaves it in an arbitrary position
    found |= {"random": float(random / len(seeds)), "ceiling": float(ceiling / len(seeds))}
    if wins.size:
        plan = int(wins.argmax())
        digits = [plan // 4**k % 4 for k in reversed(range(world.max_turns))]
        found["fixed_plan"] = float(wins[plan] / len(seeds))
        found["plan"] = [world.moves[digit] for digit in digits]
    if isinstance(world, DescentEnv) and world.levels > 1:
        found["known_levels"] = knowledge_bounds(world, seeds)
    return found


def knowledge_bounds(env: str | DescentEnv, seeds: Iterable[int], **env_kwargs: Any) -> list[float]:
    """Return pass rates of perfect Descent players who know the letters of the first k levels.

    Of deeper levels they know only the rules: one letter is the key, one the goal, and all
    assignments are equally likely. Value iteration over (cell, letter taken as the key, turns
    left).

    Args:
        env: a DescentEnv, or the id of one to make with `env_kwargs`.
        seeds: seeds of the layouts.
        **env_kwargs: arguments of `make`.

    Returns:
        A rate in [0, 1] for each k from 0 to levels: the steps of the staircase.

    Raises:
        ValueError: there are no seeds, or the world is not a Descent.
    """
    if isinstance(env, str):
        with opened(env, **env_kwargs) as made:
            return knowledge_bounds(cast(DescentEnv, made), seeds)
    world, seeds = env, given.seeds("seeds", seeds)
    if not isinstance(world, DescentEnv) or not seeds:
        raise ValueError("knowledge_bounds needs a Descent and at least one seed")
    rates, levels = np.zeros(world.levels + 1), world.levels
    for at in range(0, len(seeds), _AT_ONCE):
        boards = list[DescentBoard]()
        for seed in seeds[at : at + _AT_ONCE]:
            world.reset(seed=seed)
            boards += world.layout.boards
        known, guessed = (_best(world, boards, informed).tolist() for informed in (True, False))
        for i in range(0, len(boards), levels):
            rest = guessed[i : i + levels]
            rates += [np.prod(known[i : i + k] + rest[k:]) for k in range(levels + 1)]
    return [float(rate) for rate in rates / len(seeds)]


def _best(world: DescentEnv, boards: Sequence[DescentBoard], informed: bool) -> np.ndarray:
    """Return the probability that a perfect player passes each board, its letters known or not."""
    cells, every = world.size**2, np.arange(len(boards))
    ends = [list(neighbours(world.size, cell).values()) for cell in range(cells)]
    around = np.array([(to * 2)[:4] for to in ends])  # at least two each: some twice
    letters = np.array([board.letters for board in boards])
    _, key, goal, _ = range(len(DESCENT_ROLES))
    nothing = len(DESCENT_ROLES)  # no letter taken as the key
    value = np.zeros((len(boards), nothing + 1, cells))  # board, letter taken as the key, cell
    for _ in range(world.turns):
        worth = value.copy()  # of stepping on a cell
        for letter in range(nothing):
            on = letters[:, letter]
            taken = value[every, letter, on]  # by taking this letter as the key
            for held in range(nothing + 1):
                if held == letter:
                    continue
                if informed:
                    found = float(letter == goal and held == key)
                    found = taken if letter == key and held == nothing else found
                elif held == nothing:  # one letter in four is the key, then one in three the goal
                    found = taken / nothing
                else:
                    found = 1 / (nothing - 1)
                worth[every, held, on] = found
        value = worth[:, :, around].max(3)
    return value[every, nothing, [board.start for board in boards]]


def describe(found: dict[str, Any]) -> str:
    """Return what `bounds` found in words, without rates that are None."""
    rates = {name: found[key] for key, name in NAMES.items() if found[key] is not None}
    return ", ".join(f"{name} {rate:.1%}" for name, rate in rates.items())

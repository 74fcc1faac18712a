"""What Descent can show without training a model: a scripted player learns over several rounds.

    python examples/micro/arithmetic.py --levels 3 4 --games 24 32 --seeds 40

If the notes name the letters of key and goal, the player walks to them. Otherwise it walks to the
nearest letter that is not in the notes. After each round, the facts in the feedback of its games
join the notes. The last column has as many games as all rounds together, played without notes."""

from __future__ import annotations

import argparse
import random
from statistics import mean

from oelkit import envs
from oelkit.envs.descent import facts
from oelkit.records import Outcome


def reply(env, notes: dict[str, str], rng: random.Random, slip: float = 0.03) -> str:
    """Return the move of a player who sees the current board and knows the roles in `notes`."""
    board = env.layout.boards[env.level]
    letters = list(env.letters[env.level * 4 : env.level * 4 + 4])
    taken = (board.letters[1],) if env.carrying else ()
    there = [(x, c) for x, c in zip(letters, board.letters, strict=True) if c not in taken]
    ways = {x: board.way(env.cell, c, taken) for x, c in there if c != env.cell}
    near = sorted((x for x in ways if ways[x]), key=lambda x: len(ways[x]))
    wanted = [x for x in near if notes.get(x) == ("goal" if env.carrying else "key")]
    target = (wanted or [x for x in near if x not in notes] or near)[0]
    if rng.random() < slip:
        return f"[{rng.choice(env.moves)}]"
    return f"[{env.word(ways[target][0])}]"


def play(env, seed: int, notes: dict[str, str], rng: random.Random) -> tuple[bool, int, set]:
    """Play one game. Return whether it was won, its last level, and the facts in its feedback."""
    env.reset(seed=seed)
    said: set[tuple[str, str]] = set()
    while True:
        *_, info = env.step(reply(env, notes, rng))
        said |= set(facts(info["feedback"]))
        if info["outcome"] is not None:
            return info["outcome"] is Outcome.SUCCESS, info["level"], said


def rounds(levels: int, games: int, k: int, seed: int, maps: int = 64) -> list[float]:
    """Return pass rates after each of k rounds, and after one round of k * games games."""
    rng = random.Random(seed)
    env = envs.make("oelkit/Descent-v0", levels=levels)
    held_out = envs.make("oelkit/DescentUnseen-v0", levels=levels)

    def learn(notes: dict[str, str], first: int, n: int) -> dict[str, str]:
        said = [play(env, seed * 10_000 + first + i, notes, rng)[2] for i in range(n)]
        return notes | dict(sorted(set().union(*said)))

    def rate(notes: dict[str, str]) -> float:
        return mean(play(held_out, 10**6 + i, notes, rng)[0] for i in range(maps))

    notes: dict[str, str] = {}
    rates = []
    for i in range(k):
        notes = learn(notes, i * games, games)
        rates.append(rate(notes))
    return [*rates, rate(learn({}, 5000, k * games))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--levels", type=int, nargs="+", default=[3, 4])
    parser.add_argument("--games", type=int, nargs="+", default=[24, 32], help="per round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=40)
    args = parser.parse_args()
    head = [f"round {i + 1}" for i in range(args.rounds)]
    print(f"| levels | games | {' | '.join(head)} | one round of all the games |")
    print("|---" * (args.rounds + 3) + "|")
    for levels in args.levels:
        for games in args.games:
            rows = [rounds(levels, games, args.rounds, seed) for seed in range(args.seeds)]
            cells = [f"{mean(column):.0%}" for column in zip(*rows, strict=True)]
            print(f"| {levels} | {games} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

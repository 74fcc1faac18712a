"""Rounds on Descent against one round of as many games from the untrained model.

    python examples/micro/descent.py --seeds 0:2            # 4 minutes of one core per arm and seed
    python examples/micro/descent.py --draw data/results/descent.png

One JSON line per arm, seed and round in data/results/descent.jsonl; goes on where it stopped."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from oelkit import Run, Settings, envs, load_policy
from oelkit.records import Trajectory, append_jsonl, read_jsonl

ROOT = Path(__file__).parents[2]
ROUNDS = 4
ONLINE = Settings.of(
    "tiny",
    env="oelkit/Descent-v0",
    model="data/micro2",
    rounds=ROUNDS,
    extract_games=24,
    state_games=48,
    num_draws=4,
    steps=30,
    lr=3e-4,
    run_ablations=False,
    gate="off",
)
ARMS = {
    "online": ONLINE,
    "offline": replace(
        ONLINE,
        rounds=1,
        extract_games=ROUNDS * ONLINE.extract_games,
        state_games=ROUNDS * ONLINE.state_games,
        steps=ROUNDS * ONLINE.steps,
    ),
}


def levels(games: list[Trajectory]) -> dict[str, int]:
    """How many games reached which level."""
    reached = Counter(max(turn.extra["level"] for turn in game.turns) for game in games)
    return {str(level): reached[level] for level in sorted(reached)}


def measure(policy, arm: str, seed: int, out: Path) -> None:
    """Run an arm with a seed, and append a line per round."""
    settings = replace(ARMS[arm], seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "study", settings, policy, progress=False)
        for k in range(1, settings.rounds + 1):
            run.distill(k)
            m = run.evaluate(k)
            row = {
                "arm": arm,
                "seed": seed,
                "round": k,
                "levels": levels(run.rollout(k)),
                "texts": run.curate(k),
                "ood": m["ood"]["consolidated"]["all"],
                "ood_base": m["ood"]["base"]["all"],
                "pass_rate": m["pass_rate"],
                "command": f"python examples/micro/descent.py --seeds {seed}:{seed + 1}",
            }
            append_jsonl(out, row)
            rates = {name: f"{rate['pass_rate']:.1%}" for name, rate in m["pass_rate"].items()}
            print(arm, seed, k, row["levels"], rates, f"OOD {row['ood']:.0%}", flush=True)


def draw(rows: list[dict], path: Path) -> None:
    """The staircase: pass rates by round and seed, the offline arm, what k levels are worth."""
    from matplotlib.ticker import PercentFormatter

    from oelkit.views.plots import COLOURS, new_figure, styled

    steps = envs.knowledge_bounds("oelkit/DescentUnseen-v0", range(32))

    @styled
    def figure():
        figure, axis = new_figure()
        seeds = sorted({row["seed"] for row in rows})
        for seed in seeds:
            mine = [row for row in rows if row["seed"] == seed and row["arm"] == "online"]
            for arm in ("in_context", "consolidated"):
                xs, ys = [row["round"] for row in mine], [r["pass_rate"][arm] for r in mine]
                axis.plot(
                    [0, *xs],
                    [mine[0]["pass_rate"]["base"]["pass_rate"], *(y["pass_rate"] for y in ys)],
                    "o-",
                    color=COLOURS[arm],
                    lw=1.2,
                    label=arm.replace("_", " ") if seed == seeds[0] else None,
                )
            for row in (r for r in rows if r["seed"] == seed and r["arm"] == "offline"):
                rate = row["pass_rate"]["consolidated"]
                axis.errorbar(
                    ROUNDS + 0.25,
                    rate["pass_rate"],
                    [[rate["pass_rate"] - rate["low"]], [rate["high"] - rate["pass_rate"]]],
                    fmt="s",
                    color="#d55e00",
                    capsize=3,
                    label="one round of all the games" if seed == seeds[0] else None,
                )
        for k, rate in enumerate(steps):
            if rate > 0.02:
                axis.axhline(rate, ls=":", lw=1, color="#555555")
                axis.annotate(
                    f"knows {k} of {len(steps) - 1} levels",
                    (1.01, rate),
                    xycoords=("axes fraction", "data"),
                    va="center",
                    fontsize=8,
                )
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.set(xlabel="round", xticks=range(ROUNDS + 1), ylabel="pass rate", ylim=(-0.02, 1.04))
        last = [
            row["pass_rate"]["consolidated"]["pass_rate"]
            for row in rows
            if row["arm"] == "online" and row["round"] == ROUNDS
        ]
        best = [r["pass_rate"]["consolidated"]["pass_rate"] for r in rows if r["arm"] == "offline"]
        axis.set_title(
            f"Rounds reach {min(last):.0%} to {max(last):.0%}; as many games at once "
            f"{min(best):.0%} to {max(best):.0%} ({len(seeds)} seeds, 128 maps each)"
        )
        figure.legend(loc="outside lower center", ncols=3)
        return figure

    figure().savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0:2", help="first:last, the last left out")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--out", type=Path, default=ROOT / "data/results/descent.jsonl")
    parser.add_argument("--draw", type=Path, help="draw the figure of --out into this file")
    args = parser.parse_args()
    rows = read_jsonl(args.out) if args.out.exists() else []
    if args.draw:
        return draw(rows, args.draw)
    done = {(row["arm"], row["seed"]) for row in rows if row["round"] == ARMS[row["arm"]].rounds}
    policy = load_policy(ROOT / "data/micro2")
    for seed in range(*map(int, args.seeds.split(":"))):
        for arm in args.arms:
            if (arm, seed) not in done:
                measure(policy, arm, seed, args.out)
    return None


if __name__ == "__main__":
    main()

"""Rounds on Descent, one round with as many games of the untrained model, and other arms.

    python examples/micro/descent.py --seeds 0:10 --arms online offline
    python examples/micro/descent.py --seeds 0:2 --arms SFT "forward KL"
    python examples/micro/descent.py --table              # recorded results, in Markdown
    python examples/micro/descent.py --draw data/results  # and their figures

Appends one JSON line per arm, seed and round to data/results/descent.jsonl, and skips recorded
seeds of an arm. A round takes about a minute on one core."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from matplotlib.ticker import PercentFormatter

from oelkit import Curation, Run, Settings, envs, load_policy, paired_bootstrap
from oelkit.records import Trajectory, append_jsonl
from oelkit.runs.run import HELD_OUT
from oelkit.views import plots

sys.path.insert(0, str(Path(__file__).parent))  # missing when a notebook runs this file
import study_plots
from study_plots import grouped, spread

ONLINE = Settings.of("tiny", gate="off")
ROUNDS = ONLINE.rounds
ARMS = {
    "online": ONLINE,
    "offline": replace(
        ONLINE,
        rounds=1,
        extract_games=ROUNDS * ONLINE.extract_games,
        state_games=ROUNDS * ONLINE.state_games,
        steps=ROUNDS * ONLINE.steps,
    ),
    "weight decay": replace(ONLINE, weight_decay=40.0),
    "rehearsal": replace(ONLINE, rehearsal="rehearsal.jsonl", lr=1e-3, lr_schedule="linear"),
    "forward KL": replace(ONLINE, loss="forward_kl"),
    "SFT": replace(ONLINE, loss="sft"),
    "states without experience": replace(ONLINE, states_with_experience=False),
    "no retention": replace(ONLINE, retention=0.0),
    "fresh items": replace(ONLINE, carry_experience=False),
    "gate": replace(ONLINE, gate="rollback"),
    "a person keeps what is true": ONLINE,
    "a wrong item in round 1": ONLINE,
}
PROBE = 256  # number of the embedded model's questions
WRONG = "T is the goal."  # in truth, T is a hole


def levels(games: list[Trajectory]) -> dict[str, int]:
    """Count games by the highest level reached."""
    reached = Counter(max(turn.extra["level"] for turn in game.turns) for game in games)
    return {str(level): reached[level] for level in sorted(reached)}


def truths(env_id: str) -> set[str]:
    """Return all facts of a world, in the words of the model's items."""
    world = envs.make(env_id)
    roles = {x: r for k in range(1, world.levels + 1) for x, r in world.roles(k).items()}
    return {f"{x} is {'a hole' if r == 'hole' else f'the {r}'}." for x, r in roles.items()}


def by_a_person(run: Run, k: int, arm: str) -> None:
    """Curate the items of a round as the person of this arm does, before training."""
    run.extract(k)
    folder = run.folder / f"round_{k}"
    curation = Curation.open(folder / "items.jsonl", folder / "curation.jsonl", author="study")
    if arm == "a person keeps what is true":
        true = truths(run.settings.env)
        for item in curation.items:
            (curation.accept if item.text in true else curation.reject)(item.id)
    elif k == 1:
        curation.accept(curation.add(WRONG))


def measure(policy, arm: str, seed: int, out: Path) -> None:
    """Run an arm with a seed and append a line per round."""
    settings, rows = replace(ARMS[arm], seed=seed), []
    command = f'python examples/micro/descent.py --seeds {seed}:{seed + 1} --arms "{arm}"'
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "study", settings, policy, progress=False)
        for k in range(1, settings.rounds + 1):
            if arm.startswith("a "):
                by_a_person(run, k, arm)
            run.distill(k)
            m = run.evaluate(k)
            rows.append(
                {
                    "arm": arm,
                    "env": settings.env,
                    "seed": seed,
                    "round": k,
                    "start": m["start"],
                    "levels": levels(run.rollout(k)),
                    "texts": run.curate(k),
                    "ood": m["ood"]["consolidated"]["all"],
                    "ood_base": m["ood"]["base"]["all"],
                    "pass_rate": m["pass_rate"],
                    "command": command,
                }
            )
            rates = {n: f"{rate['pass_rate']:.1%}" for n, rate in m["pass_rate"].items()}
            print(arm, seed, k, rows[-1]["levels"], rates, f"OOD {rows[-1]['ood']:.0%}", flush=True)
    for row in rows:  # all rounds or none
        append_jsonl(out, row)


def table(rows: list[dict]) -> str:
    """Return a Markdown table: consolidated pass rate by round and OOD answers after the last.

    Each is mean (lowest-highest) over the seeds.
    """
    head = " | ".join(f"round {k}" for k in range(1, ROUNDS + 1))
    lines = [f"| arm | seeds | {head} | in context, last | tokens per reply | OOD |"]
    lines += ["|---" * (ROUNDS + 5) + "|"]
    for (arm,), mine in grouped(rows, "arm").items():
        by_round = {k: same for (k,), same in grouped(mine, "round").items()}
        last = by_round[max(by_round)]
        cells = [str(len(last))]
        for k in range(1, ROUNDS + 1):
            cells.append(spread([_rate(row, "consolidated") for row in by_round.get(k, [])]))
        cells.append(spread([_rate(row, "in_context") for row in last]))
        first = [row["pass_rate"]["base"]["reply_tokens"] for row in last]
        now = [row["pass_rate"]["consolidated"]["reply_tokens"] for row in last]
        cells.append(f"{statistics.mean(first):.0f} to {statistics.mean(now):.0f}")
        cells.append(spread([row["ood"] for row in last]))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    base = spread([row["ood_base"] for row in rows])
    said = [gains(rows, arm) for arm in ("online", "weight decay", "rehearsal")]
    return "\n".join([*lines, "", f"OOD of the untrained model: {base}.", *filter(None, said)])


def _rate(row: dict, arm: str) -> float:
    return row["pass_rate"][arm]["pass_rate"]


def gains(rows: list[dict], arm: str) -> str:
    """Say in how many seeds each round passes more maps than the previous one, paired by map."""
    by_seed = grouped([row for row in rows if row["arm"] == arm], "seed")
    said = []
    for k in range(2, ROUNDS + 1):
        more = 0
        for mine in by_seed.values():
            before, after = (mine[i]["pass_rate"]["consolidated"]["passes"] for i in (k - 2, k - 1))
            more += paired_bootstrap([c == "1" for c in before], [c == "1" for c in after])[1] > 0
        said.append(f"round {k} passes more than round {k - 1} in {more} of {len(by_seed)} seeds")
    return f"{arm}: by the paired 95 % interval, {', '.join(said)}." if by_seed else ""


def figures(rows: list[dict]) -> dict:
    """Draw all figures, by name.

    rounds: pass rates by round, and all games in one round; levels: how far each round's games
    came; arms: all arms after the last round.
    """
    return {"rounds": staircase(rows), "levels": levels_reached(rows), "arms": last_round(rows)}


def last_round(rows: list[dict]):
    """Draw each arm after the last round, on shared seeds, and the untrained model."""
    last = [row for row in rows if row["round"] == ROUNDS]
    shared = set.intersection(*({r["seed"] for r in of} for of in grouped(last, "arm").values()))
    last = [row for name in ARMS for row in last if row["arm"] == name and row["seed"] in shared]
    probe = {row["seed"]: row["ood_base"] for row in last}
    bars = [
        {"arm": "untrained", "how": "base", "passed": row["pass_rate"]["base"], "seed": row["seed"]}
        for row in last
        if row["arm"] == "online"
    ]
    bars = [{**bar, "ood": {"all": probe[bar["seed"]], "n": PROBE}} for bar in bars]
    for row in last:
        for how in ("in_context", "consolidated"):
            ood = {"all": row["ood"], "n": PROBE} if how == "consolidated" else None
            bars.append(
                {"arm": row["arm"], "how": how, "passed": row["pass_rate"][how], "ood": ood}
            )
    means = {
        arm: statistics.mean(_rate(row, "consolidated") for row in of)
        for (arm,), of in grouped(last, "arm").items()
    }
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    said = ", ".join(f"{arm} {means[arm]:.0%}" for arm in dict.fromkeys(("online", high, low)))
    return study_plots.bars(bars, _known(), f"After {ROUNDS} rounds: {said}")


def _known() -> dict:
    """Return the pass rate that knowing the first levels gives, on the held-out maps."""
    world, maps = envs.held_out(ONLINE.env), range(HELD_OUT, HELD_OUT + ONLINE.eval_maps)
    return {"known_levels": envs.knowledge_bounds(world, maps)}


@plots.styled
def staircase(rows: list[dict]):
    """Draw pass rates by round: each seed thin, the mean thick. Lines: what k known levels give."""
    figure, axis = plots.new_figure()
    online = [row for row in rows if row["arm"] == "online"]
    by_seed = grouped(online, "seed")
    for arm in ("in_context", "consolidated"):
        each = []
        for mine in by_seed.values():
            rates = [_rate(mine[0], "base"), *(_rate(row, arm) for row in mine)]
            axis.plot(range(len(rates)), rates, color=plots.COLOURS[arm], lw=0.7, alpha=0.4)
            each.append(rates)
        mean = [statistics.mean(rates) for rates in zip(*each, strict=True)]
        look = {"color": plots.COLOURS[arm], "lw": 2.2, "label": plots.NAMES[arm]}
        axis.plot(range(len(mean)), mean, "o-", **look)
    offline = [row["pass_rate"]["consolidated"] for row in rows if row["arm"] == "offline"]
    for i, rate in enumerate(offline):
        place = ROUNDS + 0.12 + 0.3 * i / len(offline)
        error = plots.whiskers([(rate["pass_rate"], rate["low"], rate["high"])])
        look = {"color": "#d55e00", "ms": 4, "lw": 0.8, "capsize": 2}
        label = {} if i else {"label": "consolidated, all games in one round"}
        axis.errorbar(place, rate["pass_rate"], error, fmt="s", **look, **label)
    plots.floors(axis, _known())
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set(xlabel="round", xticks=range(ROUNDS + 1), ylabel="pass rate", ylim=(-0.02, 1.04))
    at_end = [_rate(row, "consolidated") for row in online if row["round"] == ROUNDS]
    steps = [
        statistics.mean(_rate(row, "consolidated") for row in online if row["round"] == k)
        for k in range(1, ROUNDS + 1)
    ]
    best = [rate["pass_rate"] for rate in offline]
    base = statistics.mean(_rate(mine[0], "base") for mine in by_seed.values())
    passed = " → ".join(f"{100 * rate:.0f}" for rate in [base, *steps])
    title = f"{ROUNDS} rounds: {passed} % of unseen maps"
    if best:
        title += f"; all games in one round: {statistics.mean(best):.0%}"
    axis.set_title(f"{title}\n{len(at_end)} seeds (thin) and their mean, 128 maps each")
    return plots.legend_below(figure, axis)


@plots.styled
def levels_reached(rows: list[dict]):
    """Draw how far the games of each round came, over all seeds."""
    figure, axis = plots.new_figure(size=(7, 2.6))
    online = grouped([row for row in rows if row["arm"] == "online"], "round")
    names = sorted({level for row in rows for level in row["levels"]})
    left = [0.0] * len(online)
    for level, colour in zip(names, reversed(plots.ROUND_COLOURS[: len(names)]), strict=True):
        games = [sum(sum(row["levels"].values()) for row in mine) for mine in online.values()]
        here = [sum(row["levels"].get(level, 0) for row in mine) for mine in online.values()]
        share = [some / whole for some, whole in zip(here, games, strict=True)]
        ticks = [f"round {k}" for (k,) in online]
        axis.barh(ticks, share, left=left, color=colour, height=0.62, label=f"level {level}")
        left = [a + b for a, b in zip(left, share, strict=True)]
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xlabel="share of a round's games, by the highest level reached")
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_title("With each round, more games reach the higher levels")
    return plots.legend_below(figure, axis)


def main() -> None:
    parser = study_plots.options(__doc__, "data/results/descent.jsonl", "0:10")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    args = parser.parse_args()
    if study_plots.shown(args, table, figures, "descent_"):
        return
    done = {(row["arm"], row["seed"]) for row in study_plots.recorded(args.out)}
    policy = load_policy("micro")
    for seed in args.seeds:
        for arm in args.arms:
            if (arm, seed) not in done:
                measure(policy, arm, seed, args.out)


if __name__ == "__main__":
    main()

"""A real language model learns a dinner course by course: in rounds, and in one round of all games.

    python examples/dinner/learn.py --model MODEL --arm online --seed 0  # resumes where it stopped
    python examples/dinner/learn.py --model MODEL --arm offline --seed 0
    python examples/dinner/learn.py --table              # recorded results, in Markdown
    python examples/dinner/learn.py --draw data/results  # and their figure

Online: three rounds, each from the previous round's model. Offline: one round from the untrained
model, with the games, states and steps of all three. Arm reverse_kl: online as the paper trains,
without first steps of forward KL and with states played without experience. Writes a run folder per
arm and seed to runs/, and one JSON line per arm, seed and round to data/results/dinner.jsonl. Needs
`oelkit` installed, or PYTHONPATH=."""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dinner import COURSES, TABLES, WORDS
from matplotlib.ticker import PercentFormatter

from oelkit import Run, Settings, evaluate, paired_bootstrap
from oelkit.records import Trajectory, append_jsonl, read_jsonl
from oelkit.stats import wilson_interval
from oelkit.views import plots

HERE = Path(__file__).parent
ONLINE = Settings(
    env="dinner:dinner/Dinner-v0",
    prompt_set=str(HERE / "dinner.toml"),
    rounds=3,
    extract_games=24,
    state_games=96,
    states_with_experience=True,
    num_draws=2,
    steps=20,
    off_policy_steps=10,
    batch_size=8,
    lr=3e-4,
    run_ablations=False,
    gate="off",
)
GROWS = ("extract_games", "state_games", "steps", "off_policy_steps")
BUDGET = {name: 3 * getattr(ONLINE, name) for name in GROWS}
SERVED = [f"{k} course{'s' * (k > 1)}" for k in range(1, len(COURSES) + 1)]
ARMS = {
    "online": ONLINE,
    "offline": replace(ONLINE, rounds=1, **BUDGET),
    "reverse_kl": replace(
        ONLINE, states_with_experience=False, steps=40, off_policy_steps=0, batch_size=16
    ),
}


def served(games: Sequence[Trajectory]) -> list[int]:
    """Return the number of correct courses for each guest."""
    return [len(game.turns) - (str(game.outcome) != "success") for game in games]


def is_true(text: str) -> bool:
    """Return whether an item names exactly one table and one dish, and the dish belongs to it."""
    words = set(re.findall(r"\w+", text.lower()))
    tables, dishes = words & set(TABLES), words & WORDS
    return len(tables) == len(dishes) == 1 and any(
        menu[table] in dishes for table in tables for menu in COURSES.values()
    )


def play(run: Run, texts: str | Sequence[str] = "", adapter: str | None = "student") -> dict:
    """Serve the held-out guests with the loaded weights. Return pass rate and courses per guest."""
    sampling, prompts = run.settings.eval_sampling, run.prompts
    options = {"prompt_set": prompts, "adapter": adapter}
    report = evaluate(run.policy, run.eval_env, run.eval_seeds, texts, sampling, **options)
    courses = "".join(map(str, served(report.trajectories)))
    return report.summary() | {"courses": courses}


def learn(settings: Settings, arm: str, out: Path) -> None:
    """Run all rounds of an arm, except those with a recorded line."""
    run = Run(f"runs/dinner_{arm}_{settings.seed}", settings)
    name = Path(settings.model).name
    command = f"python examples/dinner/learn.py --model {name} --arm {arm} --seed {settings.seed}"
    command += f" --dtype {settings.dtype}" * (settings.dtype != ONLINE.dtype)
    for k in range(1, settings.rounds + 1):
        mine = {"arm": arm, "seed": settings.seed, "round": k}
        if any(row.items() >= mine.items() for row in (read_jsonl(out) if out.exists() else [])):
            continue
        began = time.time()
        items, texts = run.extract(k), run.experiences(k)
        run.load(k, trained=False)
        row = mine | {"model": name, "env": run.eval_env, "texts": texts, "items": len(items)}
        row["true"] = sum(is_true(item.text) for item in items)
        row["games"] = dict(sorted(Counter(map(str, served(run.rollout(k)))).items()))
        if k == 1:
            row["base"] = play(run, adapter=None)
        row["in_context"] = play(run, texts, adapter="teacher")
        run.distill(k)
        run.load(k)
        row["consolidated"] = play(run)
        row |= {"seconds": round(time.time() - began), "command": command}
        append_jsonl(out, row)
        print(arm, settings.seed, k, row["games"], f"{row['true']} of {len(items)} items true")
        for how in ("base", "in_context", "consolidated"):
            if how in row:
                print("  ", how, *(f"{rate:.0%}" for rate, _, _ in staircase(row[how])), flush=True)


def staircase(passed: dict) -> list[tuple[float, float, float]]:
    """Return the share of guests with k or more correct courses, with its interval, for each k."""
    right = [int(c) for c in passed["courses"]]
    counts = [sum(n >= k for n in right) for k in range(1, len(COURSES) + 1)]
    return [(n / len(right), *wilson_interval(n, len(right))) for n in counts]


def table(rows: Sequence[dict]) -> str:
    """Return a Markdown table with a line per arm, seed and round."""
    head = ["arm", "seed", "round", "true items", *SERVED, "all in context", "gain over last round"]
    lines, before = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"], {}
    for row in sorted(rows, key=lambda row: ([*ARMS].index(row["arm"]), row["seed"], row["round"])):
        key = row["arm"], row["seed"]
        now = [c == str(len(COURSES)) for c in row["consolidated"]["courses"]]
        cells = [*map(str, (*key, row["round"])), f"{row['true']} of {row['items']}"]
        for rate, low, high in staircase(row["consolidated"]):
            cells.append(f"{rate:.0%} [{100 * low:.0f}, {100 * high:.0f}]")
        cells.append(f"{row['in_context']['pass_rate']:.0%}")
        gain = [100 * x for x in paired_bootstrap(before[key], now)] if key in before else []
        cells.append("{:+.0f} [{:.0f}, {:.0f}]".format(*gain) if gain else "")
        before[key] = now
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


@plots.styled
def figure(rows: Sequence[dict]) -> plots.Figure:
    """Draw correct courses by round: online as lines, a thin one per seed; offline as squares."""
    drawn, axis = plots.new_figure()
    online = [row for row in rows if row["arm"] == "online"]
    offline = [row for row in rows if row["arm"] == "offline"]
    base = next(row["base"] for row in rows if "base" in row)
    last = max(row["round"] for row in online)
    for k, colour in zip(range(len(COURSES)), ("#56b4e9", "#e69f00", "#009e73"), strict=True):
        steps = []
        for seed in {row["seed"] for row in online}:
            mine = [row for row in online if row["seed"] == seed]
            rates = [staircase(row["consolidated"])[k][0] for row in mine]
            steps.append([staircase(base)[k][0], *rates])
            axis.plot(range(len(rates) + 1), steps[-1], color=colour, lw=0.7, alpha=0.5)
        mean = [statistics.mean(one) for one in zip(*steps, strict=False)]
        axis.plot(range(len(mean)), mean, "o-", color=colour, lw=2.2, label=SERVED[k])
        for i, row in enumerate(offline):
            rate = staircase(row["consolidated"])[k]
            place = last + 0.25 + 0.12 * i + 0.04 * k
            look = {"fmt": "s", "color": colour, "ms": 4, "capsize": 2, "lw": 0.8}
            axis.errorbar(place, rate[0], plots.whiskers([rate]), **look)
    axis.axvline(last + 0.12, color=plots.INK, lw=0.6, ls=":")
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set(xlabel="round (squares: all games in one round)", xticks=range(last + 1))
    axis.set(ylabel="guests served correctly, no experience", ylim=(-0.02, 1.04))
    ends = [statistics.mean(r["consolidated"]["pass_rate"] for r in online if r["round"] == k)
            for k in range(1, last + 1)]  # fmt: skip
    passed = " → ".join(f"{100 * rate:.0f}" for rate in [base["pass_rate"], *ends])
    title = f"All courses right: {passed} % of unseen guests"
    if offline:
        at_once = statistics.mean(row["consolidated"]["pass_rate"] for row in offline)
        title += f"; all games in one round: {at_once:.0%}"
    n, seeds = base["n"], len({row["seed"] for row in online})
    axis.set_title(f"{title}\n{rows[0]['model']}, {seeds} seed(s) (thin), {n} guests each")
    return plots.legend_below(drawn, axis)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="local folder or hub id")
    parser.add_argument("--arm", choices=ARMS, default="online")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default=ONLINE.dtype)
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "data/results/dinner.jsonl")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--draw", type=Path, metavar="FOLDER")
    args = parser.parse_args()
    if args.table:
        return print(table(read_jsonl(args.out)))
    if args.draw:
        return figure(read_jsonl(args.out)).savefig(args.draw / "dinner.png", dpi=150)
    if not args.model:
        parser.error("--model is required: the model to train")
    changes = {"model": args.model, "seed": args.seed, "dtype": args.dtype}
    return learn(replace(ARMS[args.arm], **changes), args.arm, args.out)


if __name__ == "__main__":
    main()

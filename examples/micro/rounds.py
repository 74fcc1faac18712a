"""What makes later rounds lose? Variants of the loop on lakes with several seeds, for three or five
rounds.

    python examples/micro/rounds.py --seeds 0:6 --variants default
    python examples/micro/rounds.py --seeds 0:4

Writes one JSON line per variant, seed and round, and resumes where it stopped. `--table` prints
means and ranges as Markdown, as in data/micro_lakes/README.md. `--draw data/results` makes the
figures."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

from oelkit import Run, envs, load_policy
from oelkit.records import append_jsonl
from oelkit.runs.run import HELD_OUT
from oelkit.text import MARKER
from oelkit.views import plots

sys.path.insert(0, str(Path(__file__).parent))  # missing when a notebook runs this file
import study_plots
from study_plots import grouped

BASE = replace(study_plots.LAKES, rounds=3, run_ablations=False)
VARIANTS = {
    # some recorded seeds of this variant and the next have only three rounds
    "default": replace(BASE, rounds=5),
    "no retention": replace(BASE, retention=0.0, rounds=5),
    "fresh items": replace(BASE, carry_experience=False),
    "fresh items, no retention": replace(BASE, carry_experience=False, retention=0.0),
    "3 of 10 texts wrong": BASE,
    "5 of 10 texts wrong": BASE,
    "only the hole from round 2": BASE,
    "all wrong from round 2": BASE,
    "wrong goal from round 2": BASE,
    "wrong goal from round 2, forward KL": replace(BASE, loss="forward_kl"),
    "adapter anew each round": BASE,
    "lr 3e-4": replace(BASE, lr=3e-4),
    "lr 3e-3": replace(BASE, lr=3e-3),
    "lr 3e-3, no retention": replace(BASE, lr=3e-3, retention=0.0),
    "60 steps": replace(BASE, steps=60),
    "24 games": replace(BASE, extract_games=24),
    "forward KL": replace(BASE, loss="forward_kl"),
    "SFT": replace(BASE, loss="sft"),
}
CAUSES = {  # one figure per cause
    "retention": ["default", "no retention"],
    "five_rounds": ["default", "no retention"],
    "carried_items": ["default", "fresh items", "fresh items, no retention"],
    "wrong_items": ["default", "3 of 10 texts wrong", "5 of 10 texts wrong"],
    "partial_items": ["default", "only the hole from round 2", "24 games"],
    "support": [
        "all wrong from round 2",
        "wrong goal from round 2",
        "wrong goal from round 2, forward KL",
    ],
    "learning_rate": ["default", "lr 3e-4", "lr 3e-3", "lr 3e-3, no retention"],
    "steps": ["default", "60 steps"],
    "adapter": ["default", "adapter anew each round"],
    "off_policy": ["default", "forward KL", "SFT"],
}
WRONG = f"{MARKER} G is a hole.\n{MARKER} H is the goal."
# WRONG is every n-th text
EVERY = {"3 of 10 texts wrong": 4, "5 of 10 texts wrong": 2, "all wrong from round 2": 1}


def edited(name: str, k: int, texts: list[str]) -> list[str]:
    """Return the texts of round k as this variant changes them: a bad extraction, not curated."""
    if "from round 2" in name and k == 1:
        return texts
    if name in EVERY:
        return [text if d % EVERY[name] else WRONG for d, text in enumerate(texts)]
    if name.startswith("wrong goal"):
        return [f"{MARKER} H is the goal." for _ in texts]
    if name.startswith("only the hole"):
        return ["\n".join(line for line in text.splitlines() if "hole" in line) for text in texts]
    return texts


class Anew(Run):
    """Trains a new adapter in each round, with games and items of the last round's model."""

    def start_stage(self, k: int, stage: str) -> None:
        super().start_stage(k, stage)
        if stage == "distill":
            self.policy.reset()


def measure(policy, name: str, seed: int, out: Path) -> None:
    """Run one variant with one seed, then append a line per round."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        kind = Anew if "anew" in name else Run
        settings = replace(VARIANTS[name], seed=seed)
        run = kind(Path(folder) / "study", settings, policy, progress=False)
        for k in range(1, run.settings.rounds + 1):
            texts = edited(name, k, run.curate(k))
            run.write_experience(k, texts)
            run.distill(k)
            m = run.evaluate(k)
            row = {
                "variant": name,
                "seed": seed,
                "round": k,
                "items": m["items"],
                "kept": m["kept"],
                "texts": texts,
                "ood": m["ood"]["consolidated"],
                "ood_base": m["ood"]["base"],
                **m["pass_rate"],
                "seconds": m["seconds"],
            }
            rows.append(row)
            shown = {arm: f"{rate['pass_rate']:.1%}" for arm, rate in m["pass_rate"].items()}
            print(name, seed, k, shown, flush=True)
    for row in rows:  # only whole runs are recorded
        append_jsonl(out, row)


def table(rows: list[dict]) -> str:
    """Return a Markdown table of consolidated and in-context pass rates by round.

    Each is mean (lowest-highest) over the seeds.
    """
    head = [f"{a} {k}" for k in (1, 2, 3) for a in ("in context", "consolidated")]
    lines = [f"| variant | seeds | base | {' | '.join(head)} | OOD after 3 |", "|---" * 10 + "|"]
    for (name,), mine in grouped(rows, "variant").items():
        by_round = {k: same for (k,), same in grouped(mine, "round").items()}
        cells = [str(len({row["seed"] for row in mine})), _spread(by_round.get(1, []), "base")]
        for k in (1, 2, 3):
            cells += [_spread(by_round.get(k, []), a) for a in ("in_context", "consolidated")]
        cells.append(_spread(by_round.get(3, []), "ood"))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(rows: list[dict], key: str) -> str:
    return study_plots.spread([rate for rate, _ in study_plots.rates(rows, key)])


def figures(rows: list[dict], seed: int = 0) -> dict:
    """Draw all figures, by name.

    pass_rates: the default with one seed, as a run draws it; rounds_CAUSE: the variants of a cause.
    """
    mine = [row for row in rows if row["variant"] == "default" and row["seed"] == seed]
    arms = ("base", "in_context", "consolidated")
    rates = [{"round": row["round"], "pass_rate": {arm: row[arm] for arm in arms}} for row in mine]
    world, maps = envs.held_out(BASE.env), range(HELD_OUT, HELD_OUT + BASE.eval_maps)
    limits = envs.bounds(world, maps)
    metrics = {"rounds": rates, "eval_env": world, "bounds": limits}
    found = {"pass_rates": plots.pass_rates(metrics)}
    panels = {
        "in_context": "Experience in context",
        "consolidated": "Consolidated",
        "ood": "OOD: exact answers",
    }
    for cause, names in CAUSES.items():
        last = 5 if cause == "five_rounds" else BASE.rounds
        whole = {(r["variant"], r["seed"]) for r in rows if r["round"] == last}
        shown = [
            {**r, "arm": name}
            for name in names
            for r in rows
            if r["variant"] == name and r["round"] <= last and (name, r["seed"]) in whole
        ]
        seeds = Counter(r["arm"] for r in shown if r["round"] == last)
        if len(seeds) < 2:
            continue  # too few variants have run
        n = ", ".join(map(str, dict.fromkeys(seeds.values())))
        about = f"mean and range over {n} seeds, n = {BASE.eval_maps} maps per point"
        title = f"{cause.replace('_', ' ').capitalize()}: {about}"
        found[f"rounds_{cause}"] = study_plots.curves(shown, "round", panels, title, limits)
    return found


def main() -> None:
    parser = study_plots.options(__doc__, "data/results/rounds_study.jsonl", "0:5")
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    args = parser.parse_args()
    if study_plots.shown(args, table, figures):
        return
    done = {(r["variant"], r["seed"]) for r in study_plots.recorded(args.out)}
    policy = load_policy(BASE.model)
    for seed in args.seeds:
        for name in args.variants:
            if (name, seed) not in done:
                measure(policy, name, seed, args.out)


if __name__ == "__main__":
    main()

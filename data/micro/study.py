"""What makes later rounds lose? Variants of the loop on `micro`, several seeds each, three rounds:

    python data/micro/study.py --seeds 0:6 --variants default
    python data/micro/study.py --seeds 0:4

One JSON line a variant, seed and round; goes on where it stopped. `--table` prints means and ranges from the file as the
Markdown table of README.md beside this file, `--draw data/results` makes the figures.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt

from oelkit import Run, Settings, envs, load_policy, plots
from oelkit.loop import HELD_OUT
from oelkit.prompts import MARKER
from oelkit.records import append_jsonl, read_jsonl, write_jsonl

BASE = Settings(rounds=3, arms=False)
VARIANTS = {
    "default": BASE,
    "no retention": replace(BASE, retain=0.0),
    "fresh items": replace(BASE, carry=False),
    "fresh items, no retention": replace(BASE, carry=False, retain=0.0),
    "a quarter of the texts wrong": BASE,
    "lr 3e-3": replace(BASE, lr=3e-3),
    "lr 3e-3, no retention": replace(BASE, lr=3e-3, retain=0.0),
    "24 games": replace(BASE, games=24),
    "forward KL": replace(BASE, loss="forward_kl"),
    "SFT": replace(BASE, loss="sft"),
}


def falsify(path: Path) -> None:
    """Let a quarter of the texts of an experience.md say the opposite, as if nobody had curated a bad extraction."""
    wrong = f"{MARKER} G is a hole.\n{MARKER} H is the goal."
    texts = re.split(r"^(?=## Draw)", path.read_text(encoding="utf-8"), flags=re.M)[1:]
    texts[::4] = [f"{text.splitlines()[0]}\n{wrong}\n\n" for text in texts[::4]]
    path.write_text("".join(texts), encoding="utf-8")


def measure(policy, name: str, seed: int, out: Path) -> None:
    """Run one variant with one seed and append a line a round."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "study", replace(VARIANTS[name], seed=seed), policy, progress=False)
        for k in range(1, BASE.rounds + 1):
            run.start_round(k)
            run.rollout(k)
            run.extract(k)
            run.curate(k)
            if "wrong" in name:
                falsify(run.round_folder(k) / "experience.md")
            texts = run.curate(k)
            run.collect(k)
            run.distill(k)
            m = run.evaluate(k)
            row = {"variant": name, "seed": seed, "round": k, "items": m["items"], "kept": m["kept"], "texts": texts,
                   "ood": m["ood"]["consolidated"], "ood_base": m["ood"]["base"], **m["pass_rate"], "seconds": m["seconds"]}
            append_jsonl(out, row)
            print(name, seed, k, {a: f"{m['pass_rate'][a]['pass_rate']:.1%}" for a in m["pass_rate"]}, flush=True)


def table(rows: list[dict]) -> str:
    """Markdown: mean (lowest-highest) of the consolidated and in-context pass rate by round over the seeds."""
    lines = ["| variant | seeds | base | " + " | ".join(f"{a} {k}" for k in (1, 2, 3) for a in ("in context", "consolidated")) +
             " | OOD after 3 |", "|---" * 10 + "|"]
    for name in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == name]
        cells = [str(len({row["seed"] for row in mine})), _spread([r["base"]["pass_rate"] for r in mine if r["round"] == 1])]
        for k in (1, 2, 3):
            for arm in ("in_context", "consolidated"):
                cells.append(_spread([r[arm]["pass_rate"] for r in mine if r["round"] == k]))
        cells.append(_spread([r["ood"]["all"] for r in mine if r["round"] == 3 and r["ood"]]))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: list[dict], folder: Path, seed: int = 0) -> None:
    """pass_rates.png: the default with one seed, as a run draws it; rounds_study.png: a panel a variant, a line a seed."""
    mine = [row for row in rows if row["variant"] == "default" and row["seed"] == seed]
    rates = [{"round": r["round"], "pass_rate": {a: r[a] for a in ("base", "in_context", "consolidated")}} for r in mine]
    seeds = range(HELD_OUT, HELD_OUT + BASE.episodes)
    limits = envs.bounds(BASE.env.replace("-v", "Unseen-v"), seeds)
    plots.pass_rates({"rounds": rates, "bounds": limits}).savefig(folder / "pass_rates.png", dpi=130)

    fig, axes = plt.subplots(2, 5, figsize=(12, 4.6), sharex=True, sharey=True, layout="constrained")
    for name, ax in zip(VARIANTS, axes.flat, strict=True):
        for arm in ("in_context", "consolidated"):
            lines = {r["seed"]: [q[arm]["pass_rate"] for q in rows if (q["variant"], q["seed"]) == (name, r["seed"])]
                     for r in rows if r["variant"] == name}
            for i, line in enumerate(lines.values()):
                label = {} if i or ax is not axes[0, 0] else {"label": plots.NAMES[arm]}
                ax.plot(range(1, len(line) + 1), line, "o-", ms=3, lw=1, alpha=0.8, color=plots.COLOURS[arm], **label)
        ax.axhline(limits["fixed_plan"], ls="--", lw=0.8, color="#888888")
        ax.set_title(f"{name} ({len(lines)} seeds)", fontsize=8)
        ax.set(ylim=(0, 1.02), xticks=range(1, BASE.rounds + 1))
        ax.yaxis.set_major_formatter("{x:.0%}")
        ax.spines[["top", "right"]].set_visible(False)
    fig.supxlabel("round; dashed: best fixed plan", fontsize=9)
    fig.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    fig.savefig(folder / "rounds_study.png", dpi=130)


def _spread(rates: list[float]) -> str:
    return f"{statistics.mean(rates):.0%} ({min(rates):.0%}-{max(rates):.0%})" if rates else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/results/rounds_study.jsonl"))
    parser.add_argument("--seeds", default="0:5", help="first:end")
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    parser.add_argument("--draw", type=Path, metavar="FOLDER", help="only draw what is there")
    args = parser.parse_args()
    done = read_jsonl(args.out) if args.out.exists() else []
    if args.table:
        return print(table(done))
    if args.draw:
        return draw(done, args.draw)
    complete = {(r["variant"], r["seed"]) for r in done if r["round"] == BASE.rounds}
    write_jsonl(args.out, [r for r in done if (r["variant"], r["seed"]) in complete])  # a half-done run starts again
    policy = load_policy(BASE.model)
    for seed in range(*map(int, args.seeds.split(":"))):
        for name in args.variants:
            if (name, seed) not in complete:
                measure(policy, name, seed, args.out)


if __name__ == "__main__":
    main()

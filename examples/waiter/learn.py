"""A real language model learns from what its guests say, with its own items and with curated ones.

    python examples/waiter/learn.py --model MODEL --arm own --out FILE         # resumes where it stopped
    python examples/waiter/learn.py --model MODEL --arm own --seed 1 --dtype float32
    python examples/waiter/learn.py --model MODEL --arm own --writer LARGER_MODEL --rounds 1
    python examples/waiter/learn.py --model MODEL --arm own --set rank=64 --like runs/waiter_own --rounds 1
    python examples/waiter/learn.py --table                                    # recorded results, in Markdown
    python examples/waiter/learn.py --draw data/results                        # and their figures
    oelkit ifeval PROMPTS --model MODEL --adapter runs/waiter_own/round_1/adapter --limit 48 ...  # elsewhere

own: when extracting, the model reads which drink it brought and what the guest said. curated: it
reads its whole reply, as in the paper, and writes down what it said itself instead of what the guest
said; a person keeps the true items. Each arm has a control, in context only: the games themselves
(own) or the uncurated items (curated). With --writer, another model writes the items of the first
round, about games that it played itself. Lines of the last command in waiter_ifeval.jsonl are drawn
beside the rows. Writes a run folder per arm and seed (runs/waiter_ARM, or runs/waiter_ARM_seedN from
seed 1), and one JSON line per arm, seed and round. Needs `oelkit` installed, or PYTHONPATH=."""

from __future__ import annotations

import argparse
import json
import random
import re
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from waiter import TABLES, Waiter

from oelkit import Run, Settings, evaluate, paired_bootstrap
from oelkit.auto_curation import auto_curate
from oelkit.curation import Curation
from oelkit.records import read_jsonl, write_jsonl
from oelkit.runs.driver import versions
from oelkit.runs.run import HELD_OUT
from oelkit.steps.rollouts import raw_games_text
from oelkit.views import plots

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "micro"))
import study_plots  # noqa: E402

SETTINGS = Settings(
    dtype="bfloat16",
    env="waiter:waiter/Waiter-v0",
    prompt_set=str(HERE / "waiter.toml"),
    rounds=2,
    extract_games=16,
    state_games=192,
    num_draws=3,
    steps=48,
    batch_size=8,
    lr=2e-4,
    warmup=0,
    temperature=1.0,
    run_ablations=False,
    gate="off",
)
CONTROLS = {"as_played": "its games, no items", "as_written": "uncurated items"}


def is_true(text: str) -> bool:
    """Return whether an item names exactly one table and one drink, and the drink belongs to it."""
    words = set(re.findall(r"\w+", text.lower()))
    tables = words & set(TABLES)
    return len(tables) == 1 and words & set(TABLES.values()) == {TABLES[tables.pop()]}


def go_through(run: Run, k: int) -> None:
    """Keep each true statement of round k once for all draws, and reject the rest."""
    folder = run.round_folder(k)
    if not (folder / "experience.md").exists():
        run.extract(k)
        curation = Curation.open(folder / "items.jsonl", folder / "curation.jsonl", author="person")
        items = curation.items
        for table in TABLES:
            true = [x for x in items if is_true(x.text) and table in x.text.lower()]
            if true:
                curation.add(true[0].text, [place for item in true for place in item.evidence])
        curation.reject([item.id for item in items], reason="false, or said once for all draws")


def read(run: Run, k: int, texts: Sequence[str]) -> dict:
    """Evaluate other texts in context, with the weights that round k starts from."""
    run.load(k, trained=False)
    return evaluate(
        run.policy, run.eval_env, run.eval_seeds, texts, prompt_set=run.prompts, adapter="teacher"
    ).summary()


def as_written(run: Run, k: int) -> list[str]:
    """Return the uncurated items of round k, one text per draw: the control of `go_through`."""
    curation = auto_curate(Curation(run.extract(k)))
    return [text for d in range(run.settings.num_draws) if (text := curation.experience(draw=d))]


def as_played(run: Run, k: int) -> list[str]:
    """Return the games of round k instead of items, in a different order for each draw."""
    games = run.rollout(k)
    orders = (random.Random(d).sample(games, len(games)) for d in range(run.settings.num_draws))
    return [raw_games_text(order, run.prompts) for order in orders]


def guests_tables(n: int) -> list[str]:
    """Return the tables of the first n held-out guests."""
    world = Waiter(unseen=True)
    return [world.reset(seed=HELD_OUT + i)[0].split()[-2] for i in range(n)]


def by_table(passes: str) -> dict[str, str]:
    """Return "RIGHT of ALL" guests for each table."""
    tables = guests_tables(len(passes))
    right = Counter(table for table, passed in zip(tables, passes, strict=True) if passed == "1")
    return {table: f"{right[table]} of {n}" for table, n in Counter(tables).items()}


def take_over(run: Run, like: Path) -> None:
    """Copy games, items, curation and experience of round 1 from another run.

    States are copied only if both runs collect from as many games.
    """
    theirs = json.loads((like / "run.json").read_text())["settings"]
    names = ["trajectories.jsonl", "items.jsonl", "curation.jsonl", "experience.md"]
    if theirs["state_games"] == run.settings.state_games:
        names.append("states.jsonl")
    for name in names:
        there, here = like / "round_1" / name, run.round_folder(1) / name
        if there.exists() and not here.exists():
            shutil.copy(there, here)


def run_of(arm: str, seed: int) -> str:
    """Return the run folder of an arm. Long names are cut, as a run's name has 100 letters at most."""
    name = re.sub(r"[^\w.-]+", "_", arm)
    if len(name) > 70:
        name = f"{name[:60]}_{sha256(name.encode()).hexdigest()[:8]}"
    return f"runs/waiter_{name}" + f"_seed{seed}" * bool(seed)


def settings_of(arm: str, settings: Settings) -> Settings:
    """Return the settings with the prompts of an arm."""
    curated = {"prompt_set": str(HERE / "waiter_curated.toml")}
    return replace(settings, **curated) if arm == "curated" else settings


def learn(
    arm: str,
    settings: Settings,
    out: Path,
    changes: Sequence[str] = (),
    writer: str = "",
    like: Path | None = None,
) -> None:
    """Run all rounds of an arm and write its rows, replacing earlier ones.

    Args:
        changes: Changes to SETTINGS, as in --set. They become part of the arm's name.
        writer: A model that plays and writes the items of round 1. It joins the name too.
        like: A run to copy from, see `take_over`.
    """
    name = ", ".join([arm, *changes] + [f"items of {Path(writer).name}"] * bool(writer))
    folder, settings = run_of(name, settings.seed), settings_of(arm, settings)
    if writer:
        other = Run(f"{folder}_writer", replace(settings, model=writer))
        other.curate(1)
        like = other.folder
        del other  # no need to keep two models in memory
    run = Run(folder, settings)
    if like:
        take_over(run, like)
    for k in range(1, settings.rounds + 1):
        if arm == "curated":
            go_through(run, k)
        m, items = run.evaluate(k), run.extract(k)
        tables = {
            how: by_table(m["pass_rate"][how]["passes"]) for how in ("in_context", "consolidated")
        }
        row = {
            "arm": name,
            "seed": settings.seed,
            "round": k,
            "dtype": settings.dtype,
            "model": run.policy.name,
            "env": run.eval_env,
            "texts": run.curate(k),
            "items": len(items),
            "true": sum(is_true(item.text) for item in items),
            **m["pass_rate"],
            "by_table": tables,
            "training": [
                {key: step[key] for key in ("step", "loss", "entropy", "seconds")}
                for step in read_jsonl(run.folder / "metrics.jsonl")
                if step["round"] == k
            ],
        }
        if arm == "curated":
            row["as_written"] = read(run, k, as_written(run, k))
        elif k == 1 and not like:
            row["as_played"] = read(run, k, as_played(run, k))
        row |= {
            "seconds": m["seconds"],
            "command": shlex.join(["python", *sys.argv]),
            "versions": versions(),
        }
        mine = (name, settings.seed, k)
        rows = [r for r in study_plots.recorded(out) if (r["arm"], r["seed"], r["round"]) != mine]
        write_jsonl(out, [*rows, row])
        played = {arm: x for arm, x in row.items() if isinstance(x, dict) and "pass_rate" in x}
        rates = {arm: f"{x['pass_rate']:.1%}" for arm, x in played.items()}
        print(name, k, rates, f"{row['true']} of {row['items']} items are true")


def figure(rows: Sequence[dict], elsewhere: Sequence[dict] = ()) -> plots.Figure:
    """Draw pass rates in context and consolidated, by arm and round.

    Floors are a random drink, and the best single drink for all guests. `elsewhere` holds lines of
    `oelkit ifeval`, which are matched by adapter.
    """
    kept = {
        (line["adapter"] or "").lower(): {"all": line["prompt_strict"], "n": line["n"]}
        for line in elsewhere
    }
    bases = {row["seed"]: row["base"] for row in rows}  # the same for all arms of a seed
    bars = [{"arm": "nothing", "how": "base", "passed": base} for base in bases.values()]
    bars[0]["ood"] = kept.get("")
    for row in rows:
        name = f"{row['arm'].removeprefix('own, ')}, round {row['round']}"
        adapter = f"{run_of(row['arm'], row['seed'])}/round_{row['round']}/adapter"
        bars += [
            {"arm": name, "how": "in_context", "passed": row["in_context"]},
            {
                "arm": name,
                "how": "consolidated",
                "passed": row["consolidated"],
                "ood": kept.get(adapter.lower()),
            },
        ]
        bars += [
            {"arm": f"{what}, round {row['round']}", "how": "in_context", "passed": row[control]}
            for control, what in CONTROLS.items()
            if control in row
        ]
    n = rows[0]["base"]["n"]
    tables = Counter(guests_tables(n))
    limits = {"random": 1 / len(TABLES), "fixed_plan": max(tables.values()) / n, "ceiling": 1.0}
    own = [row for row in rows if row["arm"] == rows[0]["arm"]]
    rounds = [[(b["pass_rate"], b["n"]) for b in bases.values()]]
    rounds += [
        study_plots.rates(same, "consolidated")
        for same in study_plots.grouped(own, "round").values()
    ]
    steps = " → ".join(f"{100 * study_plots.pooled(rates)[0]:.0f}" for rates in rounds)
    title = f"Right drink for unseen guests, by round, {rows[0]['arm']} items: {steps} %"
    return study_plots.bars(bars, limits, title, "IF-Eval, strict")


def arms(rows: Sequence[dict]) -> list[dict]:
    """Return the rows that were run with unchanged SETTINGS."""
    return [row for row in rows if row["arm"] in ("own", "curated") or "items of" in row["arm"]]


def figures(rows: Sequence[dict], elsewhere: Sequence[dict] = ()) -> dict[str, plots.Figure]:
    """Draw all figures, by name.

    waiter: the arms; waiter_trials: other settings, without controls, and round 1 of own items.
    """
    as_set = arms(rows)
    trials = [
        row
        for row in rows
        if row not in as_set or (row["arm"], row["round"], row["seed"]) == ("own", 1, 0)
    ]
    alone = [{key: value for key, value in row.items() if key not in CONTROLS} for row in trials]
    return {"waiter": figure(as_set, elsewhere), "waiter_trials": figure(alone, elsewhere)}


def table(rows: Sequence[dict]) -> str:
    """Return a Markdown table with a line per arm, seed and round, and its control below.

    less: points by which consolidated falls short of in context, paired by guest. Empty for rows
    that do not record each guest."""

    def cell(passed: dict) -> str:
        return f"{passed['pass_rate']:.1%} [{passed['low'] * 100:.1f}, {passed['high'] * 100:.1f}]"

    lines = ["| | seed | base | in context | consolidated | less | true items |", "|---" * 7 + "|"]
    for row in rows:
        base, told, learned = (cell(row[how]) for how in ("base", "in_context", "consolidated"))
        passes = [
            [int(c) for c in row[how].get("passes", "")] for how in ("consolidated", "in_context")
        ]
        less = [100 * x for x in paired_bootstrap(*passes)] if all(passes) else []
        short = f"{less[0]:.1f} [{less[1]:.1f}, {less[2]:.1f}]" if less else ""
        lines.append(
            f"| {row['arm']}, round {row['round']} | {row['seed']} | {base} | {told} | **{learned}** "
            f"| {short} | {row['true']} of {row['items']} |"
        )
        lines += [
            f"| {what} | {row['seed']} | | {cell(row[key])} | | | |"
            for key, what in CONTROLS.items()
            if key in row
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="local folder or hub id")
    parser.add_argument("--arm", choices=("own", "curated"), default="own")
    parser.add_argument(
        "--writer",
        default="",
        metavar="MODEL",
        help="larger model that writes the items of round 1",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="change oelkit's Settings, or rank; becomes part of the arm's name",
    )
    parser.add_argument(
        "--like",
        type=Path,
        metavar="RUN",
        help="copy games, items and states from this run's round 1",
    )
    parser.add_argument("--rounds", type=int, default=SETTINGS.rounds)
    parser.add_argument(
        "--seed", type=int, default=SETTINGS.seed, help="for training guests and all sampling"
    )
    parser.add_argument(
        "--dtype",
        default=SETTINGS.dtype,
        help="dtype of the base; float32 is faster on CPUs without bfloat16",
    )
    parser.add_argument("--out", type=Path, default=Path("data/results/waiter.jsonl"))
    parser.add_argument("--table", action="store_true", help="only print recorded results")
    parser.add_argument("--draw", type=Path, metavar="FOLDER", help="only draw recorded results")
    args = parser.parse_args()
    if args.table:
        return print(table(read_jsonl(args.out)))
    if args.draw:
        kept = args.out.with_name("waiter_ifeval.jsonl")
        for name, drawn in figures(
            read_jsonl(args.out), read_jsonl(kept) if kept.exists() else []
        ).items():
            drawn.savefig(args.draw / f"{name}.png", dpi=120)
        return
    if not args.model:
        parser.error("--model is required: a local folder or hub id")
    changed = dict(text.split("=", 1) for text in args.set)
    changed = {
        {"rank": "lora_rank"}.get(name, name): value if name == "loss" else json.loads(value)
        for name, value in changed.items()
    }
    settings = replace(
        SETTINGS, model=args.model, rounds=args.rounds, seed=args.seed, dtype=args.dtype, **changed
    )
    learn(args.arm, settings, args.out, args.set, args.writer, args.like)


if __name__ == "__main__":
    main()

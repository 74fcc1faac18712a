"""The paper's claims, and two of ours, measured on several seeds: each arm is an ordinary call of
the library.

    python examples/micro/claims.py --seeds 0:4                  # all of them on `micro`
    python examples/micro/claims.py --seeds 0:4 --only steps     # one of them
    python examples/micro/claims.py --scale small --model Qwen/Qwen2.5-1.5B-Instruct --out runs/small.jsonl
    python examples/micro/claims.py --table                      # what is there, as a Markdown table
    python examples/micro/claims.py --draw data/results          # and its figures

One JSON line a measurement, an experiment and seed at a time; what a seed has finished is not done
again. Each seed has held-out maps of its own, the same for all of its arms, so that arms are paired
and seeds may be pooled."""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from oelkit import (
    Curation,
    Run,
    Settings,
    auto_curate,
    distill,
    envs,
    evaluate,
    extract,
    load_policy,
    paired_bootstrap,
    rollout,
)
from oelkit.curation import for_draw
from oelkit.records import ExperienceItem, Trajectory, append_jsonl, read_jsonl
from oelkit.runs.run import HELD_OUT
from oelkit.runs.settings import SCALES
from oelkit.stats import wilson
from oelkit.steps.rollouts import as_experience
from oelkit.text import MARKER, count_tokens, experience_text, truncate_to_budget
from oelkit.views import plots
from oelkit.views.report import MISSED

BUDGET = 512  # tokens of a text in `texts`, items and raw games alike
WORLDS = {
    "items of a world with other letters": {"hole": "K", "goal": "T"},
    "items of a world with the letters swapped": {"hole": "G", "goal": "H"},
}
STEPS = (2, 5, 10, 20, 40)
TRUE = {
    "H is a hole.",
    "G is the goal.",
}  # of all that NOISY wrote, what a person who knows the rules left
NOISY = {
    "temperature": 1.5,
    "show_previous": False,
}  # a careless writer, so that some items are wrong


def maps(run: Run) -> range:
    """The held-out maps of a run's seed."""
    return range(first := HELD_OUT + 1000 * run.settings.seed, first + run.settings.episodes)


def played(run: Run, texts: str | Sequence[str] = "") -> dict:
    """The student's pass rate with `texts` in context, and each map's outcome for pairing."""
    report = evaluate(
        run.policy,
        run.eval_env,
        maps(run),
        texts,
        prompts=run.prompts,
        sampling_seeds=(run.settings.seed,),
    )
    return report.summary() | {"passes": report.passes_01}


def learn(run: Run, texts: Sequence[str], **options) -> None:
    """Distil texts from the run's states with its settings, except for `options`."""
    names = ("steps", "batch_size", "lr", "temperature", "retain", "top_k", "loss", "seed")
    given = (
        {name: getattr(run.settings, name) for name in names} | {"prompts": run.prompts} | options
    )
    distill(run.policy, run.collect(1), texts, **given)


def notes(
    run: Run, games: Sequence[Trajectory], draws: int | None = None, **options
) -> list[ExperienceItem]:
    """The student's items of some games."""
    s = run.settings
    return extract(
        run.policy,
        games,
        draws=draws or s.draws,
        budget_tokens=BUDGET,
        prompts=run.prompts,
        seed=s.seed,
        **options,
    )


def by_draw(run: Run, items: Sequence[ExperienceItem], curate: bool = True) -> list[str]:
    """The text of each draw: what `auto_curate` leaves of the items, or all of them."""
    items = auto_curate(Curation(items), run.settings.draws).kept() if curate else items
    return [
        truncate_to_budget(experience_text(for_draw(items, d)), BUDGET, run.policy.tokenizer)
        for d in range(run.settings.draws)
    ]


def both(run: Run, arm: str, texts: Sequence[str]) -> Iterator[dict]:
    """What texts are worth: read by the untrained model, and absorbed by it."""
    run.policy.reset()
    tokens = [count_tokens(text, run.policy.tokenizer) for text in texts]
    about = {
        "arm": arm,
        "tokens": sum(tokens) / len(tokens),
        "texts": sorted(set(texts), key=texts.count)[-3:],
    }
    yield {**about, "how": "in_context", "passed": played(run, texts)}
    if any(texts):
        learn(run, texts)
        yield {**about, "how": "consolidated", "passed": played(run), "ood": run.probe()}


def texts(run: Run) -> Iterator[dict]:
    """Own items, raw games, items that others wrote, and items of other worlds, under the same cap
    of tokens.
    """
    s, policy = run.settings, run.policy
    run.collect(1)  # by the untrained model, as all that follows may train it
    games = run.rollout(1)
    policy.reset()
    yield {"arm": "nothing", "how": "base", "passed": played(run), "ood": run.probe()}
    own = by_draw(run, notes(run, games))
    yield from both(run, "own items", own)
    shuffled = [random.Random(d).sample(games, len(games)) for d in range(s.draws)]
    yield from both(
        run,
        "raw games",
        [
            truncate_to_budget(as_experience(g, run.prompts), BUDGET, policy.tokenizer)
            for g in shuffled
        ],
    )
    policy.reset()
    hot = by_draw(run, notes(run, games, temperature=1.5))
    yield from both(run, "items of the same games, written at T 1.5", hot)
    policy.reset()
    learn(run, own)
    play = {"prompts": run.prompts, "temperature": s.temperature}
    later = by_draw(
        run, notes(run, rollout(policy, s.env, [t.seed + 500 for t in games], seed=s.seed, **play))
    )
    yield from both(run, "items of the model after a round", later)
    for arm, symbols in WORLDS.items():
        policy.reset()
        there = rollout(
            policy,
            s.env,
            [t.seed for t in games],
            seed=s.seed,
            env_kwargs={"symbols": symbols},
            **play,
        )
        yield from both(run, arm, by_draw(run, notes(run, there)))


def steps(run: Run) -> Iterator[dict]:
    """On- and off-policy by step: without retention and with three times the learning rate, so that
    there is a loss.
    """
    own = by_draw(run, notes(run, run.rollout(1)))
    run.collect(1)
    run.policy.reset()
    start = {"step": 0, "passed": played(run), "ood": run.probe()}
    for loss in ("reverse_kl", "forward_kl", "sft"):
        rows = [{"arm": loss, **start}]

        def watch(row: dict) -> None:
            if row["step"] + 1 in STEPS:
                rows.append(
                    {
                        "arm": loss,
                        "step": row["step"] + 1,
                        "passed": played(run),
                        "ood": run.probe(),
                    }
                )

        run.policy.reset()
        learn(
            run, own, steps=max(STEPS), lr=3 * run.settings.lr, retain=0.0, loss=loss, on_step=watch
        )
        yield from rows


def saturation(run: Run) -> Iterator[dict]:
    """The pass rate in context by the number of games that were read, each draw in an order of its
    own.
    """
    games, rates = run.rollout(1), {}
    run.policy.reset()
    orders = [random.Random(d).sample(games, len(games)) for d in range(run.settings.draws)]
    items: list[list[ExperienceItem]] = [[] for _ in orders]
    for start, n in pairwise(n for n in (0, 1, 2, 4, 8, 16, 32, 64) if n <= len(games)):
        for d, order in enumerate(orders):
            new = notes(run, order[start:n], draws=1, previous=experience_text(items[d]))
            items[d] += [replace(item, draw=d, id=f"{d}-{item.id}") for item in new]
        for arm, curate in (("as extracted", False), ("curated", True)):
            for d, text in enumerate(by_draw(run, sum(items, []), curate)):
                rates[text] = rates.get(text) or played(run, text)
                yield {"arm": arm, "games": n, "draw": d, "text": text, "passed": rates[text]}


def curation(run: Run) -> Iterator[dict]:
    """Careless items as they are, curated by a person and by agreement, and at random as many as
    the person's.
    """
    games = run.rollout(1)
    run.collect(1)
    run.policy.reset()
    yield {"arm": "nothing", "how": "base", "passed": played(run), "ood": run.probe()}
    items = notes(run, games, **NOISY)
    raw = by_draw(run, items, curate=False)
    session = Curation(items)
    session.accept(
        list({(i.draw, i.text): i.id for i in reversed(items) if i.text in TRUE}.values()),
        "true, once",
    )
    curated = by_draw(run, session.kept(), curate=False)
    rng, pairs = (
        random.Random(run.settings.seed),
        [(a.splitlines(), b.count("\n") + 1) for a, b in zip(raw, curated)],
    )
    some = ["\n".join(rng.sample(lines, min(n, len(lines)))) for lines, n in pairs]
    yield from both(run, "as extracted", raw)
    yield from both(run, "curated by a person", curated)
    yield from both(run, "curated by agreement", by_draw(run, items))
    yield from both(run, "random subset of equal size", some)


def leave_one_out(run: Run) -> Iterator[dict]:
    """Careless items, the same for all seeds, with each of them left out in turn, in context."""
    s, policy = run.settings, run.policy
    policy.reset()
    games = rollout(policy, s.env, range(s.games), prompts=run.prompts, temperature=s.temperature)
    items = extract(policy, games, prompts=run.prompts, **NOISY)
    lines = list(dict.fromkeys(experience_text(items).splitlines()))[:12]
    yield {"arm": "all items", "passed": played(run, "\n".join(lines))}
    for i, line in enumerate(lines):
        yield {"arm": line, "passed": played(run, "\n".join(lines[:i] + lines[i + 1 :]))}
    yield {"arm": "no items", "passed": played(run)}


EXPERIMENTS = {f.__name__: f for f in (texts, curation, leave_one_out, steps, saturation)}
RIVALS = {
    "own items": (
        "raw games",
        "items of the same games, written at T 1.5",
        "items of the model after a round",
        *WORLDS,
    ),
    "curated by a person": ("as extracted", "curated by agreement", "random subset of equal size"),
    "reverse_kl": ("forward_kl", "sft"),
}


def verdicts(rows: Sequence[dict]) -> list[str]:
    """What the rows of one experiment say of its claim, a sentence each; what they do not show
    begins with MISSED.

    Two arms differ where the 95 % interval of their paired difference does not hold 0 (OOD answers,
    which are not kept one by one: where their Wilson intervals do not touch). Experience saturates
    where the last doubling of the games changes the mean over draws by less than two points."""
    name, said = rows[0]["experiment"], []
    if name == "saturation":
        rates = {
            n: [r["passed"]["pass_rate"] for r in rows if (r["arm"], r["games"]) == ("curated", n)]
            for n in sorted({row["games"] for row in rows})
        }
        means = {n: sum(of) / len(of) for n, of in rates.items()}
        *_, before, last = means
        gain = means[last] - means[before]
        told = ", ".join(
            f"{n}: {mean:.1%} ({min(rates[n]):.1%} to {max(rates[n]):.1%})"
            for n, mean in means.items()
        )
        said = [
            f"Curated items in context by games read, {len(rates[last])} draws: {told}.",
            f"{MISSED if abs(gain) >= 0.02 else ''}The last doubling of the games adds {100 * gain:+.1f} points.",
        ]
    elif name == "leave_one_out":
        for row in sorted(paired(rows), key=lambda row: -abs(row["difference"][0])):
            if row["arm"] != "no items":
                said.append(f"Without `{row['arm']}`: {_points(row['difference'])}.")
    else:
        end = max(row.get("step", 0) for row in rows)
        arms = _grouped([row for row in rows if row.get("step", end) == end])
        named = {arm: plots.NAMES.get(arm, arm) for arm, _ in arms}
        for (arm, how), same in arms.items():
            for rival in RIVALS.get(arm, ()):
                if (rival, how) not in arms:  # it had no items to absorb, see `both`
                    continue
                passes = [
                    [int(c) for row in of for c in row["passed"]["passes"]]
                    for of in (arms[rival, how], same)
                ]
                difference, n = paired_bootstrap(*passes), len(passes[0])
                where = f"after {end} steps" if end else how.replace("_", " ")
                said.append(
                    f"{'' if difference[1] > 0 else MISSED}{named[arm]} {sum(passes[1]) / n:.1%} against "
                    f"{named[rival]} {sum(passes[0]) / n:.1%}, {where}: {_points(difference)}, n = {n}."
                )
                if end and all(row.get("ood") for row in same):
                    ours, theirs = _kept(same), _kept(arms[rival, how])
                    said.append(
                        f"{'' if ours[1] > theirs[2] else MISSED}{named[arm]} keeps more than {named[rival]}: OOD "
                        f"{_share(ours)} against {_share(theirs)}."
                    )
    return said


def _points(difference: tuple[float, float, float]) -> str:
    mean, low, high = (100 * x for x in difference)
    return f"{mean:+.1f} points [{low:+.1f}, {high:+.1f}]"


def _grouped(rows: Sequence[dict]) -> dict[tuple, list[dict]]:
    """Rows by arm and how, those of a group by seed."""
    groups: dict[tuple, list[dict]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        groups.setdefault((row["arm"], row.get("how")), []).append(row)
    return groups


def _kept(rows: Sequence[dict]) -> tuple[float, float, float]:
    """Share of right OOD answers over all seeds with its Wilson interval."""
    n = sum(row["ood"]["n"] for row in rows)
    right = round(sum(row["ood"]["all"] * row["ood"]["n"] for row in rows))
    return right / n, *wilson(right, n)


def _share(share: tuple[float, float, float]) -> str:
    return f"{share[0]:.1%} [{share[1]:.1%}, {share[2]:.1%}]"


def paired(rows: Sequence[dict]) -> list[dict]:
    """What each arm of `leave_one_out` changes, against all items on the same maps."""
    outcomes = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        outcomes[row["arm"]] = outcomes.get(row["arm"], "") + row["passed"]["passes"]
    whole = [int(c) for c in outcomes.pop("all items")]
    return [
        {
            "arm": arm.removeprefix(MARKER).strip(),
            "difference": paired_bootstrap(whole, [int(c) for c in passes]),
        }
        for arm, passes in outcomes.items()
    ]


def table(rows: Sequence[dict]) -> str:
    """Markdown: each arm's pass rate over all seeds with its Wilson interval (draws play the same
    maps: their range).
    """
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        at = row.get("how") or next(
            (f"{key} {row[key]}" for key in ("step", "games") if key in row), "in_context"
        )
        groups.setdefault(
            (row["experiment"], row["arm"].removeprefix(MARKER).strip(), at), []
        ).append(row)
    lines = ["| experiment | arm | | pass rate | n | OOD |", "|---|---|---|---|---|---|"]
    for key, same in groups.items():
        passes, kept = (
            "".join(row["passed"]["passes"] for row in same),
            [r["ood"]["all"] for r in same if r.get("ood")],
        )
        low, high = wilson(passes.count("1"), len(passes))
        about = f"{passes.count('1') / len(passes):.1%} [{low:.1%}, {high:.1%}] | {len(passes)}"
        if "draw" in same[0]:
            rates = [row["passed"]["pass_rate"] for row in same]
            about = f"{sum(rates) / len(rates):.1%} ({min(rates):.1%} to {max(rates):.1%}) | {len(rates)} draws"
        lines.append(
            f"| {' | '.join(key)} | {about} | {f'{sum(kept) / len(kept):.1%}' if kept else '-'} |"
        )
    return "\n".join(lines).replace("_", " ")


def figures(rows: Sequence[dict]) -> dict:
    """Name and figure of every experiment that the rows hold."""
    found = {}
    for name in dict.fromkeys(row["experiment"] for row in rows):
        mine = [row for row in rows if row["experiment"] == name]
        seeds = sorted({row["seed"] for row in mine})
        n = mine[0]["passed"]["n"]
        limits = envs.bounds(
            mine[0]["env"], [HELD_OUT + 1000 * seed + i for seed in seeds for i in range(n)]
        )
        about = f"mean and range of {len(seeds)} seeds, n = {n} maps each"
        if name in ("texts", "curation"):
            found[name] = plots.bars(mine, limits, "Pass rate")
        elif name == "steps":
            panels = {"passed": "Pass rate", "ood": "OOD: exact answers"}
            found[name] = plots.curves(
                mine, "step", panels, f"lr x 3, no retention; {about}", limits
            )
        elif name == "saturation":
            title = f"In context, {max(row['draw'] for row in mine) + 1} draws; {about}"
            found[name] = plots.curves(mine, "games", {"passed": "Pass rate"}, title, limits)
        else:
            whole = [row["passed"]["pass_rate"] for row in mine if row["arm"] == "all items"]
            title = f"Pass rate less that with all items, {sum(whole) / len(whole):.0%} (n = {n * len(seeds)}, paired)"
            found[name] = plots.differences(paired(mine), title)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("data/results/experiments.jsonl"))
    parser.add_argument("--seeds", default="0:4", help="first:end")
    parser.add_argument("--only", nargs="*", choices=list(EXPERIMENTS), default=list(EXPERIMENTS))
    parser.add_argument("--scale", choices=list(SCALES), default="tiny")
    parser.add_argument("--model", default="micro")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--draw", type=Path, metavar="FOLDER", help="only draw what is there")
    args = parser.parse_args()
    rows = read_jsonl(args.out) if args.out.exists() else []
    if args.table:
        return print(table(rows))
    if args.draw:
        for name, figure in figures(rows).items():
            figure.savefig(args.draw / f"experiment_{name}.png", dpi=110)
        return
    done = {(row["experiment"], row["seed"]) for row in rows}
    policy = load_policy(args.model)
    for seed in range(*map(int, args.seeds.split(":"))):
        settings = Settings.of(args.scale, model=args.model, seed=seed)
        for name in args.only:
            if (name, seed) in done:
                continue
            with tempfile.TemporaryDirectory() as folder:
                run = Run(Path(folder) / "run", settings, policy, progress=False)
                found = list(EXPERIMENTS[name](run))
            about = {
                "experiment": name,
                "model": policy.name,
                "scale": args.scale,
                "env": run.eval_env,
                "seed": seed,
            }
            for row in found:
                append_jsonl(args.out, about | row)
                print(
                    name,
                    seed,
                    row["arm"],
                    row.get("how", row.get("step", row.get("games", ""))),
                    f"{row['passed']['pass_rate']:.1%}",
                    (row.get("ood") or {}).get("all", ""),
                    flush=True,
                )


if __name__ == "__main__":
    main()

"""The paper's claims, and two of ours, on several seeds. Each arm is an ordinary library call.

    python examples/micro/claims.py --seeds 0:4                  # all of them on lakes
    python examples/micro/claims.py --seeds 0:4 --only steps     # one of them
    python examples/micro/claims.py --scale small --model MODEL --out runs/small.jsonl
    python examples/micro/claims.py --table                      # recorded results, in Markdown
    python examples/micro/claims.py --draw data/results          # and their figures

Appends one JSON line per measurement, one experiment and seed at a time, and skips those that are
recorded. Each seed has its own held-out maps, the same for all of its arms, so that arms are
paired and seeds can be pooled."""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

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
from oelkit.records import ExperienceItem, Trajectory, append_jsonl
from oelkit.runs.run import HELD_OUT
from oelkit.runs.settings import SCALES
from oelkit.statements import items_for_draw
from oelkit.steps.rollouts import raw_games_text
from oelkit.text import MARKER, count_tokens, experience_text, truncate_to_budget
from oelkit.views import plots
from oelkit.views.findings import Finding, points_text

sys.path.insert(0, str(Path(__file__).parent))  # missing when a notebook runs this file
import study_plots
from study_plots import grouped, pooled, rates

BUDGET = 512  # tokens per text in `texts`, for items and raw games
WORLDS = {
    "items of a world with other letters": {"hole": "K", "goal": "T"},
    "items of a world with the letters swapped": {"hole": "G", "goal": "H"},
}
STEPS = (2, 5, 10, 20, 40)
NOISY = {"temperature": 1.5, "show_previous": False}  # careless: some of its items are wrong
TRUE = {"H is a hole.", "G is the goal."}  # what a person who knows the rules keeps of them


def maps(run: Run) -> range:
    """Return the held-out maps for a run's seed."""
    return range(first := HELD_OUT + 1000 * run.settings.seed, first + run.settings.eval_maps)


def played(run: Run, texts: str | Sequence[str] = "") -> dict:
    """Return the student's pass rate with `texts` in context, and outcomes by map for pairing."""
    how = {"prompt_set": run.prompts, "sampling_seeds": (run.settings.seed,)}
    report = evaluate(run.policy, run.eval_env, maps(run), texts, **how)
    return report.summary() | {"passes": report.passes_string}


def learn(run: Run, texts: Sequence[str], **options) -> None:
    """Distil texts on the run's states. `options` override its settings."""
    names = ("steps", "batch_size", "lr", "temperature", "top_k", "loss", "seed")
    given = {name: getattr(run.settings, name) for name in names}
    given |= {"retention": run.settings.retention, "prompt_set": run.prompts} | options
    distill(run.policy, run.collect(1), texts, **given)


def written(
    run: Run, games: Sequence[Trajectory], draws: int | None = None, **options
) -> list[ExperienceItem]:
    """Return the items that the student writes about games."""
    s = run.settings
    how = {"num_draws": draws or s.num_draws, "budget_tokens": BUDGET, "seed": s.seed}
    return extract(run.policy, games, prompt_set=run.prompts, **how, **options)


def by_draw(run: Run, items: Sequence[ExperienceItem], curate: bool = True) -> list[str]:
    """Return the text of each draw: the items that `auto_curate` keeps, or all of them."""
    items = auto_curate(Curation(items), run.settings.num_draws).kept() if curate else items
    return [
        truncate_to_budget(experience_text(items_for_draw(items, d)), BUDGET, run.policy.tokenizer)
        for d in range(run.settings.num_draws)
    ]


def both(run: Run, arm: str, texts: Sequence[str]) -> Iterator[dict]:
    """Measure texts in the context of the untrained model, then consolidated."""
    run.policy.reset()
    tokens = [count_tokens(text, run.policy.tokenizer) for text in texts]
    most = sorted(set(texts), key=texts.count)[-3:]
    about = {"arm": arm, "tokens": sum(tokens) / len(tokens), "texts": most}
    yield {**about, "how": "in_context", "passed": played(run, texts)}
    if any(texts):
        learn(run, texts)
        yield {**about, "how": "consolidated", "passed": played(run), "ood": run.probe()}


def texts(run: Run) -> Iterator[dict]:
    """Compare own items, raw games, items by other writers, and items of other worlds.

    All have the same token budget.
    """
    s, policy = run.settings, run.policy
    run.collect(1)  # now, while the model is untrained
    games = run.rollout(1)
    policy.reset()
    yield {"arm": "nothing", "how": "base", "passed": played(run), "ood": run.probe()}
    own = by_draw(run, written(run, games))
    yield from both(run, "own items", own)
    shuffled = (random.Random(d).sample(games, len(games)) for d in range(s.num_draws))
    raw = [raw_games_text(g, run.prompts) for g in shuffled]
    raw = [truncate_to_budget(text, BUDGET, policy.tokenizer) for text in raw]
    yield from both(run, "raw games", raw)
    policy.reset()
    hot = by_draw(run, written(run, games, temperature=1.5))
    yield from both(run, "items of the same games, written at T 1.5", hot)
    policy.reset()
    learn(run, own)
    play = {"prompt_set": run.prompts, "temperature": s.temperature}
    later = rollout(policy, s.env, [t.seed + 500 for t in games], seed=s.seed, **play)
    later = by_draw(run, written(run, later))
    yield from both(run, "items of the model after a round", later)
    for arm, symbols in WORLDS.items():
        policy.reset()
        play["env_kwargs"] = {"symbols": symbols}
        there = rollout(policy, s.env, [t.seed for t in games], seed=s.seed, **play)
        yield from both(run, arm, by_draw(run, written(run, there)))


def steps(run: Run) -> Iterator[dict]:
    """Compare on- and off-policy training by step.

    Without retention and at three times the learning rate, so that there is something to lose.
    """
    own = by_draw(run, written(run, run.rollout(1)))
    run.collect(1)
    run.policy.reset()
    start = {"step": 0, "passed": played(run), "ood": run.probe()}
    for loss in ("reverse_kl", "forward_kl", "sft"):
        rows = [{"arm": loss, **start}]

        def watch(row: dict) -> None:
            if (step := row["step"] + 1) in STEPS:
                measured = {"passed": played(run), "ood": run.probe()}
                rows.append({"arm": loss, "step": step, **measured})

        run.policy.reset()
        how = {"steps": max(STEPS), "lr": 3 * run.settings.lr, "retention": 0.0}
        learn(run, own, loss=loss, on_step=watch, **how)
        yield from rows


def saturation(run: Run) -> Iterator[dict]:
    """Measure the pass rate in context by games read. Each draw has its own order of games."""
    games, measured = run.rollout(1), {}
    run.policy.reset()
    orders = [random.Random(d).sample(games, len(games)) for d in range(run.settings.num_draws)]
    items: list[list[ExperienceItem]] = [[] for _ in orders]
    for start, n in pairwise(n for n in (0, 1, 2, 4, 8, 16, 32, 64) if n <= len(games)):
        for d, order in enumerate(orders):
            new = written(run, order[start:n], draws=1, previous=experience_text(items[d]))
            items[d] += [replace(item, draw=d, id=f"{d}-{item.id}") for item in new]
        for arm, curate in (("as extracted", False), ("curated", True)):
            for d, text in enumerate(by_draw(run, chain.from_iterable(items), curate)):
                measured[text] = measured.get(text) or played(run, text)
                yield {"arm": arm, "games": n, "draw": d, "text": text, "passed": measured[text]}


def curation(run: Run) -> Iterator[dict]:
    """Compare careless items as extracted, curated by a person, curated by agreement, and a random
    subset as large as the person's.
    """
    games = run.rollout(1)
    run.collect(1)
    run.policy.reset()
    yield {"arm": "nothing", "how": "base", "passed": played(run), "ood": run.probe()}
    items = written(run, games, **NOISY)
    raw = by_draw(run, items, curate=False)
    session = Curation(items)
    first = {(i.draw, i.text): i.id for i in reversed(items) if i.text in TRUE}
    session.accept(list(first.values()), "true, once")
    curated = by_draw(run, session.kept(), curate=False)
    rng = random.Random(run.settings.seed)
    pairs = [(a.splitlines(), b.count("\n") + 1) for a, b in zip(raw, curated)]
    some = ["\n".join(rng.sample(lines, min(n, len(lines)))) for lines, n in pairs]
    yield from both(run, "as extracted", raw)
    yield from both(run, "curated by a person", curated)
    yield from both(run, "curated by agreement", by_draw(run, items))
    yield from both(run, "random subset of equal size", some)


def leave_one_out(run: Run) -> Iterator[dict]:
    """Leave out each of the careless items in turn, in context. All seeds have the same items."""
    s, policy = run.settings, run.policy
    policy.reset()
    play = {"prompt_set": run.prompts, "temperature": s.temperature}
    games = rollout(policy, s.env, range(s.extract_games), **play)
    items = extract(policy, games, prompt_set=run.prompts, **NOISY)
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


def verdicts(rows: Sequence[dict]) -> list[Finding]:
    """Return what the rows of one experiment say about its claim.

    An arm is better if the 95 % interval of the paired difference is above 0. OOD answers are not
    recorded one by one; there, the Wilson intervals must not overlap. Experience saturates if the
    last doubling of games changes the mean over draws by less than two points."""
    rows = sorted(rows, key=lambda row: row["seed"])
    name = rows[0]["experiment"]
    if name == "saturation":
        return _saturates([row for row in rows if row["arm"] == "curated"])
    if name == "leave_one_out":
        changes = sorted(paired(rows), key=lambda row: -abs(row["difference"][0]))
        return [
            Finding(f"Without `{row['arm']}`: {points_text(row['difference'])}.")
            for row in changes
            if row["arm"] != "no items"
        ]
    found, end = [], max(row.get("step", 0) for row in rows)
    arms = grouped([row for row in rows if row.get("step", end) == end], "arm", "how")
    for (arm, how), ours in arms.items():
        for rival in RIVALS.get(arm, ()):
            if (rival, how) in arms:  # missing if it had no items to train on
                where = f"after {end} steps" if end else how.replace("_", " ")
                found += _versus(arm, ours, rival, arms[rival, how], where)
    return found


def _saturates(rows: Sequence[dict]) -> list[Finding]:
    by_games = {
        n: [r for r, _ in rates(of, "passed")] for (n,), of in grouped(rows, "games").items()
    }
    means = {n: sum(of) / len(of) for n, of in sorted(by_games.items())}
    *_, before, last = means
    gain = means[last] - means[before]
    each = ", ".join(
        f"{n}: {mean:.1%} ({min(by_games[n]):.1%} to {max(by_games[n]):.1%})"
        for n, mean in means.items()
    )
    draws = len(by_games[last])
    return [
        Finding(f"Curated items in context by games read, {draws} draws: {each}."),
        Finding(f"The last doubling of the games adds {100 * gain:+.1f} points.", abs(gain) < 0.02),
    ]


def _versus(
    arm: str, ours: Sequence[dict], rival: str, theirs: Sequence[dict], where: str
) -> Iterator[Finding]:
    """Compare an arm with a rival, paired by map. After training, compare OOD answers as well."""
    arm, rival = (plots.NAMES.get(name, name) for name in (arm, rival))
    mine, others = (passes(rows) for rows in (ours, theirs))
    difference, n = paired_bootstrap(others, mine), len(mine)
    yield Finding(
        f"{arm} {sum(mine) / n:.1%} against {rival} {sum(others) / n:.1%}, {where}: "
        f"{points_text(difference)}, n = {n}.",
        difference[1] > 0,
    )
    if where.startswith("after") and all(row.get("ood") for row in ours):
        kept, lost = (pooled(rates(rows, "ood")) for rows in (ours, theirs))
        text = " against ".join(f"{r:.1%} [{low:.1%}, {high:.1%}]" for r, low, high in (kept, lost))
        yield Finding(f"{arm} keeps more than {rival}: OOD {text}.", kept[1] > lost[2])


def passes(rows: Sequence[dict]) -> list[int]:
    """Return outcomes by map, of all rows in order."""
    return [int(c) for row in rows for c in row["passed"]["passes"]]


def paired(rows: Sequence[dict]) -> list[dict]:
    """Return how each arm of `leave_one_out` differs from all items on the same maps."""
    arms = grouped(sorted(rows, key=lambda row: row["seed"]), "arm")
    whole = passes(arms.pop(("all items",)))
    return [
        {
            "arm": arm.removeprefix(MARKER).strip(),
            "difference": paired_bootstrap(whole, passes(same)),
        }
        for (arm,), same in arms.items()
    ]


def table(rows: Sequence[dict]) -> str:
    """Return a Markdown table with each arm's pass rate over all seeds and its Wilson interval.

    Draws play the same maps; for them it gives mean and range.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        by = next((f"{key} {row[key]}" for key in ("step", "games") if key in row), "in_context")
        name = row["arm"].removeprefix(MARKER).strip()
        groups.setdefault((row["experiment"], name, row.get("how") or by), []).append(row)
    lines = ["| experiment | arm | | pass rate | n | OOD |", "|---|---|---|---|---|---|"]
    for key, same in groups.items():
        parts = rates(same, "passed")
        each, kept = [rate for rate, _ in parts], [rate for rate, _ in rates(same, "ood")]
        rate, low, high = pooled(parts)
        about = f"{rate:.1%} [{low:.1%}, {high:.1%}] | {sum(n for _, n in parts)}"
        if "draw" in same[0]:
            mean = sum(each) / len(each)
            about = f"{mean:.1%} ({min(each):.1%} to {max(each):.1%}) | {len(each)} draws"
        ood = f"{sum(kept) / len(kept):.1%}" if kept else "-"
        lines.append(f"| {' | '.join(key)} | {about} | {ood} |")
    return "\n".join(lines).replace("_", " ")


def figures(rows: Sequence[dict]) -> dict:
    """Return the figure of each experiment in the rows, by name."""
    return {name: figure(name, same) for (name,), same in grouped(rows, "experiment").items()}


@cache
def bounds(env: str, maps: tuple[int, ...]) -> dict:
    """Return `envs.bounds`, which takes seconds; most experiments play the same maps."""
    return envs.bounds(env, maps)


def figure(name: str, rows: Sequence[dict]) -> plots.Figure:
    """Draw the figure of one experiment."""
    seeds, n = sorted({row["seed"] for row in rows}), rows[0]["passed"]["n"]
    maps = [HELD_OUT + 1000 * seed + i for seed in seeds for i in range(n)]
    limits = bounds(rows[0]["env"], tuple(maps))
    about, head = f"mean and range of {len(seeds)} seeds, {n} maps each", headline(name, rows)
    if name in ("texts", "curation"):
        return study_plots.bars(rows, limits, head)
    if name == "steps":
        panels = {"passed": "Pass rate", "ood": "OOD: exact answers"}
        return study_plots.curves(rows, "step", panels, f"{head} ({about})", limits)
    if name == "saturation":
        panels = {"passed": "Pass rate"}
        return study_plots.curves(rows, "games", panels, f"{head} ({about})", limits)
    whole, *_ = pooled(rates([row for row in rows if row["arm"] == "all items"], "passed"))
    about = f"against {whole:.0%} with all items (n = {n * len(seeds)}, paired, 95 % intervals)"
    return study_plots.differences(paired(rows), head, about)


def headline(name: str, rows: Sequence[dict]) -> str:
    """Return the title of an experiment's figure: its finding with numbers."""

    def rate(key: str, **of: Any) -> str:
        same = [row for row in rows if all(row.get(k) == v for k, v in of.items())]
        found = rates(same, key)  # empty if an arm had no items to train on
        return f"{pooled(found)[0]:.0%}" if found else "-"

    if name in ("texts", "curation"):
        ours = "own items" if name == "texts" else "curated by a person"
        arms, how = (ours, RIVALS[ours][0]), rows[-1]["how"]
        said = (f"{arm} {rate('passed', arm=arm, how=how)}" for arm in arms)
        return f"{how.capitalize().replace('_', ' ')}: {', '.join(said)}"
    if name == "steps":
        end, arms = max(row["step"] for row in rows), ("reverse_kl", *RIVALS["reverse_kl"])
        said = (f"{plots.NAMES[arm]} {rate('ood', arm=arm, step=end)}" for arm in arms)
        return f"OOD after {end} steps: {', '.join(said)}"
    if name == "saturation":
        ends = sorted({row["games"] for row in rows})[:: len({row["games"] for row in rows}) - 1]
        said = (f"{rate('passed', arm='curated', games=n)} after {n}" for n in ends)
        return f"Games read: {', '.join(said)}"
    return str(verdicts(rows)[0]).rstrip(".").replace("`", "")


def main() -> None:
    parser = study_plots.options(__doc__, "data/results/experiments.jsonl", "0:4")
    parser.add_argument("--only", nargs="*", choices=list(EXPERIMENTS), default=list(EXPERIMENTS))
    parser.add_argument("--scale", choices=list(SCALES), help="default: the settings of the lakes")
    parser.add_argument("--model", default=study_plots.LAKES.model)
    args = parser.parse_args()
    if study_plots.shown(args, table, figures, "experiment_"):
        return
    done = {(row["experiment"], row["seed"]) for row in study_plots.recorded(args.out)}
    policy = load_policy(args.model)
    for seed in args.seeds:
        start = Settings.of(args.scale) if args.scale else study_plots.LAKES
        settings = replace(start, model=args.model, seed=seed)
        for name in args.only:
            if (name, seed) in done:
                continue
            with tempfile.TemporaryDirectory() as folder:
                run = Run(Path(folder) / "run", settings, policy, progress=False)
                found = list(EXPERIMENTS[name](run))
            about = {"experiment": name, "model": policy.name, "scale": args.scale or "lakes"}
            about |= {"env": run.eval_env, "seed": seed}
            for row in found:
                append_jsonl(args.out, about | row)
                where = row.get("how", row.get("step", row.get("games", "")))
                ood = (row.get("ood") or {}).get("all", "")
                print(name, seed, row["arm"], where, f"{row['passed']['pass_rate']:.1%}", ood)


if __name__ == "__main__":
    main()

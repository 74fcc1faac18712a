"""The stages that measure: base, the arms of a round, the other arms, and the run's metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from .. import envs
from ..curation import Curation
from ..records import ExperienceItem, Outcome, State, Trajectory, read_jsonl, to_dict
from ..steps import evaluation, rollouts
from . import gate, work
from .context import RunContext
from .files import read_json, sha256, write_json
from .table import ARMS, STAGES

SHOWN = 5  # held-out games to keep; the report shows one of them


def base(run: RunContext, _: int, folder: Path) -> dict[str, Any]:
    """Measure the untrained model, once for the whole run."""
    report = _play(run, adapter=None)
    lost = [game.seed for game in report.trajectories if game.outcome is not Outcome.SUCCESS]
    shown = _shown(report, list(dict.fromkeys(lost or report.map_seeds))[:SHOWN])
    row = {"pass_rate": _row(report), "shown": shown} | _judged(run, None)
    write_json(folder / "base.json", row)
    return {}


def evaluate(run: RunContext, k: int, folder: Path) -> dict[str, Any]:
    """Measure round k on held-out maps and let the gate judge it."""
    start = run.stages.start(k)
    read = next(n for n in run.stages.reads(k, "evaluate") if n.endswith("experience.md"))
    texts = [text for text in work.read_texts(run, run.folder / read) if text]
    untrained = read_json(run.folder / "base.json")
    rows = {"base": untrained["pass_rate"]}
    rows["in_context"] = measure(run, texts, adapter="teacher")
    rows["consolidated"] = _row(report := _play(run))
    passes = [int(c) for c in rows["in_context"]["passes"]]
    draws = [passes[d :: len(texts)] for d in range(len(texts))]
    rows["in_context"]["by_draw"] = [sum(p) / len(p) for p in draws if p]
    now = _judged(run, "student")
    metrics = {"round": k, "start": start, "experience_sha256": sha256(run.folder / read)}
    metrics |= {"pass_rate": rows, "ood": {"base": untrained["ood"], "consolidated": now["ood"]}}
    seeds = [game["seed"] for game in untrained.get("shown", ())]
    metrics["shown"] = _shown(report, seeds)  # on the same maps as the base's, for the report
    if "validation" in now:
        before = untrained
        if start:
            before = read_json(run.folder / f"round_{start}/metrics.json")
            before |= {"ood": before["ood"]["consolidated"]}
        metrics |= {"validation": now["validation"], "gate": gate.judge(k, start, before, now)}
        if lost := metrics["gate"]["lost"]:
            run.tell(f"gate: {lost}")
    write_json(folder / "metrics.json", metrics)
    return {}


def _judged(run: RunContext, adapter: str | None) -> dict[str, Any]:
    """What the gate compares: validation maps passed, and the OOD probe."""
    row: dict[str, Any] = {"ood": run.probe(adapter)}
    if run.settings.gate != "off":
        seeds = range(gate.VALIDATION, gate.VALIDATION + gate.VALIDATION_MAPS)
        row["validation"] = measure(run, "", adapter, run.settings.env, seeds, samples=1)
    return row


def measure(
    run: RunContext, texts: Sequence[str] | str = "", *args: Any, **options: Any
) -> dict[str, Any]:
    """Return a row of metrics: the pass rate on held-out (or other) maps with its interval."""
    return _row(_play(run, texts, *args, **options))


def _row(report: evaluation.EvalReport) -> dict[str, Any]:
    row = report.summary() | {"passes": report.passes_string}
    return row | ({"levels": levels} if (levels := _levels(report.trajectories)) else {})


def _levels(games: Sequence[Trajectory]) -> list[float]:
    """Share of games that passed each board, in worlds with one board below another."""
    reached = [[turn.extra.get("level", 0) for turn in game.turns] for game in games]
    for levels in filter(None, reached):  # a world of one's own can mean something else by a level
        if levels[0] != 1 or any(b - a not in (0, 1) for a, b in pairwise(levels)):
            return []
    ends = [max(levels, default=0) for levels in reached]
    won = [game.outcome is Outcome.SUCCESS for game in games]
    return [
        sum(w or end > level for w, end in zip(won, ends, strict=True)) / len(games)
        for level in range(1, max(ends) + 1)
    ]


def _shown(report: evaluation.EvalReport, seeds: Sequence[int | None]) -> list[dict[str, Any]]:
    """The first game on each of these maps, without prompts."""
    first = {game.seed: game for game in reversed(report.trajectories)}
    games = [first[seed] for seed in seeds if first[seed].turns]
    return [
        to_dict(replace(g, turns=tuple(replace(turn, prompt=[]) for turn in g.turns)))
        for g in games
    ]


def _play(
    run: RunContext,
    texts: Sequence[str] | str = "",
    adapter: str | None = "student",
    env: str | None = None,
    seeds: Sequence[int] | None = None,
    samples: int | None = None,
) -> evaluation.EvalReport:
    s, seeds = run.settings, seeds or run.eval_seeds
    samples = samples or s.samples_per_map
    name = "in context" if texts else "consolidated" if adapter else "base"
    name += ", validation maps" if env else ""
    return evaluation.evaluate(
        run.policy,
        env or run.eval_env,
        seeds,
        texts,
        s.eval_sampling,
        adapter=adapter,
        prompt_set=run.prompts,
        sampling_seeds=[s.seed * samples + i for i in range(samples)],
        progress=run.progress and name,
    )


def metrics(run: RunContext, _: int, folder: Path) -> dict[str, Any]:
    """Combine the metrics of all rounds and arms."""
    stages, rounds = run.stages, range(1, run.settings.rounds + 1)
    whole = {
        "run": run.folder.name,
        "env": run.settings.env,
        "eval_env": run.eval_env,
        "model": run.policy.name,
        "seed": run.settings.seed,
        "bounds": envs.bounds(run.eval_env, run.eval_seeds),
        "rounds": [round_metrics(run, k) for k in rounds],
        "chain": [{"round": k, "start": stages.start(k), "lost": stages.lost(k)} for k in rounds],
        "next_start": stages.start(rounds[-1] + 1),
        "seconds": _seconds(run, 0, ("base", *ARMS)),
    }
    arms = arm_metrics(run)
    write_json(folder / "metrics.json", whole | ({"arms": arms} if arms else {}))
    return {}


def arm_metrics(run: RunContext) -> dict[str, Any]:
    """Return the rows of the arms that are done."""
    rows = {arm: read_json(run.folder / f"ablations/{arm}.json") for arm in ARMS}
    return {arm: row for arm, row in rows.items() if row}


def round_metrics(run: RunContext, k: int) -> dict[str, Any]:
    """Return the metrics of a round with its counts and seconds."""
    folder = run.folder / f"round_{k}"
    row = read_json(folder / "metrics.json")
    row.pop("shown", None)
    if (folder / "items.jsonl").exists():
        items = read_jsonl(folder / "items.jsonl", ExperienceItem)
        kept = Curation(items, folder / "curation.jsonl").kept()
        row |= {"items": len(items), "kept": len(kept)}
    row["extraction"] = (run.stages.manifest(k, "extract") or {}).get("counts")
    for kind in ("reply_tokens", "truncated"):
        row[kind] = {name: rate[kind] for name, rate in row["pass_rate"].items()}
    return {**row, "seconds": _seconds(run, k, STAGES)}


def _seconds(run: RunContext, k: int, names: Sequence[str]) -> dict[str, float]:
    manifests = {name: run.stages.manifest(k, name) for name in names}
    return {name: made.get("seconds", 0) for name, made in manifests.items() if made}


def run_arm(arm: str, run: RunContext, _: int, folder: Path) -> dict[str, Any]:
    """Train and measure another arm on round 1's states: off-policy KL, SFT, or raw games instead
    of items.
    """
    row: dict[str, Any] = {}
    texts, loss = [], arm
    if arm == "raw":
        games = read_jsonl(run.folder / "round_1/trajectories.jsonl", Trajectory)
        games = games[: run.settings.num_draws]
        texts, loss = [rollouts.raw_games_text([game], run.prompts) for game in games], "reverse_kl"
        row["in_context"] = measure(run, texts)
    states = read_jsonl(run.folder / "round_1/states.jsonl", State)
    texts = texts or work.known_texts(run, 1)
    seed = work.train(run, 1, arm, states, texts, loss, work.checkpoint(folder))
    row |= {"consolidated": measure(run), "ood": run.probe()}
    write_json(folder / f"{arm}.json", row)
    return {"seeds": {"training": seed}}

"""What a run shows, in sentences built only from its metrics, including what failed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..envs import describe
from ..runs.table import weights
from ..stats import draw_spread, outcomes, paired_bootstrap
from .plots import NAMES, probe_interval
from .summary import episodes_text, map_count, rate_text

VERDICT = {1: "above", 0: "not distinguishable from", -1: "below"}


@dataclass(frozen=True)
class Finding:
    """A sentence, and whether it reports the hoped-for result."""

    text: str
    came_out: bool = True

    def __str__(self) -> str:
        return self.text if self.came_out else f"Not as hoped: {self.text}"


def points_text(difference: tuple[float, float, float]) -> str:
    """Format a difference in pass rate with its interval: "+12.5 points [+3.1, +21.9]"."""
    mean, low, high = (100 * x for x in difference)
    return f"{mean:+.1f} points [{low:+.1f}, {high:+.1f}]"


def _passes(row: dict) -> np.ndarray | None:
    """Success of each episode, [sampling seeds, maps]; None if the row does not have it."""
    passes = row.get("passes")
    return outcomes(passes, map_count(row)) if passes else None


def compare(row: dict, other: dict) -> tuple[int, str]:
    """Return whether a pass rate is above another (1), below (-1) or not distinguishable (0).

    The reason comes second. The comparison is paired by map if both rows list their episodes (all
    arms of a run play the same maps); otherwise it checks whether the intervals overlap.
    """
    ours, theirs = _passes(row), _passes(other)
    if ours is not None and theirs is not None and ours.shape == theirs.shape:
        difference = paired_bootstrap(theirs, ours)
        sign = (difference[1] > 0) - (difference[2] < 0)
        if np.ptp((ours - theirs).mean(0)):  # else all maps differ alike, such as a single one
            return sign, f"{points_text(difference)}, paired by map"
    sign = (row["low"] > other["high"]) - (row["high"] < other["low"])
    return sign, "the intervals do not overlap" if sign else "the intervals overlap"


def findings(metrics: dict) -> list[Finding]:
    """Return the findings of a run, from its metrics.json or the result of `Run.run_all`."""
    return [*_learning(metrics), *_rounds(metrics), *_abilities(metrics), *_arms(metrics)]


def _above(what: str, row: dict, than: str, other: dict) -> Finding:
    sign, why = compare(row, other)
    text = f"{what} reaches {rate_text(row)}, {VERDICT[sign]} {than} at {rate_text(other)}: {why}."
    return Finding(text, sign > 0)


def _learning(metrics: dict) -> Iterator[Finding]:
    last, bounds = metrics["rounds"][-1], metrics["bounds"]
    passed, k = last["pass_rate"], last["round"]
    start = last.get("start", k - 1)
    reader = f"The model of round {start}" if start else "The base"
    teacher = f"{reader} with the experience of round {k} in context"
    base, in_context, learned = (passed[a] for a in ("base", "in_context", "consolidated"))
    known = describe(bounds)
    yield Finding(
        f"Without experience the base model passes {rate_text(base)} of {episodes_text(metrics)}"
        f"{known and '; '}{known}."
    )
    floor = [bounds[key] for key in ("random", "fixed_plan") if bounds[key] is not None]
    if base["low"] > max(floor, default=1.0):
        yield Finding("The base alone is better than a player who guesses.", False)
    yield _above(teacher, in_context, "the base alone", base)
    yield _above(f"The model of round {k} with nothing in context", learned, "the base", base)
    if in_context["low"] <= base["high"]:
        text = "The teacher's interval is not above the base's, so there is little to distill."
        yield Finding(text, False)
    else:
        share = learned["pass_rate"] / in_context["pass_rate"]
        text = f"The student of round {k} reaches {share:.2f} times its teacher's pass rate"
        text += " (goal: at least 0.8)."
        yield Finding(text, share >= 0.8)


def _rounds(metrics: dict) -> Iterator[Finding]:
    first, last = metrics["rounds"][0], metrics["rounds"][-1]
    k, end = last["round"], last["pass_rate"]["consolidated"]
    if last is not first:
        learned = first["pass_rate"]["consolidated"]
        sign, why = compare(end, learned)
        verb = {1: "improves on", 0: "is not distinguishable from", -1: "falls below"}[sign]
        text = f"Round {k} {verb} round 1: {rate_text(end)} against {rate_text(learned)}, {why}."
        yield Finding(text, sign >= 0)
    told = last["pass_rate"]["in_context"]
    draws = told.get("by_draw", [])
    if 1 < len(draws) <= told["n"] / 2:
        sd = 100 * draw_spread(draws, told["n"] / len(draws))
        by = f"by {sd:.1f} points (standard deviation beyond chance)"
        by = by if sd >= 0.05 else "no more than by chance"
        yield Finding(f"In context, the {len(draws)} experience texts of round {k} differ {by}.")
    base = first["pass_rate"]["base"]
    cut = f"{end['truncated']:.1%} cut off after, {base['truncated']:.1%} before"
    cut = cut if end["truncated"] or base["truncated"] else "none cut off"
    shorter = end["reply_tokens"] < 0.95 * base["reply_tokens"]
    yield Finding(
        f"Replies {'get' if shorter else 'do not get'} shorter: "
        f"{end['reply_tokens']:.1f} tokens per reply after round {k}, "
        f"{base['reply_tokens']:.1f} before; {cut}.",
        shorter,
    )


def _abilities(metrics: dict) -> Iterator[Finding]:
    last = metrics["rounds"][-1]
    before, after = metrics["rounds"][0]["ood"]["base"], last["ood"]["consolidated"]
    if not before or not after:
        return
    _, low, high = probe_interval(before)
    lost = after["all"] < low
    yield Finding(
        f"Other abilities are {'partly lost' if lost else 'kept'}: {after['all']:.1%} of "
        f"{before['n']} OOD answers correct after round {last['round']}, {before['all']:.1%} "
        f"[{low:.0%}, {high:.0%}] before.",
        not lost,
    )
    kinds = [kind for kind in before if kind not in ("all", "n")]
    if lost and kinds:
        worst = min(kinds, key=lambda kind: after[kind] - before[kind])
        change = f"{before[worst]:.0%} before, {after[worst]:.0%} after"
        yield Finding(f"The largest loss is in {worst!r}: {change}.")
    if lost and metrics.get("chain") and not any(link["lost"] for link in metrics["chain"]):
        text = "No round lost that much against the one before it, so the gate said nothing."
        yield Finding(text)


def _arms(metrics: dict) -> Iterator[Finding]:
    passed = metrics["rounds"][0]["pass_rate"]
    arms: dict[str, dict] = metrics.get("arms") or {}
    for arm, row in arms.items():
        name, ours = NAMES.get(arm, arm), passed["consolidated"]
        yield _above("On-policy distillation of experience", ours, name, row["consolidated"])
        if "in_context" in row:
            raw = f"{arm} games in context"
            yield _above("Experience in context", passed["in_context"], raw, row["in_context"])


def chain(metrics: dict) -> list[Finding]:
    """Return which weights each round started from, and what the gate found."""
    rounds = {r["round"]: r for r in metrics["rounds"]}
    found = []
    for link in metrics.get("chain", ()):
        k, lost = link["round"], link["lost"]
        said = f": the gate found {f'that {lost}' if lost else 'no loss against it'}"
        judged = said if lost or rounds[k].get("gate") else ""
        text = f"Round {k} starts from {weights(link['start'])}{judged}."
        found.append(Finding(text, not lost))
    if "next_start" in metrics:
        found.append(Finding(f"The next round starts from {weights(metrics['next_start'])}."))
    return found

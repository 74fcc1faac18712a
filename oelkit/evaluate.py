"""Evaluate: pass rates with intervals, paired differences, and what a model has not forgotten.

Nothing here trains or chooses a checkpoint. Intervals: Wilson (1927) for one rate, a paired bootstrap over map seeds
and sampling seeds for a difference. The random policy, the best fixed plan and the ceiling come from `envs.bounds`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from .generation import generate
from .ifeval import ifeval  # noqa: F401  (evaluate.ifeval)
from .policy import Policy, answer_text
from .prompts import Prompts
from .records import Outcome, Trajectory, read_jsonl
from .rollout import rollout


@dataclass(frozen=True)
class Report:
    """Pass rate over n episodes with its 95 % Wilson interval; reply tokens and truncation a turn."""

    pass_rate: float
    low: float
    high: float
    n: int
    reply_tokens: float
    truncated: float
    trajectories: list[Trajectory]

    @property
    def passes(self) -> list[bool]:
        """Success by episode, in the order of the seeds."""
        return [t.outcome is Outcome.SUCCESS for t in self.trajectories]

    @property
    def passes_01(self) -> str:
        """The same as a string of 0 and 1, for JSON."""
        return "".join("01"[passed] for passed in self.passes)

    @property
    def passes_SM(self) -> np.ndarray:
        """The same as numbers, [sampling seeds, maps], for pairing."""
        return np.array(self.passes, float).reshape(-1, len({t.seed for t in self.trajectories}))

    def summary(self) -> dict[str, float]:
        """The figures alone, as they go into metrics.json."""
        return {k: getattr(self, k) for k in ("pass_rate", "low", "high", "n", "reply_tokens", "truncated")}


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a rate (default: 95 %)."""
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} of {n} is not a rate")
    rate, scale = successes / n, 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / scale
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / scale
    # at the ends the bound is 0 or 1 exactly, but for rounding
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def paired_bootstrap(
    a: Report | Sequence[float], b: Report | Sequence[float], *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of b - a over paired episodes with its 95 % percentile interval: (difference, low, high).

    Map seeds and sampling seeds are drawn again, both, independently (the pigeonhole bootstrap: Owen, Annals of Applied
    Statistics 1, 2007). a, b: reports on the same maps, or passes [maps] or [sampling seeds, maps].
    """
    maps = [[t.seed for t in x.trajectories] for x in (a, b) if isinstance(x, Report)]
    if len(maps) == 2 and maps[0] != maps[1]:
        raise ValueError("reports on different maps cannot be paired")
    a, b = (x.passes_SM if isinstance(x, Report) else np.atleast_2d(np.asarray(x, float)) for x in (a, b))
    if a.shape != b.shape or not a.size:
        raise ValueError(f"{a.shape} and {b.shape} episodes (sampling seeds, maps) cannot be paired")
    difference, rng = b - a, np.random.default_rng(seed)
    rows, columns = (rng.multinomial(n, np.full(n, 1 / n), resamples) / n for n in difference.shape)  # shares drawn
    low, high = np.quantile(((rows @ difference) * columns).sum(1), (0.025, 0.975))
    return float(difference.mean()), float(low), float(high)


def draw_spread(rates: Sequence[float], games: float) -> float:
    """How much the pass rates of the K draws differ beyond sampling noise: a standard deviation, in pass rate.

    sqrt(max(0, s^2 - mean_d p_d (1 - p_d) / (m - 1))): s^2 is the sample variance of the K rates p_d, and what is taken
    off is the binomial noise of m `games` a draw, estimated without bias (variance components by moments); each draw
    plays other maps, so that noise is of maps and sampling. ValueError for fewer than two draws, or games a draw.
    """
    if len(rates) < 2 or games < 2:
        raise ValueError(f"{len(rates)} draws of {games} games have no spread: two of each are needed")
    p = np.asarray(rates, float)
    return math.sqrt(max(0.0, float(p.var(ddof=1) - (p * (1 - p)).mean() / (games - 1))))


def episodes_needed(rate: float, difference: float = 0.1, power: float = 0.8, alpha: float = 0.05) -> int:
    """Episodes an arm that show a difference from a pass rate with probability `power` (two-sided, two proportions).

    n = (z_(1-alpha/2) sqrt(2 m (1 - m)) + z_power sqrt(p (1 - p) + q (1 - q)))^2 / (p - q)^2, m = (p + q) / 2, for the
    harder of q = p + difference and q = p - difference (Fleiss, Levin and Paik 2003, without continuity correction).
    For arms on maps of their own; arms on the same maps, compared map by map, usually need fewer.
    """
    others = [q for q in (rate - difference, rate + difference) if 0 <= round(q, 9) <= 1]
    if not 0 <= rate <= 1 or difference <= 0 or not others:
        raise ValueError(f"no pass rate differs from {rate} by {difference}")
    z, z_power = NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)
    q = min(others, key=lambda q: abs(q - 0.5))  # the noisier of the two
    m, noise = (rate + q) / 2, rate * (1 - rate) + max(0.0, q * (1 - q))
    return math.ceil(((z * math.sqrt(2 * m * (1 - m)) + z_power * math.sqrt(noise)) / difference) ** 2)


def summarise(trajectories: Sequence[Trajectory]) -> Report:
    """The report of finished games."""
    passes = sum(t.outcome is Outcome.SUCCESS for t in trajectories)
    turns = [turn for t in trajectories for turn in t.turns]
    low, high = wilson(passes, len(trajectories))
    tokens, cut = (sum(getattr(t, k) for t in turns) / max(1, len(turns)) for k in ("reply_tokens", "truncated"))
    return Report(passes / len(trajectories), low, high, len(trajectories), tokens, cut, list(trajectories))


def evaluate(
    policy: Policy,
    env_id: str,
    seeds: Sequence[int],
    experience: str | Sequence[str] = "",
    *,
    sampling_seeds: Sequence[int] = (0,),
    top_p: float = 0.8,
    top_k: int = 20,
    **options: Any,
) -> Report:
    """Play every map seed with every sampling seed (T 0.7, top_p 0.8, top_k 20 unless said otherwise) and report.

    experience: "" measures the policy alone, a text the in-context arm; of several texts (the K draws) episode i reads
    text i mod K. Other options go to `rollout`.
    """
    texts = [experience] if isinstance(experience, str) else list(experience)
    if not texts or not len(sampling_seeds):
        raise ValueError("nothing to evaluate: the list of experiences or of sampling seeds is empty")
    games: list[Trajectory] = []
    for s in sampling_seeds:
        told = [texts[i % len(texts)] for i in range(len(games), len(games) + len(seeds))]
        games += rollout(policy, env_id, seeds, told, seed=s, top_p=top_p, top_k=top_k, **options)
    return summarise(games)


def probe(
    policy: Policy, path: str | Path, *, adapter: str | None = "student", progress: bool = False
) -> dict[str, float]:
    """Share of exact greedy answers to a file of questions, over all and by kind: what the policy has not forgotten.

    path: JSON Lines of {"kind", "messages", "answer"}; the keys of the result are "all" and the kinds, and "n", the
    number of questions. ValueError where there is none or one lacks a key, FileNotFoundError where there is no file.
    """
    rows = read_jsonl(path)
    if not rows:
        raise ValueError(f"{path}: no questions in it")
    for i, row in enumerate(rows, 1):
        if not {"kind", "messages", "answer"} <= row.keys():
            raise ValueError(f"{path}: question {i} must have kind, messages and answer; it has {sorted(row)}")
    longest = max(len(policy.tokenizer(row["answer"], add_special_tokens=False)["input_ids"]) for row in rows) + 8
    asked = [policy.encode(row["messages"]) for row in rows]
    replies = generate(policy, asked, max_new_tokens=longest, temperature=0, adapter=adapter, progress=progress)
    right = [answer_text(reply.text).strip() == row["answer"].strip() for reply, row in zip(replies, rows, strict=True)]
    kinds = sorted({row["kind"] for row in rows})
    by_kind = {k: [ok for ok, row in zip(right, rows, strict=True) if row["kind"] == k] for k in kinds}
    return {"all": sum(right) / len(right), **{k: sum(v) / len(v) for k, v in by_kind.items()}, "n": len(rows)}

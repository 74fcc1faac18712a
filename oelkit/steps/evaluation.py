"""Evaluate: pass rates with intervals, paired differences, and what a model has not forgotten.

Nothing here trains or chooses a checkpoint. Intervals: Wilson (1927) for one rate, a paired
bootstrap over map seeds and sampling seeds for a difference. The random policy, the best fixed plan
and the ceiling come from `envs.bounds`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..model.policy import Policy
from ..model.sampling import generate
from ..records import Outcome, Trajectory, read_jsonl
from ..stats import paired_bootstrap, wilson_interval
from ..text import answer_text
from .rollouts import rollout


@dataclass(frozen=True)
class EvalReport:
    """Pass rate over n episodes with its 95 % interval; reply tokens and truncation per turn."""

    pass_rate: float
    low: float
    high: float
    n: int
    maps: int
    samples_per_map: int
    reply_tokens: float
    truncated: float
    trajectories: list[Trajectory]

    @property
    def passes(self) -> list[bool]:
        """Success of each trajectory."""
        return [t.outcome is Outcome.SUCCESS for t in self.trajectories]

    @property
    def map_seeds(self) -> list[int | None]:
        """The map of each trajectory."""
        return [t.seed for t in self.trajectories]

    @property
    def passes_by_sample(self) -> np.ndarray:
        """Success as numbers, [samples per map, maps], for pairing."""
        return np.array(self.passes, float)[episodes_by_sample(self.map_seeds)]

    @property
    def passes_string(self) -> str:
        """The same, row by row, as a string of 0 and 1, for JSON."""
        return "".join(str(int(passed)) for passed in self.passes_by_sample.ravel())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.passes_by_sample.astype(dtype or float)

    def summary(self) -> dict[str, float]:
        """The figures alone, as they go into metrics.json."""
        names = [f.name for f in fields(self) if f.name != "trajectories"]
        return {name: getattr(self, name) for name in names}


def report_of(trajectories: Sequence[Trajectory]) -> EvalReport:
    """The report of finished games.

    The interval is Wilson's where each map was played once. Games on one map are alike: where there
    are several, maps and samples are drawn again, both (the pigeonhole bootstrap, see
    `stats.paired_bootstrap`); where all or none succeeded, it is Wilson's for the number of maps.

    Raises:
        ValueError: no games, or maps that were not played equally often.
    """
    games = list(trajectories)
    samples, maps = episodes_by_sample([t.seed for t in games]).shape
    n, turns = len(games), [turn for t in games for turn in t.turns]
    rate = sum(t.outcome is Outcome.SUCCESS for t in games) / n
    tokens = sum(turn.reply_tokens for turn in turns) / max(1, len(turns))
    cut = sum(turn.truncated for turn in turns) / max(1, len(turns))
    low, high = wilson_interval(round(rate * maps), maps)
    report = EvalReport(rate, low, high, n, maps, samples, tokens, cut, games)
    if samples > 1 and 0 < rate < 1:
        _, low, high = paired_bootstrap(np.zeros((samples, maps)), report.passes_by_sample)
        return replace(report, low=low, high=high)
    return report


def episodes_by_sample(map_seeds: Sequence[int | None]) -> np.ndarray:
    """Index of each map's first, second, ... episode: [samples per map, maps].

    Episodes without a seed are on a map of their own.
    """
    episodes: dict[Any, list[int]] = {}
    for i, seed in enumerate(map_seeds):
        episodes.setdefault((None, i) if seed is None else seed, []).append(i)
    counts = {len(rows) for rows in episodes.values()}
    if len(counts) != 1:
        times = f"{min(counts)} to {max(counts)} times" if counts else "not at all"
        raise ValueError(f"each map must be played equally often; maps were played {times}")
    return np.array(list(episodes.values())).T


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
) -> EvalReport:
    """Play every map seed with every sampling seed (T 0.7, top_p 0.8, top_k 20 unless said
    otherwise) and report.

    experience: "" measures the policy alone, a text the in-context arm; of several texts (the K
    draws) episode i reads text i mod K. Other options go to `rollout`."""
    texts = [experience] if isinstance(experience, str) else list(experience)
    if not texts or not len(seeds) or not len(sampling_seeds):
        raise ValueError("nothing to evaluate: no maps, no experience texts or no sampling seeds")
    episodes_by_sample(seeds)  # refuses before anything is played
    games: list[Trajectory] = []
    for s in sampling_seeds:
        told = [texts[i % len(texts)] for i in range(len(games), len(games) + len(seeds))]
        games += rollout(policy, env_id, seeds, told, seed=s, top_p=top_p, top_k=top_k, **options)
    return report_of(games)


def probe(
    policy: Policy, path: str | Path, *, adapter: str | None = "student", progress: bool = False
) -> dict[str, float]:
    """Share of exact greedy answers to a file of questions, over all and by kind: what the policy
    has not forgotten.

    path: JSON Lines of {"kind", "messages", "answer"}; the keys of the result are "all" and the
    kinds, and "n", the number of questions. ValueError where there is none or one lacks a key,
    FileNotFoundError where there is no file."""
    rows = read_jsonl(path)
    if not rows:
        raise ValueError(f"{path}: no questions in it")
    for i, row in enumerate(rows, 1):
        if not {"kind", "messages", "answer"} <= row.keys():
            raise ValueError(
                f"{path}: question {i} must have kind, messages and answer; it has {sorted(row)}"
            )
    longest = (
        max(
            len(policy.tokenizer(row["answer"], add_special_tokens=False)["input_ids"])
            for row in rows
        )
        + 8
    )
    asked = [policy.encode(row["messages"]) for row in rows]
    replies = generate(
        policy, asked, max_new_tokens=longest, temperature=0, adapter=adapter, progress=progress
    )
    right = [
        answer_text(reply.text).strip() == row["answer"].strip()
        for reply, row in zip(replies, rows, strict=True)
    ]
    kinds = sorted({row["kind"] for row in rows})
    by_kind = {
        k: [ok for ok, row in zip(right, rows, strict=True) if row["kind"] == k] for k in kinds
    }
    return {
        "all": sum(right) / len(right),
        **{k: sum(v) / len(v) for k, v in by_kind.items()},
        "n": len(rows),
    }

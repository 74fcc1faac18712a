"""Evaluate: pass rates with intervals, paired differences, and what a model has not forgotten.

Nothing here trains or chooses a checkpoint. Intervals: Wilson (1927) for one rate, a paired
bootstrap over map seeds and sampling seeds for a difference. The random policy, the best fixed plan
and the ceiling come from `envs.bounds`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..model.policy import Policy
from ..model.sampling import generate
from ..records import Outcome, Trajectory, read_jsonl
from ..stats import wilson
from ..text import answer_text
from .rollouts import rollout


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
    def maps(self) -> list[int | None]:
        """The map seed of each episode."""
        return [t.seed for t in self.trajectories]

    @property
    def passes_SM(self) -> np.ndarray:
        """The same as numbers, [sampling seeds, maps], for pairing."""
        return np.array(self.passes, float).reshape(-1, len({t.seed for t in self.trajectories}))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.passes_SM.astype(dtype or float)

    def summary(self) -> dict[str, float]:
        """The figures alone, as they go into metrics.json."""
        return {
            k: getattr(self, k)
            for k in ("pass_rate", "low", "high", "n", "reply_tokens", "truncated")
        }


def summarise(trajectories: Sequence[Trajectory]) -> Report:
    """The report of finished games."""
    passes = sum(t.outcome is Outcome.SUCCESS for t in trajectories)
    turns = [turn for t in trajectories for turn in t.turns]
    low, high = wilson(passes, len(trajectories))
    tokens, cut = (
        sum(getattr(t, k) for t in turns) / max(1, len(turns))
        for k in ("reply_tokens", "truncated")
    )
    return Report(
        passes / len(trajectories), low, high, len(trajectories), tokens, cut, list(trajectories)
    )


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
    """Play every map seed with every sampling seed (T 0.7, top_p 0.8, top_k 20 unless said
    otherwise) and report.

    experience: "" measures the policy alone, a text the in-context arm; of several texts (the K
    draws) episode i reads text i mod K. Other options go to `rollout`."""
    texts = [experience] if isinstance(experience, str) else list(experience)
    if not texts or not len(sampling_seeds):
        raise ValueError(
            "nothing to evaluate: the list of experiences or of sampling seeds is empty"
        )
    games: list[Trajectory] = []
    for s in sampling_seeds:
        told = [texts[i % len(texts)] for i in range(len(games), len(games) + len(seeds))]
        games += rollout(policy, env_id, seeds, told, seed=s, top_p=top_p, top_k=top_k, **options)
    return summarise(games)


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

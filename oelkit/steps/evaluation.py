"""Evaluate: pass rates with intervals, paired differences, and what a model has forgotten.

Nothing here trains or chooses a checkpoint. Intervals come from `stats`; the random policy, the
best fixed plan and the ceiling from `envs.bounds`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import given
from ..config import Sampling, also_takes
from ..model.policy import Policy
from ..model.sampling import Reply, generate
from ..records import Outcome, Trajectory, read_jsonl
from ..stats import paired_bootstrap, wilson_interval
from ..tables import Brief, Shown, frame
from ..text import count_tokens
from .rollouts import rollout


@dataclass(frozen=True, repr=False)
class EvalReport(Shown):
    """Pass rate over n episodes with its 95% interval; reply tokens and truncation per turn."""

    pass_rate: float
    low: float
    high: float
    n: int
    maps: int
    samples_per_map: int
    reply_tokens: float
    truncated: float
    trajectories: list[Trajectory]

    plotted = "outcome", "games"

    def brief(self) -> Brief:
        """Return the pass rate with its interval, and a row for each outcome."""
        rate = f"{self.pass_rate:.1%} [{self.low:.1%}, {self.high:.1%}]"
        line = f"EvalReport: {rate} passed, {self.n} games on {self.maps} maps, "
        line += f"{self.reply_tokens:.1f} tokens per reply, {self.truncated:.1%} cut off"
        counts = Counter(str(t.outcome) for t in self.trajectories)
        rows = [(name, n, f"{n / self.n:.1%}") for name, n in counts.most_common()]
        return line, ("outcome", "games", "share"), rows

    def to_frame(self) -> Any:
        """Return a pandas DataFrame with one row per game; ImportError without pandas."""
        rows = [
            (t.id, t.seed, str(t.outcome), len(t.turns), sum(turn.reply_tokens for turn in t.turns))
            for t in self.trajectories
        ]
        return frame(("id", "map", "outcome", "turns", "reply_tokens"), rows)

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
        """`passes_by_sample` row by row, as a string of 0 and 1 for JSON."""
        return "".join(str(int(passed)) for passed in self.passes_by_sample.ravel())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.passes_by_sample.astype(dtype or float)

    def summary(self) -> dict[str, float]:
        """Return the figures without the games, as they go into metrics.json."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "trajectories"}


def report_of(trajectories: Sequence[Trajectory]) -> EvalReport:
    """Return the report of finished games.

    If each map was played once, the interval is Wilson's. Games on one map are alike, so with
    several games per map both maps and samples are resampled (the pigeonhole bootstrap, see
    `stats.paired_bootstrap`). If all or none succeeded, or if there is only one map, it is Wilson's
    for the number of maps.

    Raises:
        ValueError: there are no games, or maps were not played equally often.
    """
    games = given.records("trajectories", trajectories, Trajectory)
    samples, maps = episodes_by_sample([t.seed for t in games]).shape
    n, turns = len(games), [turn for t in games for turn in t.turns]
    rate = sum(t.outcome is Outcome.SUCCESS for t in games) / n
    tokens = sum(turn.reply_tokens for turn in turns) / max(1, len(turns))
    cut = sum(turn.truncated for turn in turns) / max(1, len(turns))
    low, high = wilson_interval(round(rate * maps), maps)
    report = EvalReport(rate, low, high, n, maps, samples, tokens, cut, games)
    if samples > 1 and maps > 1 and 0 < rate < 1:
        _, low, high = paired_bootstrap(np.zeros((samples, maps)), report.passes_by_sample)
        return replace(report, low=low, high=high)
    return report


def episodes_by_sample(map_seeds: Sequence[int | None]) -> np.ndarray:
    """Return the index of each map's first, second, ... episode: [samples per map, maps].

    An episode without a seed counts as a map of its own.
    """
    episodes: dict[Any, list[int]] = {}
    for i, seed in enumerate(map_seeds):
        episodes.setdefault((None, i) if seed is None else seed, []).append(i)
    counts = {len(rows) for rows in episodes.values()}
    if len(counts) != 1:
        times = f"{min(counts)} to {max(counts)} times" if counts else "not at all"
        raise ValueError(f"each map must be played equally often; maps were played {times}")
    return np.array(list(episodes.values())).T


@also_takes(rollout, but="seed")
def evaluate(
    policy: Policy,
    env_id: str,
    seeds: Sequence[int],
    experience: str | Sequence[str] = "",
    sampling: Sampling | None = None,
    *,
    sampling_seeds: Sequence[int] = (0,),
    **options: Any,
) -> EvalReport:
    """Play every map seed with every sampling seed and report.

    Args:
        policy: the model; `adapter=None` measures the base model.
        env_id: a registered world; see `envs.held_out`.
        seeds: the maps.
        experience: "" measures the policy alone, a text the in-context arm. With several texts (the
            K draws), episode i reads text i mod K.
        sampling: how replies are sampled (None: T 0.7, top_p 0.8, top_k 20).
        sampling_seeds: one per sample of a map.
        **options: options of `rollout` except its seed, and fields of the sampling
            (`oelkit.config.Sampling`: temperature, top_p, top_k, max_new_tokens, batch_tokens).

    Raises:
        ValueError: nothing to play, maps given unequally often, a sampling seed given twice, or an
            error from `rollout`.
        TypeError: as in `rollout`.
    """
    given.a_policy(policy)
    texts, seeds = given.texts("experience", experience), given.seeds("seeds", seeds)
    sampling_seeds = given.seeds("sampling_seeds", sampling_seeds)
    if "seed" in options:
        raise TypeError("seed: use sampling_seeds=(0,), with one seed per sample of a map")
    if not texts or not seeds or not sampling_seeds:
        raise ValueError("nothing to evaluate: no maps, no experience texts or no sampling seeds")
    if len({*sampling_seeds}) < len(sampling_seeds):
        raise ValueError(
            f"sampling_seeds={sampling_seeds}: a seed twice gives the same games twice"
        )
    episodes_by_sample(seeds)  # refuses before anything is played
    sampling = sampling or Sampling(top_p=0.8, top_k=20)
    games: list[Trajectory] = []
    for s in sampling_seeds:
        read = [texts[i % len(texts)] for i in range(len(games), len(games) + len(seeds))]
        games += rollout(policy, env_id, seeds, read, sampling, seed=s, **options)
    return report_of(games)


def probe(
    policy: Policy,
    path: str | Path,
    *,
    adapter: str | None = "student",
    max_new_tokens: int = 1024,
    progress: bool = False,
) -> dict[str, float]:
    """Return the share of exact greedy answers to a file of questions, which shows forgetting.

    A reply can have 8 tokens more than the longest answer. A reply that begins with a thought and
    is cut off is sampled again with room for the thought.

    Args:
        policy: answers with `adapter` ("student", "teacher", or None for the base model).
        path: JSON Lines of {"kind", "messages", "answer"}.
        adapter: see `policy`.
        max_new_tokens: most tokens of a reply with a thought.
        progress: show a progress bar.

    Returns:
        The share over all questions ("all") and by kind, and the number of questions ("n").

    Raises:
        ValueError: no questions, a question without these keys, or one that exceeds the context.
        FileNotFoundError: there is no such file.
    """
    given.a_policy(policy)
    rows = _questions(given.path("path", path))
    short = 8 + max(count_tokens(row["answer"], policy.tokenizer) for row in rows)
    ids = list[list[int]]()
    for i, row in enumerate(rows, 1):
        try:
            ids.append(policy.encode(row["messages"]))
        except ValueError as error:
            raise ValueError(f"{path}: question {i}: {error}") from error
    if (most := max(map(len, ids))) + short > policy.context_length:
        raise ValueError(
            f"{path}: question {[*map(len, ids)].index(most) + 1} has {most} tokens and the "
            f"longest answer {short - 8}, which is more than the context of "
            f"{policy.context_length}; leave it out"
        )
    options: dict[str, Any] = {"temperature": 0, "adapter": adapter, "progress": progress}
    texts, thoughts = [], []
    for i, reply in enumerate(answered(generate(policy, ids, max_new_tokens=short, **options))):
        texts.append(policy.answer_text(reply.text, ids[i]))
        if reply.truncated and texts[-1] != reply.text:  # a thought took tokens of the answer
            thoughts.append(i)
    if thoughts:
        prompts = [ids[i] for i in thoughts]
        room = min(max(max_new_tokens, short), policy.context_length - max(map(len, prompts)))
        replies = answered(generate(policy, prompts, max_new_tokens=room, **options))
        for i, reply in zip(thoughts, replies, strict=True):
            texts[i] = policy.answer_text(reply.text, ids[i])
    right: dict[str, list[bool]] = {"all": []}
    for row, text in zip(rows, texts, strict=True):
        for kind in ("all", row["kind"]):
            right.setdefault(kind, []).append(text.strip() == row["answer"].strip())
    shares = {kind: sum(right[kind]) / len(right[kind]) for kind in ["all", *sorted(right)]}
    return {**shares, "n": len(rows)}


def answered(replies: list[Reply]) -> list[Reply]:
    """Return the replies; RuntimeError if a server gave none to a prompt, for measures of all."""
    if failed := [reply.error for reply in replies if reply.error]:
        said = f"{len(failed)} of {len(replies)} requests failed, so nothing was measured"
        raise RuntimeError(f"{said}; first {type(failed[0]).__name__}: {failed[0]}") from failed[0]
    return replies


def _questions(path: Path) -> list[dict[str, Any]]:
    """Read the questions of a probe; ValueError if there are none, or one is invalid."""
    rows = read_jsonl(path)
    if not rows:
        raise ValueError(f"{path}: no questions in it")
    for i, row in enumerate(rows, 1):
        if not {"kind", "messages", "answer"} <= row.keys():
            raise ValueError(
                f"{path}: question {i} must have kind, messages and answer; it has {sorted(row)}"
            )
        odd = [k for k in ("kind", "answer") if not isinstance(row[k], str)]
        if odd or row["kind"] in ("all", "n"):
            said = f"{' and '.join(odd)} must be text" if odd else "all and n cannot be kinds"
            raise ValueError(f"{path}: question {i}: {said}")
    return rows

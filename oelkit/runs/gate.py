"""The gate: did a round lose against the one it started from?

Judged on validation maps, which are neither training nor held-out maps, by the paired bootstrap
over the same maps, and by the OOD probe. Departure from the paper, which goes on whatever a round
has lost."""

from __future__ import annotations

from typing import Any

from ..stats import paired_bootstrap, wilson_interval
from .table import weights

VALIDATION = 950_000_000  # first map seed; those of training and of evaluation are lower
VALIDATION_MAPS = 64


def judge(k: int, s: int, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Whether round k lost against round s (0: the untrained model).

    Args:
        k: the round.
        s: the round that it started from.
        before: "validation" (a row with "passes", "0110..." by map) and "ood" (the shares of
            `probe`, or None) of round s.
        after: the same of round k, on the same maps.

    Returns:
        difference, low and high of the validation pass rate (95%), and lost: the sentences that
        say what was lost, "" where nothing was.
    """
    passes = [[int(c) for c in row["validation"]["passes"]] for row in (before, after)]
    difference, low, high = paired_bootstrap(*passes)
    start, said = weights(s), []
    if high < 0:
        was, now = (sum(row) / len(row) for row in passes)
        said.append(
            f"round {k} passes {now:.1%} of {len(passes[0])} validation maps, {start} before it "
            f"{was:.1%} (difference {difference:+.1%} [{low:+.1%}, {high:+.1%}])"
        )
    if before["ood"] and after["ood"]:
        n, was, now = before["ood"]["n"], before["ood"]["all"], after["ood"]["all"]
        least = wilson_interval(round(was * n), n)[0]
        if now < least:
            said.append(
                f"round {k} answers {now:.1%} of {n} OOD questions, {start} before it {was:.1%} "
                f"(its 95% interval begins at {least:.1%})"
            )
    return {
        "difference": difference,
        "low": low,
        "high": high,
        "maps": len(passes[0]),
        "lost": "; ".join(said),
    }

"""The gate: did a round lose against the one it started from?

It compares both with a paired bootstrap on the same validation maps, which are neither training nor
held-out maps, and with the OOD probe. Departure from the paper, which continues whatever a round
has lost."""

from __future__ import annotations

from typing import Any

from ..stats import paired_bootstrap, wilson_interval
from .table import weights

VALIDATION = 950_000_000  # first map seed; neither training nor evaluation has one of these
VALIDATION_MAPS = 64


def judge(k: int, s: int, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Judge whether round k lost against round s (0: the untrained model).

    Args:
        k: The round.
        s: The round that it started from.
        before: "validation" (a row with "passes", "0110..." by map) and "ood" (the shares from
            `probe`, or None) of round s.
        after: The same for round k, on the same maps.

    Returns:
        The difference in validation pass rate with its 95% interval (low, high), the number of
        maps, and "lost": sentences that say what was lost, or "" if nothing was.
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
                f"(whose 95% interval starts at {least:.1%})"
            )
    return {
        "difference": difference,
        "low": low,
        "high": high,
        "maps": len(passes[0]),
        "lost": "; ".join(said),
    }

"""Comparison of runs: a table, the settings that differ, and a figure."""

from __future__ import annotations

import textwrap

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..runs.saved import by_round
from ..tables import plain
from . import plots
from .findings import VERDICT, compare
from .summary import rate_text

# one per run, in order; Okabe and Ito's palette
RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def table(runs: dict[str, dict], settings: dict[str, dict]) -> str:
    """Return a line per run: pass rates by round, OOD, and the difference from the first run.

    Lines with the settings that differ follow.

    Args:
        runs: metrics.json of each run by name; the others are compared with the first.
        settings: The settings in run.json, by the same names.
    """
    first = next(iter(runs.values()))
    width = max(map(len, runs))
    lines = []
    for name, metrics in runs.items():
        rounds = metrics["rounds"]
        steps = [f"{r['pass_rate']['consolidated']['pass_rate']:.1%}" for r in rounds[:-1]]
        last, ood = rounds[-1]["pass_rate"]["consolidated"], rounds[-1]["ood"]["consolidated"]
        line = f"{name:<{width}}  rounds {' → '.join([*steps, rate_text(last)])}"
        line += f", OOD {ood['all']:.1%}" if ood else ""
        if metrics is not first:
            if metrics["eval_env"] != first["eval_env"]:
                line += f"; played {metrics['eval_env']}, so not compared"
            else:
                sign, why = compare(last, first["rounds"][-1]["pass_rate"]["consolidated"])
                line += f"; {VERDICT[sign]} {next(iter(runs))}: {why}"
        lines.append(line)
    for key in dict.fromkeys(key for one in settings.values() for key in one):
        values = {name: one.get(key) for name, one in settings.items()}
        if len(set(map(repr, values.values()))) > 1:
            lines.append(f"{key}: {', '.join(f'{n} {v}' for n, v in values.items())}")
    return "\n".join(lines)


@plots.styled
def figure(runs: dict[str, dict]) -> Figure:
    """Plot each run's consolidated pass rate by round with 95% intervals; round 0 is the base."""
    drawn, axis = plots.new_figure()
    for i, (name, metrics) in enumerate(runs.items()):
        ys = [plots.pass_interval(row) for _, row in by_round(metrics["rounds"])]
        xs = [k + 0.05 * (i - (len(runs) - 1) / 2) for k in range(len(ys))]
        look = {"capsize": 3, "markersize": 5, "color": RUN_COLOURS[i % len(RUN_COLOURS)]}
        rates = [rate for rate, *_ in ys]
        axis.errorbar(xs, rates, plots.whiskers(ys), fmt="o-", lw=1.2, label=plain(name), **look)
    most = max(len(metrics["rounds"]) for metrics in runs.values())
    axis.set(xlabel="round", xticks=range(most + 1), ylim=(-0.02, 1.04))
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_title(_finding(runs))
    return plots.legend_below(drawn, axis)


def _finding(runs: dict[str, dict]) -> str:
    """Which run ends highest, as far as their last rounds can be told apart."""
    if len(worlds := {metrics["eval_env"] for metrics in runs.values()}) > 1:
        return f"{len(worlds)} worlds, so the runs do not compare"
    ends = {plain(n): m["rounds"][-1]["pass_rate"]["consolidated"] for n, m in runs.items()}
    best, *others = sorted(ends, key=lambda name: -ends[name]["pass_rate"])
    if level := [name for name in others if compare(ends[best], ends[name])[0] < 1]:
        names = f"{best} and {', '.join(level)}"
        return textwrap.fill(f"{names} are not distinguishable after their last rounds", 60)
    return f"{best} ends highest: {rate_text(ends[best])} passed"

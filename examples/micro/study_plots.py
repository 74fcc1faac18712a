"""Shared by the studies: rates over several seeds, figures and command line.

A row is one measurement, a JSON line: {"arm", "passed": a report's summary, "ood": a probe's result
or None, "seed", …}. This file is not part of oelkit; it only uses the style of its figures."""

from __future__ import annotations

import argparse
import statistics
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from oelkit import Settings
from oelkit.records import read_jsonl
from oelkit.stats import wilson_interval
from oelkit.views import plots

# colours for arms without their own
OTHERS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")


# -- rates


def grouped(rows: Sequence[dict], *keys: str) -> dict[tuple, list[dict]]:
    """Group rows by the values of keys (None where a row lacks a key)."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    return groups


def rates(rows: Sequence[dict], key: str) -> list[tuple[float, int]]:
    """Return (rate, n) of each row with a report's summary or a probe's result under `key`."""
    found = [row[key] for row in rows if row.get(key)]
    return [(one["pass_rate" if "pass_rate" in one else "all"], one["n"]) for one in found]


def pooled(parts: Sequence[tuple[float, int]]) -> tuple[float, float, float]:
    """Pool several (rate, n) on separate maps. Return the rate with its Wilson interval."""
    n, right = sum(n for _, n in parts), round(sum(rate * n for rate, n in parts))
    return right / n, *wilson_interval(right, n)


def spread(found: Sequence[float]) -> str:
    """Format rates as mean (lowest-highest), for a table."""
    return f"{statistics.mean(found):.0%} ({min(found):.0%}-{max(found):.0%})" if found else "-"


# -- figures


@plots.styled
def bars(rows: Sequence[dict], bounds: dict, title: str, probe: str = "exact answers") -> Figure:
    """Draw arms in context and consolidated, with OOD. Bars: pooled seeds; dots: single seeds.

    Args:
        rows: With "how": "base", "in_context" or "consolidated". The OOD panel is left out if no
            row has a probe.
        bounds: Floors and ceiling, from `envs.bounds`.
        title: The finding.
        probe: What the probe counts.
    """
    names = list(dict.fromkeys(row["arm"] for row in rows))
    keys = [key for key in ("passed", "ood") if any(row.get(key) for row in rows)]
    look = {"sharey": True, "squeeze": False, "width_ratios": (2, 1)[: len(keys)]}
    figure, axes = plots.new_figure(len(keys), (8, 1.3 + 0.5 * len(names)), **look)
    for axis, key in zip(axes[0], keys, strict=True):
        sizes = set()
        for (arm, how), same in grouped(rows, "arm", "how").items():
            y = names.index(arm) + {"base": 0, "in_context": -0.2, "consolidated": 0.2}[how]
            if parts := rates(same, key):
                each = [rate for rate, _ in parts]
                colour = plots.COLOURS[how]
                plots.rate_bar(axis, y, pooled(parts), height=0.38, color=colour)
                dots = {"mfc": "white", "mec": plots.INK, "mew": 0.7, "ms": 3.2}
                axis.plot(each, [y] * len(each), "o", **dots)
                sizes.add(sum(n for _, n in parts))
        n = "n = " + " or ".join(f"{size:,}" for size in sorted(sizes))
        axis.set_title("Pass rate" if key == "passed" else f"OOD: {probe}")
        axis.set_xlabel(n, fontsize=9)
        plots.percent_axis(axis)
    left = axes[0][0]
    about = f"{left.get_xlabel()} per arm, 95 % intervals"
    left.set_xlabel(about + "; no OOD probe" * (len(keys) == 1), fontsize=9)
    _head(figure, title)
    left.set_yticks(range(len(names)), [textwrap.fill(name, 26) for name in names])
    left.invert_yaxis()
    for how in ("base", "in_context", "consolidated"):
        left.barh([0], [0], color=plots.COLOURS[how], label=plots.NAMES[how])
    plots.floors(left, bounds, vertical=True)
    return plots.legend_below(figure, left)


@plots.styled
def curves(
    rows: Sequence[dict], x: str, panels: dict[str, str], title: str, bounds: dict | None = None
) -> Figure:
    """Draw a panel per quantity with a line per arm, by `x`.

    Lines are means over seeds or draws, bands their range, and dots single values. The band of a
    single row is its Wilson interval.

    Args:
        panels: Title of each panel, by the key that it shows.
        bounds: Floors and ceiling, for panels other than "ood".
    """
    size = (1.5 + 2.9 * len(panels), 3.4)
    figure, axes = plots.new_figure(len(panels), size, squeeze=False)
    arms, others = grouped(rows, "arm"), iter(OTHERS)
    colours = {arm: plots.COLOURS.get(arm) or next(others, "#999999") for (arm,) in arms}
    for axis, (key, name) in zip(axes[0], panels.items(), strict=True):
        for (arm,), mine in arms.items():
            points = grouped([row for row in mine if row.get(key)], x)
            xs, bands, means, dots = [at for (at,) in points], [], [], []
            for at, same in zip(xs, points.values(), strict=True):
                parts = rates(same, key)
                each = [rate for rate, _ in parts]
                means.append(sum(each) / len(each))
                bands.append(pooled(parts)[1:] if len(parts) == 1 else (min(each), max(each)))
                dots += [(at, rate) for rate in each]
            label, colour = plots.NAMES.get(arm, arm), colours[arm]
            axis.plot(xs, means, "o-", ms=3, lw=1.4, color=colour, label=label)
            axis.fill_between(xs, *zip(*bands, strict=True), color=colour, alpha=0.12, lw=0)
            axis.plot(*zip(*dots, strict=True), ".", ms=3, color=colour, alpha=0.6)
        axis.set(xlabel=x, ylim=(-0.02, 1.04), title=name)
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if bounds and key != "ood":
            plots.floors(axis, bounds)
    _head(figure, title)
    return plots.legend_below(figure, axes[0][0])


def _head(figure: Figure, title: str) -> None:
    """Set the title of a figure, wrapped to its width."""
    text = textwrap.fill(title, round(11 * figure.get_figwidth()))
    figure.suptitle(text, x=0.01, ha="left", fontsize=10.5, weight="bold")


@plots.styled
def differences(rows: Sequence[dict], title: str, about: str) -> Figure:
    """Draw ranked bars of paired differences in pass rate.

    Args:
        rows: {"arm", "difference": (mean, low, high)}.
        title: The finding.
        about: What the differences refer to; written below the axis.
    """
    rows = sorted(rows, key=lambda row: row["difference"][0])
    found = [row["difference"] for row in rows]
    figure, axis = plots.new_figure(size=(7, 0.9 + 0.3 * len(rows)))
    error = {
        "xerr": plots.whiskers(found),
        "error_kw": {"capsize": 3, "lw": 1.2, "ecolor": plots.INK},
    }
    colour = plots.COLOURS["in_context"]
    axis.barh(range(len(rows)), [mean for mean, *_ in found], height=0.62, color=colour, **error)
    axis.axvline(0, color=plots.INK, lw=1)
    names = [textwrap.shorten(row["arm"], 48, placeholder=" …") for row in rows]
    axis.set_yticks(range(len(rows)), names)
    axis.invert_yaxis()
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:+.0f}"))
    axis.set_xlabel(f"points of pass rate, {about}", fontsize=9)
    axis.grid(axis="y", visible=False)
    _head(figure, title)
    return figure


# -- the command line


# the studies of lakes used the model of the first phase, and hold only for it
LAKES = Settings(model=str(Path(__file__).parents[2] / "data/micro_lakes"), lr=1e-3, warmup=0)


def options(doc: str | None, out: str, seeds: str) -> argparse.ArgumentParser:
    """Return a parser with the flags of all studies: file, seeds, table and figures."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=raw)
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--seeds", type=_range, default=seeds, help="first:end")
    parser.add_argument("--table", action="store_true", help="only print recorded results")
    parser.add_argument("--draw", type=Path, metavar="FOLDER", help="only draw recorded results")
    return parser


def _range(text: str) -> range:
    return range(*map(int, text.split(":")))


def recorded(out: Path) -> list[dict[str, Any]]:
    """Read the recorded lines."""
    return read_jsonl(out) if out.exists() else []


def shown(
    args: argparse.Namespace,
    table: Callable[[list[dict]], str],
    figures: Callable[[list[dict]], dict[str, Figure]],
    prefix: str = "",
) -> bool:
    """Print the table or draw the figures, if asked for. Return whether one was."""
    rows = recorded(args.out)
    if args.table:
        print(table(rows))
    elif args.draw:
        for name, figure in figures(rows).items():
            figure.savefig(args.draw / f"{prefix}{name}.png", dpi=120)
    return bool(args.table or args.draw)

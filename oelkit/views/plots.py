"""The figures of a run as matplotlib Figures, closed in pyplot so that none stays open.

`metrics` is the result of `Run.run_all` (metrics.json of the run); `rows` are the lines of its
metrics.jsonl. Pass rates have 95% intervals and say what they were measured on. Lines mark the
floors and ceiling of the world."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, PercentFormatter

from ..envs import parse_board
from ..envs.bounds import NAMES as BOUNDS
from ..envs.picture import draw_board
from ..records import Trajectory
from ..stats import wilson_interval
from ..tables import plain
from ..text import outcome_text, well_formed
from .summary import headline

# Okabe and Ito's palette, safe for colour-blind readers; each colour has one meaning everywhere
_ARMS = {
    "base": ("#a6a6a6", "base, no experience"),
    "in_context": ("#e69f00", "experience in context"),
    "consolidated": ("#1a80c0", "consolidated"),
    "reverse_kl": ("#1a80c0", "on-policy (reverse KL)"),
    "forward_kl": ("#cc79a7", "off-policy (forward KL)"),
    "sft": ("#d55e00", "SFT on the teacher's replies"),
    "raw": ("#009e73", "raw games distilled"),
}
COLOURS, NAMES = ({arm: look[i] for arm, look in _ARMS.items()} for i in (0, 1))
ROUND_COLOURS = ("#1a80c0", "#2fa39a", "#79b04c", "#c9a227")
INK = "#767676"
"""Colour of lines and text: readable on white and black, as figures are transparent."""
TICKS = (0, 0.25, 0.5, 0.75, 1)
STYLE = Path(__file__).with_name("figures.mplstyle")  # a file for `plt.style.use`
styled: Any = plt.rc_context(fname=STYLE)  # decorator: the style of all figures


def new_figure(columns: int = 1, size: tuple[float, float] = (7, 3.5), **options: Any) -> tuple:
    """Return a figure and its axes from plt.subplots, closed in pyplot."""
    figure, axes = plt.subplots(1, columns, figsize=size, layout="constrained", **options)
    plt.close(figure)
    return figure, axes


def whiskers(rows: Sequence[tuple[float, float, float]]) -> list[list[float]]:
    """Return error bar lengths below and above each (value, low, high)."""
    return [[max(0.0, y - low) for y, low, _ in rows], [max(0.0, high - y) for y, _, high in rows]]


def legend_below(figure: Figure, axis: Any) -> Figure:
    """Put the legend of an axis below the figure; return the figure."""
    drawn = axis.get_legend_handles_labels()
    n = len(drawn[1])  # short names share one row, and no row has a single name
    ncols = n if 0 < len("".join(drawn[1])) < 50 else 2 if n == 4 else 3
    figure.legend(*drawn, loc="outside lower center", ncols=ncols)
    return figure


def rate_bar(axis: Any, y: float, rate: tuple[float, float, float], **look: Any) -> None:
    """Draw a horizontal bar of (rate, low, high), labelled right of 100%, clear of all lines."""
    error = {"capsize": 3, "lw": 1.2, "ecolor": INK}
    look = {"edgecolor": "white", "lw": 0, **look}  # for a hatch
    axis.barh(y, rate[0], xerr=whiskers([rate]), error_kw=error, **look)
    axis.text(1.025, y, f"{rate[0]:.0%}", fontsize=9, va="center")


def percent_axis(axis: Any) -> None:
    """Make the horizontal axis of bars run from 0 to 100%."""
    axis.set(xlim=(0, 1.16), xticks=TICKS)
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.grid(axis="y", visible=False)


def floors(axis: Any, bounds: dict, vertical: bool = False) -> None:
    """Draw the floors and ceiling of a world, or a perfect player's pass rate by levels known, as
    lines. Labels are beside the axis for horizontal lines and in the legend for vertical ones."""
    at = -1.0
    for style, (y, name) in zip((":", "--", "-."), _lines(bounds), strict=False):
        name = f"{name} {y:.1%}"
        if vertical:
            axis.axvline(y, ls=style, lw=1, color=INK, label=name, zorder=3)
            continue
        axis.axhline(y, ls=style, lw=1, color=INK, zorder=1)
        at = max(y, at + 0.08)  # stack the labels of lines that nearly meet
        axis.annotate(name, (1.01, at), xycoords=("axes fraction", "data"), va="center", fontsize=9)


def _lines(bounds: dict) -> list[tuple[float, str]]:
    """Positions and names of those lines."""
    if levels := bounds.get("known_levels"):  # low ones would lie on the axis
        of = f"of {len(levels) - 1} levels known"
        return [(rate, f"{k} {of}") for k, rate in enumerate(levels) if rate > 0.02]
    return sorted((bounds[k], name) for k, name in BOUNDS.items() if bounds.get(k) is not None)


def pass_interval(row: dict) -> tuple[float, float, float]:
    """Return (rate, low, high) from a report's summary."""
    return row["pass_rate"], row["low"], row["high"]


def probe_interval(ood: dict) -> tuple[float, float, float]:
    """Return (share, low, high) from a probe's result."""
    return ood["all"], *wilson_interval(round(ood["all"] * ood["n"]), ood["n"])


def _by_round(axis: Any, metrics: dict, key: str) -> None:
    rounds = metrics["rounds"]
    numbers, lines = [r["round"] for r in rounds], _lines(metrics["bounds"])
    for arm, shift in (("base", -0.2), ("in_context", 0.0), ("consolidated", 0.2)):
        rows, colour = [r["pass_rate"][arm] for r in rounds], COLOURS[arm]
        xs, ys = [k + shift for k in numbers], [row[key] for row in rows]
        bars = whiskers([pass_interval(row) for row in rows]) if key == "pass_rate" else None
        look = {"color": colour, "capsize": 3, "markersize": 5, "label": NAMES[arm]}
        axis.errorbar(xs, ys, bars, fmt="o", **look)
        axis.plot(xs, ys, color=colour, lw=1, alpha=0.5)
        if len(numbers) < 4:  # with more rounds the labels would overlap
            for x, y, row in zip(xs, ys, rows, strict=True):
                text = f"{y:.1f}" if key == "reply_tokens" else f"{y:.0%}"
                below, end = arm == "consolidated", y  # clear of each other,
                if bars:  # and of floors and ceiling
                    below = all(not 0.02 < row["low"] - line < 0.1 for line, _ in lines)
                    end = row["low" if below else "high"]
                look = {"ha": "center", "va": "top" if below else "bottom", "color": colour}
                look |= {"textcoords": "offset points", "fontsize": 9, "weight": "bold"}
                axis.annotate(text, (x, end), xytext=(0, -4 if below else 4), **look)
    axis.set(xlabel="round", xticks=numbers, xlim=(numbers[0] - 0.5, numbers[-1] + 0.5))
    axis.grid(axis="x", visible=False)
    if key != "reply_tokens":
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


@styled
def pass_rates(metrics: dict) -> Figure:
    """Plot the pass rate by round: base, in context (pale dots: each draw) and consolidated."""
    figure, axis = new_figure()
    _by_round(axis, metrics, "pass_rate")
    for r in metrics["rounds"]:
        draws, colour = r["pass_rate"]["in_context"].get("by_draw", []), COLOURS["in_context"]
        name = "each draw in context" if draws and r is metrics["rounds"][0] else None
        axis.plot([r["round"] - 0.05] * len(draws), draws, ".", color=colour, alpha=0.5, label=name)
    floors(axis, metrics["bounds"])
    axis.set(ylim=(-0.12, 1.04), yticks=TICKS, ylabel="pass rate, 95% intervals")
    axis.set_title(textwrap.fill(headline(metrics), 68))
    return legend_below(figure, axis)


@styled
def arms(metrics: dict) -> Figure:
    """Plot round 1 beside other ways to learn from the same games, with OOD."""
    first = metrics["rounds"][0]
    passed, probes = first["pass_rate"], first["ood"]
    rows = [
        (NAMES["base"], "base", passed["base"], probes["base"]),
        (NAMES["in_context"], "in_context", passed["in_context"], None),
        (NAMES["reverse_kl"], "consolidated", passed["consolidated"], probes["consolidated"]),
    ]
    for arm, row in (metrics.get("arms") or {}).items():
        if "in_context" in row:
            rows.insert(2, ("raw games in context", arm, row["in_context"], None))
        rows.append((NAMES.get(arm, arm), arm, row["consolidated"], row.get("ood")))
    figure, (left, right) = new_figure(2, size=(7.6, 1.5 + 0.37 * len(rows)), sharey=True)
    for y, (name, arm, row, ood) in enumerate(rows):
        look: dict[str, Any] = {"color": COLOURS.get(arm, "#999999")}
        look["hatch"] = "///" * ("context" in name)
        rate_bar(left, y, pass_interval(row), height=0.62, **look)
        if ood:
            rate_bar(right, y, probe_interval(ood), height=0.62, **look)
    for axis in (left, right):
        percent_axis(axis)
    left.set_yticks(range(len(rows)), [plain(row[0]) for row in rows])
    left.invert_yaxis()
    floors(left, metrics["bounds"], vertical=True)
    left.set_title(f"Pass rate after round 1\n(n = {passed['base']['n']:,})")
    base = probes["base"]
    right.set_title(f"OOD: exact answers\n(n = {base['n']})" if base else "no OOD probe")
    left.set_xlabel("whiskers: 95% intervals", fontsize=9)
    return legend_below(figure, left)


@styled
def training(rows: Sequence[dict]) -> Figure:
    """Plot loss and the student's entropy by training step, one line per arm or round."""
    (figure, axes), blues = new_figure(2), iter(ROUND_COLOURS)
    arms = dict.fromkeys((row["arm"], row["round"]) for row in rows)
    for arm, k in sorted(arms, key=lambda arm: arm[1]):  # a round that was redone comes last
        steps = [row for row in rows if (row["arm"], row["round"]) == (arm, k)]
        name, colour = plain(str(NAMES.get(arm, arm))), COLOURS.get(arm) or next(blues, "#999999")
        look = {"color": colour, "label": name, "lw": 1.4, "marker": "." * (len(steps) == 1)}
        for axis, key in zip(axes, ("loss", "entropy"), strict=True):
            axis.plot([row["step"] for row in steps], [row[key] for row in steps], **look)
    n = f" (n = {rows[0]['replies']} replies each)" if rows and "replies" in rows[0] else ""
    for axis, key, name in zip(axes, ("loss", "entropy"), ("Loss", "Entropy"), strict=True):
        one = len(arms) == 1
        ends = f": {rows[0][key]:.2g} → {rows[-1][key]:.2g} in {len(rows)} steps" if one else ""
        axis.set(xlabel=f"step{n}", ylabel="nats per token", title=name + ends)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if rows and all(row["loss"] > 0 for row in rows):
        axes[0].set_yscale("log")
        axes[0].yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}")
        axes[0].yaxis.set_minor_formatter("")
    axes[1].set_ylim(bottom=0)
    return legend_below(figure, axes[0])


@styled
def reply_tokens(metrics: dict) -> Figure:
    """Plot tokens per reply by round, and the share of replies cut off at the limit, if any."""
    cut = any(row["truncated"] for r in metrics["rounds"] for row in r["pass_rate"].values())
    figure, axes = new_figure(1 + cut, squeeze=False)
    left, n = axes[0][0], metrics["rounds"][0]["pass_rate"]["base"]["n"]
    _by_round(left, metrics, "reply_tokens")
    left.set(ylim=(0, left.get_ylim()[1] * 1.08))
    ends = [metrics["rounds"][i]["pass_rate"][a] for i, a in ((0, "base"), (-1, "consolidated"))]
    before, after = (f"{row['reply_tokens']:.0f}" for row in ends)
    left.set_title(f"Tokens per reply: {before} before, {after} after")
    left.set_xlabel(f"round ({n:,} games per arm{'' if cut else '; no reply was cut off'})")
    if cut:
        _by_round(right := axes[0][1], metrics, "truncated")
        right.set(ylim=(-0.1 * (top := max(0.05, right.get_ylim()[1])), top))
        before, after = (f"{row['truncated']:.0%}" for row in ends)
        right.set_title(f"Cut off at the limit: {before} before, {after} after")
    return legend_below(figure, left)


@styled
def ood(metrics: dict) -> Figure:
    """Plot exact answers to OOD questions by kind: base, then each round."""
    figure, axis = new_figure()
    rounds = metrics["rounds"]
    base = rounds[0]["ood"]["base"]
    if not base:
        axis.set_axis_off()
        axis.set_title("This model has no OOD probe (no probe.jsonl in its folder)")
        return figure
    rows = [("base", base)]
    rows += [(f"consolidated, round {r['round']}", r["ood"]["consolidated"]) for r in rounds]
    kinds, width = ["all", *(k for k in base if k not in ("all", "n"))], 0.8 / len(rows)
    for i, (name, row) in enumerate(rows):
        xs = [x - 0.4 + (i + 0.5) * width for x in range(len(kinds))]
        colour = ROUND_COLOURS[min(i, len(ROUND_COLOURS)) - 1] if i else COLOURS["base"]
        axis.bar(xs, [row[k] for k in kinds], width * 0.92, color=colour, label=name)
        look = {"fmt": "none", "color": INK, "capsize": 3, "lw": 1}
        axis.errorbar(xs[0], row["all"], whiskers([probe_interval(row)]), **look)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set(ylim=(0, 1.04), ylabel="exact answers")
    names = [textwrap.fill(plain(kind.replace("_", " ")), 12) for kind in kinds]
    axis.set_xticks(range(len(kinds)), names)
    axis.grid(axis="x", visible=False)
    after = f", {rows[-1][1]['all']:.0%} after round {rounds[-1]['round']}"
    axis.set_title(f"OOD: {base['all']:.0%} of {base['n']} questions before{after}, 95% intervals")
    return legend_below(figure, axis)


@styled
def strip(trajectory: Trajectory, kinds: dict[str, str] | None = None) -> Figure:
    """Draw a game as a strip of boards, each above its move and feedback, and how it ended.

    An observation without a board is shown as text.

    Args:
        trajectory: A game of any world.
        kinds: Meaning of the symbols, as in `envs.picture.draw_board`.
    """
    turns, columns = trajectory.turns, max(1, min(5, len(trajectory.turns)))
    feedback = [turn.feedback for turn in turns[:-1]] + [trajectory.feedback]
    words = [textwrap.wrap(text, 24, max_lines=6, placeholder=" …") for text in feedback]
    tall = 1.68 + 0.13 * max(map(len, words))  # height in inches of a row of boards with its text
    width, height = max(3.5, 1.45 * columns), 0.32 + tall * max(1, -(-len(turns) // columns))
    figure = plt.figure(figsize=(width, height))
    plt.close(figure)

    def write(x: float, y: float, text: str, **look: Any) -> None:  # inches from the top left
        figure.text(x / width, 1 - y / height, well_formed(text), parse_math=False, **look)

    colour = "#158a5c" if trajectory.outcome == "success" else "#c8502a"
    title = f"{trajectory.id}: {outcome_text(trajectory.outcome)}"
    write(0.06, 0.2, title, weight="bold", color=colour)
    for i, turn in enumerate(turns):
        left, top = 1.45 * (i % columns), 0.32 + tall * (i // columns)
        cells = parse_board(turn.observation)
        if cells:
            box = (left + 0.06) / width, 1 - (top + 1.35) / height, 1.33 / width, 1.33 / height
            draw_board(figure.add_axes(box), cells, turn.action, kinds=kinds)
        else:
            text = textwrap.wrap(turn.observation, 24, max_lines=10, placeholder=" …")
            write(left + 0.06, top, "\n".join(text), va="top", fontsize=7)
        level = f" · level {turn.extra['level']}" if "level" in turn.extra else ""
        move = f"[{turn.action}]" if turn.action else "no move"
        move = f"{i + 1}. {textwrap.shorten(move, 15, placeholder=' …')}{level}"
        write(left + 0.725, top + 1.52, move, ha="center", weight="bold", size=8 if level else 9)
        write(left + 0.725, top + 1.58, "\n".join(words[i]), ha="center", va="top", fontsize=7)
    return figure

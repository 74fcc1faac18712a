"""The figures of a run, as matplotlib Figures: drawn, closed and handed back, so that nothing is
left open in pyplot.

`metrics` is what `loop.Run.finish` returns (metrics.json of the run), `rows` are the lines of its
metrics.jsonl. Pass rates come with their number of maps and Wilson intervals; floors and ceiling of
the world are lines."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..envs import parse_board
from ..envs.bounds import NAMES as BOUNDS
from ..envs.picture import draw_board
from ..records import Trajectory
from ..stats import draw_spread, wilson

# Okabe and Ito's colours, which colour-blind readers can tell apart; one meaning each in every
# figure
COLOURS = {
    "base": "#7d7d7d",
    "in_context": "#e69f00",
    "consolidated": "#0072b2",
    "reverse_kl": "#0072b2",
    "forward_kl": "#cc79a7",
    "sft": "#d55e00",
    "raw": "#009e73",
}
NAMES = {
    "base": "base, no notes",
    "in_context": "notes in context",
    "consolidated": "consolidated, no notes",
    "reverse_kl": "on-policy (reverse KL)",
    "forward_kl": "off-policy (forward KL)",
    "sft": "SFT on the teacher's replies",
    "raw": "raw games distilled",
}
_OTHERS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#d55e00",
    "#56b4e9",
)  # arms without a colour of their own
_BLUES = ("#0072b2", "#56b4e9", "#a6d4f2", "#d6ebf8")  # rounds
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "axes.facecolor": "white",
    "figure.facecolor": "white",
    "text.color": "#222222",
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def _figure(
    columns: int = 1, size: tuple[float, float] = (7, 3.5), **options: Any
) -> tuple[Figure, Any]:
    """A figure that is not pyplot's any more; notebooks show it because pyplot made it."""
    figure, axes = plt.subplots(1, columns, figsize=size, layout="constrained", **options)
    plt.close(figure)
    return figure, axes


def _whiskers(rows: Sequence[tuple[float, float, float]]) -> list[list[float]]:
    return [[max(0.0, y - low) for y, low, _ in rows], [max(0.0, high - y) for y, _, high in rows]]


def _passed(row: dict) -> tuple[float, float, float]:
    return row["pass_rate"], row["low"], row["high"]


def _right(ood: dict) -> tuple[float, float, float]:
    return ood["all"], *wilson(round(ood["all"] * ood["n"]), ood["n"])


def _share(row: dict) -> tuple[float, int]:
    """(rate, n) of a report's summary or of a probe's result."""
    return row["pass_rate" if "pass_rate" in row else "all"], row["n"]


def _pooled(parts: Sequence[tuple[float, int]]) -> tuple[float, float, float]:
    """Rate of several (rate, n) together, with its Wilson interval."""
    n, right = sum(n for _, n in parts), round(sum(rate * n for rate, n in parts))
    return right / n, *wilson(right, n)


def _grouped(rows: Sequence[dict], *keys: str) -> dict[tuple, list[dict]]:
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def _by_round(axis: Any, metrics: dict, key: str) -> None:
    numbers = [r["round"] for r in metrics["rounds"]]
    for arm, shift in (("base", -0.2), ("in_context", 0.0), ("consolidated", 0.2)):
        rows = [r["pass_rate"][arm] for r in metrics["rounds"]]
        xs, ys = [k + shift for k in numbers], [row[key] for row in rows]
        bars = _whiskers([_passed(row) for row in rows]) if key == "pass_rate" else None
        axis.errorbar(
            xs, ys, bars, fmt="o", color=COLOURS[arm], capsize=3, markersize=5, label=NAMES[arm]
        )
        axis.plot(xs, ys, color=COLOURS[arm], lw=1, alpha=0.5)
        for x, y in (
            zip(xs, ys, strict=True) if len(numbers) < 4 else ()
        ):  # of more the labels would overlap
            place = (
                {"xytext": (6, 0), "va": "center"} if bars else {"xytext": (0, 7), "ha": "center"}
            )
            text, halo = (
                f"{y:.1f}" if key == "reply_tokens" else f"{y:.0%}",
                withStroke(linewidth=3, foreground="white"),
            )
            axis.annotate(
                text,
                (x, y),
                textcoords="offset points",
                fontsize=8,
                color=COLOURS[arm],
                path_effects=[halo],
                **place,
            )
    axis.set(xlabel="round", xticks=numbers, xlim=(numbers[0] - 0.5, numbers[-1] + 0.5))
    axis.grid(axis="x", visible=False)
    if key != "reply_tokens":
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _legend(figure: Figure, axis: Any) -> Figure:
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def floors(axis: Any, bounds: dict, vertical: bool = False) -> None:
    """Floors and ceiling of a world as lines; what is None there is left out.

    Their names stand beside horizontal lines, and are labels for a legend of vertical ones.
    """
    known = sorted((bounds[key], name) for key, name in BOUNDS.items() if bounds[key] is not None)
    at = -1.0
    for style, (y, name) in zip((":", "--", "-."), known, strict=False):
        name = f"{name} {y:.1%}"
        if vertical:
            axis.axvline(y, ls=style, lw=1, color="#555555", label=name, zorder=3)
            continue
        axis.axhline(y, ls=style, lw=1, color="#555555", zorder=1)
        at = max(y, at + 0.06)  # labels of lines that nearly meet stand above each other
        axis.annotate(name, (1.01, at), xycoords=("axes fraction", "data"), va="center", fontsize=8)


@plt.rc_context(_STYLE)
def pass_rates(metrics: dict) -> Figure:
    """Pass rate by round: base, notes in context (small dots: the draws), consolidated; floors and
    ceiling as lines.
    """
    figure, axis = _figure()
    _by_round(axis, metrics, "pass_rate")
    spread = []
    for r in metrics["rounds"]:
        draws, n = (
            r["pass_rate"]["in_context"].get("by_draw", []),
            r["pass_rate"]["in_context"]["n"],
        )
        axis.plot(
            [r["round"] - 0.05] * len(draws), draws, ".", color=COLOURS["in_context"], alpha=0.5
        )
        spread += [draw_spread(draws, n / len(draws))] if 1 < len(draws) <= n / 2 else []
    if spread:
        sd = " to ".join(dict.fromkeys(f"{x:.1%}" for x in (min(spread), max(spread))))
        axis.set_xlabel(
            f"round (dots: draws; beyond sampling noise they differ by {sd}, one sd)", fontsize=8
        )
    floors(axis, metrics["bounds"])
    axis.set(ylim=(-0.02, 1.04), ylabel="pass rate")
    n = metrics["rounds"][0]["pass_rate"]["base"]["n"]
    axis.set_title(f"Pass rate on {n} held-out maps (95 % Wilson intervals)")
    return _legend(figure, axis)


@plt.rc_context(_STYLE)
def arms(metrics: dict) -> Figure:
    """What being on-policy, and extracting, is worth: round 1 beside other ways from the same
    games, with OOD.
    """
    first = metrics["rounds"][0]
    n, told, probes = first["pass_rate"]["base"]["n"], first["pass_rate"], first["ood"]
    rows = [
        (NAMES["base"], "base", told["base"], probes["base"]),
        (NAMES["in_context"], "in_context", told["in_context"], None),
        ("on-policy (reverse KL)", "consolidated", told["consolidated"], probes["consolidated"]),
    ]
    for arm, row in (metrics.get("arms") or {}).items():
        if "in_context" in row:
            rows.insert(2, ("raw games in context", arm, row["in_context"], None))
        rows.append((NAMES.get(arm, arm), arm, row["consolidated"], row.get("ood")))
    figure, (left, right) = _figure(2, size=(7, 1.3 + 0.37 * len(rows)), sharey=True)
    for y, (name, arm, passed, ood) in enumerate(rows):
        for axis, bar in ((left, _passed(passed)), (right, ood and _right(ood))):
            if bar:
                axis.barh(
                    y,
                    bar[0],
                    height=0.62,
                    color=COLOURS.get(arm, "#999999"),
                    xerr=_whiskers([bar]),
                    hatch="///" if "context" in name else "",
                    edgecolor="white",
                    error_kw={"capsize": 3, "lw": 1},
                )
                axis.annotate(
                    f"{bar[0]:.0%}",
                    (bar[2], y),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                )
    for axis in (left, right):
        axis.set(xlim=(0, 1.16), xticks=[0, 0.25, 0.5, 0.75, 1])
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.grid(axis="y", visible=False)
    left.set_yticks(range(len(rows)), [row[0] for row in rows])
    left.invert_yaxis()
    floors(left, metrics["bounds"], vertical=True)
    left.set_title(f"Pass rate after round 1 (n = {n})")
    right.set_title(
        f"OOD: exact answers (n = {probes['base']['n']})" if probes["base"] else "no OOD probe"
    )
    left.set_xlabel("whiskers: 95 % Wilson intervals", fontsize=8)
    return _legend(figure, left)


@plt.rc_context(_STYLE)
def bars(rows: Sequence[dict], bounds: dict, title: str, probe: str = "exact answers") -> Figure:
    """What arms are worth in context and consolidated, seeds pooled (dots: each seed), with OOD;
    Wilson intervals.

    rows: {"arm", "how": "base", "in_context" or "consolidated", "passed": a report's summary,
    "ood": a probe's or none}; without any probe there is no panel for it. probe: what it counts.
    """
    names = list(dict.fromkeys(row["arm"] for row in rows))
    sizes: dict[str, set[int]] = {
        key: set() for key in ("passed", "ood") if any(row.get(key) for row in rows)
    }
    figure, axes = _figure(
        len(sizes),
        size=(8, 1.3 + 0.5 * len(names)),
        sharey=True,
        squeeze=False,
        width_ratios=(2, 1)[: len(sizes)],
    )
    axes = axes[0]
    for (arm, how), same in _grouped(rows, "arm", "how").items():
        y = names.index(arm) + {"base": 0, "in_context": -0.2, "consolidated": 0.2}[how]
        for axis, key in zip(axes, sizes, strict=True):
            parts = [_share(row[key]) for row in same if row.get(key)]
            if parts:
                bar = _pooled(parts)
                axis.barh(
                    y,
                    bar[0],
                    height=0.38,
                    color=COLOURS[how],
                    xerr=_whiskers([bar]),
                    edgecolor="white",
                    error_kw={"capsize": 3, "lw": 1},
                )
                axis.plot(
                    [rate for rate, _ in parts],
                    [y] * len(parts),
                    ".",
                    color="#222222",
                    ms=3,
                    alpha=0.6,
                )
                right = max(bar[2], *(rate for rate, _ in parts))
                axis.annotate(
                    f"{bar[0]:.0%}",
                    (right, y),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                )
                sizes[key] |= {sum(n for _, n in parts)}
    for axis, (key, found) in zip(axes, sizes.items(), strict=True):
        n = "n = " + " or ".join(map(str, sorted(found)))
        passed = textwrap.fill(f"{title} ({n} an arm, 95 % Wilson)", 60)
        axis.set_title(passed if key == "passed" else f"OOD: {probe}\n({n})")
        axis.set(xlim=(0, 1.16), xticks=[0, 0.25, 0.5, 0.75, 1])
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.grid(axis="y", visible=False)
    if "ood" not in sizes:
        axes[0].set_xlabel("no OOD probe", fontsize=8)
    axes[0].set_yticks(range(len(names)), [textwrap.fill(name, 26) for name in names])
    axes[0].invert_yaxis()
    for how in ("base", "in_context", "consolidated"):
        axes[0].barh([0], [0], color=COLOURS[how], label=NAMES[how])
    floors(axes[0], bounds, vertical=True)
    return _legend(figure, axes[0])


@plt.rc_context(_STYLE)
def curves(
    rows: Sequence[dict], x: str, panels: dict[str, str], title: str, bounds: dict | None = None
) -> Figure:
    """A panel a quantity, a line an arm: the mean over seeds or draws by `x`; their range as a
    band, each as a dot.

    rows: {"arm", x, and for each key of panels a report's summary or a probe's result}. Where there
    is one row alone, the band is its Wilson interval. bounds: floors and ceiling, for panels other
    than "ood"."""
    figure, axes = _figure(len(panels), size=(1.5 + 2.9 * len(panels), 3.4), squeeze=False)
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    others = iter(_OTHERS)
    colours = {arm: COLOURS.get(arm) or next(others, "#999999") for arm in arms}
    for axis, (key, name) in zip(axes[0], panels.items(), strict=True):
        for arm in arms:
            points = _grouped([row for row in rows if row["arm"] == arm and row.get(key)], x)
            parts = [[_share(row[key]) for row in same] for same in points.values()]
            rates = [[rate for rate, _ in part] for part in parts]
            bands = [
                _pooled(part)[1:] if len(part) == 1 else (min(r), max(r))
                for part, r in zip(parts, rates)
            ]
            xs, ys = [k[0] for k in points], [sum(r) / len(r) for r in rates]
            axis.plot(xs, ys, "o-", ms=3, lw=1.4, color=colours[arm], label=NAMES.get(arm, arm))
            axis.fill_between(xs, *zip(*bands), color=colours[arm], alpha=0.12, lw=0)
            dots = [(at, rate) for at, part in zip(xs, rates, strict=True) for rate in part]
            axis.plot(*zip(*dots), ".", ms=3, color=colours[arm], alpha=0.6)
        axis.set(xlabel=x, ylim=(-0.02, 1.04), title=name)
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if bounds and key != "ood":
            floors(axis, bounds)
    figure.suptitle(textwrap.fill(title, 20 + 38 * len(panels)), x=0.01, ha="left", fontsize=9.5)
    return _legend(figure, axes[0][0])


@plt.rc_context(_STYLE)
def differences(rows: Sequence[dict], title: str) -> Figure:
    """Ranked bars of paired differences in pass rate: {"arm", "difference": (mean, low, high)}."""
    rows = sorted(rows, key=lambda row: row["difference"][0])
    figure, axis = _figure(size=(7, 0.9 + 0.3 * len(rows)))
    axis.barh(
        range(len(rows)),
        [row["difference"][0] for row in rows],
        color=COLOURS["in_context"],
        height=0.62,
        xerr=_whiskers([row["difference"] for row in rows]),
        error_kw={"capsize": 3, "lw": 1},
    )
    axis.axvline(0, color="#555555", lw=1)
    axis.set_yticks(
        range(len(rows)), [textwrap.shorten(row["arm"], 48, placeholder=" …") for row in rows]
    )
    axis.invert_yaxis()
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.grid(axis="y", visible=False)
    axis.set_title(title)
    return figure


@plt.rc_context(_STYLE)
def training(rows: Sequence[dict]) -> Figure:
    """Loss (KL in nats a token) and the student's entropy by training step, one line an arm or
    round.
    """
    figure, axes = _figure(2)
    blues = iter(_BLUES)
    for arm, k in dict.fromkeys((row["arm"], row["round"]) for row in rows):
        steps = [row for row in rows if (row["arm"], row["round"]) == (arm, k)]
        colour = COLOURS.get(arm) or next(blues, "#999999")
        for axis, key in zip(axes, ("loss", "entropy"), strict=True):
            axis.plot(
                [row["step"] for row in steps],
                [row[key] for row in steps],
                color=colour,
                lw=1.4,
                marker="." if len(steps) == 1 else "",
                label=NAMES.get(arm, arm),
            )
    n = f", n = {rows[0]['replies']} replies a step" if rows and "replies" in rows[0] else ""
    for axis, title in zip(
        axes, (f"Loss, nats a token{n}", "Entropy of the student, nats a token"), strict=True
    ):
        axis.set(xlabel="step", title=title)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if rows and all(row["loss"] > 0 for row in rows):
        axes[0].set_yscale("log")
    axes[1].set_ylim(bottom=0)
    return _legend(figure, axes[0])


@plt.rc_context(_STYLE)
def reply_tokens(metrics: dict) -> Figure:
    """Tokens a reply, and the share of replies cut off at the limit, by round."""
    figure, (left, right) = _figure(2)
    _by_round(left, metrics, "reply_tokens")
    _by_round(right, metrics, "truncated")
    left.set(ylim=(0, left.get_ylim()[1] * 1.08))
    right.set(ylim=(-0.002, max(0.05, right.get_ylim()[1])), title="Replies cut off at the limit")
    left.set_title(
        f"Tokens a reply ({metrics['rounds'][0]['pass_rate']['base']['n']} games an arm)"
    )
    return _legend(figure, left)


@plt.rc_context(_STYLE)
def ood(metrics: dict) -> Figure:
    """Exact answers to questions that have nothing to do with the world, by kind: base and
    consolidated by round.
    """
    figure, axis = _figure()
    rows = [("base", metrics["rounds"][0]["ood"]["base"])]
    rows += [
        (f"consolidated, round {r['round']}", r["ood"]["consolidated"]) for r in metrics["rounds"]
    ]
    if not rows[0][1]:
        axis.set_axis_off()
        axis.set_title("This model has no OOD probe (a file probe.jsonl in its folder)")
        return figure
    kinds, width = ["all", *(k for k in rows[0][1] if k not in ("all", "n"))], 0.8 / len(rows)
    for i, (name, row) in enumerate(rows):
        xs = [x - 0.4 + (i + 0.5) * width for x in range(len(kinds))]
        colour = COLOURS["base"] if i == 0 else _BLUES[min(i, len(_BLUES)) - 1]
        axis.bar(xs, [row[k] for k in kinds], width * 0.92, color=colour, label=name)
        axis.errorbar(
            xs[0],
            row["all"],
            _whiskers([_right(row)]),
            fmt="none",
            color="#222222",
            capsize=3,
            lw=1,
        )
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set(ylim=(0, 1.04), ylabel="exact answers")
    axis.set_xticks(range(len(kinds)), [textwrap.fill(k.replace("_", " "), 12) for k in kinds])
    axis.grid(axis="x", visible=False)
    axis.set_title(
        f"Out of distribution: {rows[0][1]['n']} questions (95 % Wilson interval over all)"
    )
    return _legend(figure, axis)


@plt.rc_context(_STYLE)
def benchmarks(rows: Sequence[dict]) -> Figure:
    """Lines of `make bench`: how many times better than each peer, and below how costs grow; black
    marks are targets.
    """
    rows = sorted(rows, key=lambda row: row["ratio_is"] == "ours / peer")  # costs last
    figure, axis = _figure(size=(8.5, 1.1 + 0.3 * len(rows)))
    for y, row in enumerate(rows):
        cost = row["ratio_is"] == "ours / peer"
        axis.barh(y, row["ratio"] - 1, left=1, height=0.62, color="#e69f00" if cost else "#0072b2")
        if row["target"]:
            axis.plot([row["target"]] * 2, [y - 0.42, y + 0.42], color="black", lw=2)
        end = max(1, row["ratio"], row["target"] or 0)
        axis.annotate(
            f"{row['ratio']:.2g}x" if row["ratio"] < 10 else f"{row['ratio']:.0f}x",
            (end, y),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    names = [
        "\n".join(textwrap.wrap(f"{row['what']}, against {row['peer_name']}", 78)) for row in rows
    ]
    axis.set_yticks(range(len(rows)), names, fontsize=7)
    axis.set(
        xscale="log",
        xlabel="blue: times better than the peer; orange: times the other cost, less is better",
    )
    axis.xaxis.set_major_formatter("{x:g}")
    axis.axvline(1, color="#555555", lw=1)
    axis.set_xlim(right=axis.get_xlim()[1] * 1.4)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    about = rows[0]
    axis.set_title(
        f"{about['model']} on {about['machine']}, {about['threads']} threads (medians; black: target)"
    )
    return figure


@plt.rc_context(_STYLE)
def strip(trajectory: Trajectory, kinds: dict[str, str] | None = None) -> Figure:
    """A game as a strip of drawn boards, each with the move and the feedback under it, and how it
    ended.

    kinds: what the symbols mean, as in `envs.picture.draw_board`. An observation that holds no
    board is shown as text."""
    turns, columns = trajectory.turns, max(1, min(5, len(trajectory.turns)))
    said = [turn.feedback for turn in turns[:-1]] + [trajectory.feedback]
    words = [textwrap.wrap(text, 24, max_lines=6, placeholder=" …") for text in said]
    tall = 1.68 + 0.13 * max(
        map(len, words)
    )  # inches a row of boards takes with what stands under it
    width, height = max(3.5, 1.45 * columns), 0.32 + tall * max(1, -(-len(turns) // columns))
    figure = plt.figure(figsize=(width, height))
    plt.close(figure)

    def write(x: float, y: float, text: str, **look: Any) -> None:  # inches from the top left
        figure.text(x / width, 1 - y / height, text, parse_math=False, **look)

    colour = "#00734f" if trajectory.outcome == "success" else "#b3401c"
    write(
        0.06,
        0.2,
        f"{trajectory.id}: {trajectory.outcome.replace('_', ' ')}",
        weight="bold",
        color=colour,
    )
    for i, turn in enumerate(turns):
        left, top = 1.45 * (i % columns), 0.32 + tall * (i // columns)
        cells = parse_board(turn.observation)
        if cells and len({len(row) for row in cells}) == 1:
            box = (left + 0.06) / width, 1 - (top + 1.35) / height, 1.33 / width, 1.33 / height
            draw_board(figure.add_axes(box), cells, turn.action, kinds=kinds)
        else:
            text = "\n".join(textwrap.wrap(turn.observation, 24, max_lines=10, placeholder=" …"))
            write(left + 0.06, top, text, va="top", fontsize=7)
        move = textwrap.shorten(
            f"[{turn.action}]" if turn.action else "no move", 15, placeholder=" …"
        )
        write(left + 0.725, top + 1.52, f"{i + 1}. {move}", ha="center", weight="bold")
        write(left + 0.725, top + 1.58, "\n".join(words[i]), ha="center", va="top", fontsize=7)
    return figure

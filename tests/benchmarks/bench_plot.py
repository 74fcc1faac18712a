"""The figure of `make bench`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from oelkit.views import plots

PANELS = {"time": "Times faster", "memory": "Times less memory"}


@plots.styled
def benchmarks(rows: Sequence[dict]) -> Figure:
    """Draw the lines of `make bench`.

    Above: how many times better than each peer, in time and memory. Below: how our own costs grow.
    Marks are targets.
    """
    costs = [row for row in rows if row["ratio_is"] == "ours / peer"]
    against = [row for row in rows if row not in costs]
    places, heads = _places(against)
    tall = (len(places) + len(heads), 1.5 + len(costs))
    figure = plt.figure(figsize=(9, 1.6 + 0.25 * sum(tall)), layout="constrained")
    plt.close(figure)
    grid = [["time", "memory"], ["costs", "."]]
    axes = figure.subplot_mosaic(grid, height_ratios=tall)
    axes["memory"].sharey(axes["time"])
    for row in against:
        _bar(axes[_panel(row)], places[_work(row), _peer(row)], row, "#1a80c0", start=1)
    for name, title in PANELS.items():
        axis = axes[name]
        axis.set(xscale="log", xlabel=title)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.axvline(1, color=plots.INK, lw=1)
        axis.set_xlim(right=axis.get_xlim()[1] * 1.8)
    axes["time"].set_yticks(list(places.values()), [peer for _, peer in places], fontsize=9)
    axes["time"].set_ylim(max(places.values(), default=0) + 0.6, -0.6)
    axes["memory"].tick_params(labelleft=False)
    for work, y in heads.items():
        head = {"weight": "bold", "fontsize": 9, "va": "center"}
        name = axes["time"].annotate(work, (0.01, y), xycoords=("axes fraction", "data"), **head)
        name.set_in_layout(False)  # it extends over the other panel
    for y, row in enumerate(costs):
        _bar(axes["costs"], y, row, "#e69f00", start=0)
    names = [textwrap.fill(_work(row).split(", prefix")[0], 44) for row in costs]
    axes["costs"].set_yticks(range(len(costs)), names, fontsize=9)
    axes["costs"].set(
        xlabel="times the cost of the smaller size (less is better)", ylim=(len(costs) - 0.4, -0.6)
    )
    axes["costs"].set_xlim(right=axes["costs"].get_xlim()[1] * 1.15)
    for axis in axes.values():
        axis.grid(axis="y", visible=False)
    peers = [row for row in against if not row["what"].startswith("start")]  # torch is no peer
    best = {name: [r["ratio"] for r in peers if _panel(r) == name] for name in PANELS}
    said = [
        f"{min(of):.2g} to {max(of):.2g} {PANELS[name].lower()}" for name, of in best.items() if of
    ]
    run = f"{rows[0]['model']} on {rows[0]['machine']}, {rows[0]['threads']} threads"
    head = f"Against peers: {', '.join(said)}\n{run}; medians, marks: targets"
    figure.suptitle(head, x=0.01, ha="left", fontsize=10.5, weight="bold")
    return figure


def _work(row: dict) -> str:
    return row["what"].rsplit(": ", 1)[0]


def _panel(row: dict) -> str:
    return "memory" if "memory" in row["what"] else "time"


def _peer(row: dict) -> str:
    cpu = ", CPU time" * row["unit"].startswith("CPU")
    return textwrap.fill(row["peer_name"].split(" (")[0] + cpu, 48)


def _places(rows: Sequence[dict]) -> tuple[dict[tuple[str, str], int], dict[str, int]]:
    """Return the position of each bar, by work and peer, and of each work's heading."""
    places: dict[tuple[str, str], int] = {}
    heads: dict[str, int] = {}
    for work in dict.fromkeys(_work(row) for row in rows):
        heads[work] = len(places) + len(heads)
        for peer in dict.fromkeys(_peer(row) for row in rows if _work(row) == work):
            places[work, peer] = len(places) + len(heads)
    return places, heads


def _bar(axis: Any, y: float, row: dict, colour: str, start: int) -> None:
    axis.barh(y, row["ratio"] - start, left=start, height=0.62, color=colour)
    if row["target"]:
        axis.plot([row["target"]] * 2, [y - 0.42, y + 0.42], color="#d55e00", lw=2)
    end = max(1, row["ratio"], row["target"] or 0)
    text = f"{row['ratio']:.2g}x" if row["ratio"] < 10 else f"{row['ratio']:.0f}x"
    place = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
    axis.annotate(text, (end, y), fontsize=9, **place)

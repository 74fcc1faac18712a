"""The figure of `make bench`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure

from oelkit.views import plots


@plots.styled
def benchmarks(rows: Sequence[dict]) -> Figure:
    """Lines of `make bench`: how many times better than each peer, and below how costs grow; black
    marks are targets.
    """
    rows = sorted(rows, key=lambda row: row["ratio_is"] == "ours / peer")  # costs last
    figure, axis = plots.new_figure(size=(8.5, 1.1 + 0.3 * len(rows)))
    names = []
    for y, row in enumerate(rows):
        colour = "#e69f00" if row["ratio_is"] == "ours / peer" else "#0072b2"
        axis.barh(y, row["ratio"] - 1, left=1, height=0.62, color=colour)
        if row["target"]:
            axis.plot([row["target"]] * 2, [y - 0.42, y + 0.42], color="black", lw=2)
        end = max(1, row["ratio"], row["target"] or 0)
        text = f"{row['ratio']:.2g}x" if row["ratio"] < 10 else f"{row['ratio']:.0f}x"
        place = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
        axis.annotate(text, (end, y), fontsize=8, **place)
        names.append(textwrap.fill(f"{row['what']}, against {row['peer_name']}", 78))
    axis.set_yticks(range(len(rows)), names, fontsize=7)
    about = "blue: times better than the peer\norange: times the other cost, less is better"
    axis.set(xscale="log", xlabel=about)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.axvline(1, color="#555555", lw=1)
    axis.set_xlim(right=axis.get_xlim()[1] * 1.4)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    run = f"{rows[0]['model']} on {rows[0]['machine']}, {rows[0]['threads']} threads"
    figure.suptitle(f"{run} (medians; black: target)", x=0.01, ha="left", fontsize=9.5)
    return figure

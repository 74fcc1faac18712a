"""Figures: they agree with the metrics, nothing is cut off, and no figure stays open."""

import copy
import math
import re
import subprocess
import sys

import matplotlib
import pytest
from helpers import assert_whole, make_game, make_metrics, make_rows, texts, words
from matplotlib.figure import Figure
from matplotlib_inline.backend_inline import _fetch_figure_metadata

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from oelkit.curation import Curation
from oelkit.records import ExperienceItem, Outcome, Trajectory, Turn
from oelkit.views import comparison, plots

METRICS = {
    "one round": make_metrics((115,)),
    "two rounds": make_metrics(),
    "five rounds": make_metrics((100, 110, 90, 20, 0), probe=(1.0, 1.0, 0.5, 0.0)),
    "no probe, no arms": make_metrics(probe=None, arms=False),
    "nothing passes": make_metrics((0, 0), base=0, in_context=0),
}


@pytest.mark.parametrize("name", ["pass_rates", "arms", "reply_tokens", "ood"])
@pytest.mark.parametrize("case", METRICS)
def test_figures_are_whole_and_leave_nothing_behind(name, case):
    before, given = dict(plt.rcParams), copy.deepcopy(METRICS[case])
    figure = getattr(plots, name)(given)
    assert isinstance(figure, Figure) and given == METRICS[case]
    assert_whole(figure)
    assert plt.get_fignums() == [] and dict(plt.rcParams) == before


@pytest.mark.parametrize("name", ["pass_rates", "arms", "reply_tokens", "ood", "training"])
def test_figures_are_read_on_white_and_on_black_pages(name):
    given = make_rows() if name == "training" else make_metrics()
    figure = getattr(plots, name)(given)
    figure.draw_without_rendering()
    assert _fetch_figure_metadata(figure) is None, "Jupyter puts a ground under it"
    grounds = [figure, *figure.axes]
    assert all(part.patch.get_facecolor()[3] == 0 for part in grounds), "a slab on a dark page"
    for text in texts(figure):
        for page in ("white", "#0d1117"):
            assert contrast(text.get_color(), page) > 2.2, text
    boxes = [t.get_window_extent() for a in figure.axes for t in (a.title, a._left_title)]
    boxes = [box for box in boxes if box.width > 1]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def contrast(one, two):
    """Return the contrast of two colours, from 1 to 21 (WCAG 2)."""

    def light(colour):
        parts = matplotlib.colors.to_rgb(colour)
        parts = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), parts, strict=True)) + 0.05

    high, low = sorted((light(one), light(two)), reverse=True)
    return high / low


def test_numbers_are_clear_of_floors_and_ceiling():
    low = make_metrics((0.99,))
    low["rounds"][0]["pass_rate"]["base"] |= {"pass_rate": 0.11, "low": 0.054, "high": 0.21}
    figures = [plots.pass_rates(low), plots.pass_rates(make_metrics((0.99, 0.97)))]
    for figure in (*figures, plots.arms(make_metrics())):
        figure.draw_without_rendering()
        for axis in figure.axes:
            numbers = [t for t in axis.texts if re.fullmatch(r"\d+%", t.get_text())]
            assert numbers
            for line in axis.lines:
                if line.get_linestyle() not in ("--", ":", "-."):
                    continue
                box = line.get_window_extent()
                for t in numbers:
                    one = t.get_window_extent()
                    wide = one.x0 < box.x1 and box.x0 < one.x1
                    assert not (wide and one.y0 < box.y1 + 1 and box.y0 - 1 < one.y1), t


def test_pass_rates_shows_rates_intervals_floors_and_n():
    metrics = make_metrics()
    figure = plots.pass_rates(metrics)
    axis = figure.axes[0]
    bars = dict(zip(("base", "in_context", "consolidated"), axis.containers, strict=True))
    for arm, bar in bars.items():
        points, _, (whiskers,) = bar.lines
        rows = [r["pass_rate"][arm] for r in metrics["rounds"]]
        assert list(points.get_ydata()) == [row["pass_rate"] for row in rows]
        for segment, row in zip(whiskers.get_segments(), rows, strict=True):
            assert sorted(segment[:, 1]) == pytest.approx([row["low"], row["high"]])
        assert matplotlib.colors.same_color(points.get_color(), plots.COLOURS[arm])
    assert level(axis) == [0.031, 0.062, 1.0]
    said = words(figure)
    for text in (
        "128 held-out maps",
        "95% intervals",
        "random policy 3.1%",
        "best fixed plan 6.2%",
        "ceiling 100.0%",
    ):
        assert text in said
    draws = [line for line in axis.lines if list(line.get_ydata()) == [0.7, 0.9]]
    assert len(draws) == 2  # one a round


def level(axis):
    """Return the heights of horizontal lines across the whole axis."""
    return sorted(line.get_ydata()[0] for line in axis.lines if list(line.get_xdata()) == [0, 1])


def test_titles_say_what_was_found():
    metrics = make_metrics()
    arms = [metrics["rounds"][0]["pass_rate"]["base"]]
    arms += [metrics["rounds"][-1]["pass_rate"]["consolidated"]]
    before, after = (row["reply_tokens"] for row in arms)
    said = words(plots.reply_tokens(metrics))
    assert f"Tokens per reply: {before:.0f} before, {after:.0f} after" in said
    last = metrics["rounds"][-1]["ood"]["consolidated"]["all"]
    assert f"OOD: 91% of 200 questions before, {last:.0%} after round 2" in words(
        plots.ood(metrics)
    )
    rows = make_rows(arms=[("round 1", 1)])
    ends = f"{rows[0]['loss']:.2g} → {rows[-1]['loss']:.2g} in {len(rows)} steps"
    assert f"Loss: {ends}" in words(plots.training(rows))
    assert "→" not in words(plots.training(make_rows()))  # of several arms
    figure = plots.pass_rates(metrics)
    assert [axis.get_xlabel() for axis in figure.axes] == ["round"]
    assert words(figure).count("each draw in context") == 1


def test_numbers_at_the_axis_of_losses_are_plain():
    rows = [
        {**row, "loss": 0.6 - 0.07 * i} for i, row in enumerate(make_rows(arms=[("round 1", 1)]))
    ]
    figure = plots.training(rows)
    figure.draw_without_rendering()
    axis = figure.axes[0].yaxis
    labels = [t.get_text() for t in axis.get_ticklabels() + axis.get_minorticklabels()]
    assert "0.2" in labels and not any("10^" in label for label in labels), labels


def test_bounds_that_are_not_known_are_left_out():
    metrics = make_metrics() | {
        "bounds": {"random": 0.1, "fixed_plan": None, "ceiling": 0.6, "plan": None, "n": 9}
    }
    assert level(plots.pass_rates(metrics).axes[0]) == [0.1, 0.6]
    assert "fixed plan" not in words(plots.pass_rates(metrics))
    metrics["bounds"] = dict.fromkeys(metrics["bounds"])
    figure = plots.pass_rates(metrics)
    assert level(figure.axes[0]) == [] and "random policy" not in words(figure)
    assert_whole(figure)
    assert_whole(plots.arms(metrics))


def test_labels_of_near_floors_do_not_overlap():
    figure = plots.pass_rates(make_metrics())
    figure.draw_without_rendering()
    one, two = (
        next(t for t in texts(figure) if name in t.get_text()) for name in ("random", "fixed")
    )
    assert not one.get_window_extent().overlaps(two.get_window_extent())


def test_arms_has_a_bar_an_arm_and_the_probe_beside_it():
    metrics = make_metrics()
    left, right = plots.arms(metrics).axes
    assert sorted(bar.get_width() for bar in left.patches) == pytest.approx(
        sorted([7 / 128, 104 / 128, 115 / 128, 40 / 128, 30 / 128, 94 / 128, 80 / 128])
    )
    assert sorted(bar.get_width() for bar in right.patches) == pytest.approx(
        [0.6, 0.7, 0.85, 0.88, 0.91]
    )
    assert "n = 128" in left.get_title(loc="left") and "n = 200" in right.get_title(loc="left")
    assert "no OOD probe" in words(plots.arms(make_metrics(probe=None)))


def test_training_has_a_line_an_arm_and_round():
    figure = plots.training(make_rows())
    loss, entropy = figure.axes
    assert len(loss.lines) == len(entropy.lines) == 5
    assert len({line.get_color() for line in loss.lines}) == 5
    assert list(loss.lines[-1].get_ydata()) == [math.exp(-s / 2) for s in range(8)]
    redone = plots.training(make_rows(arms=[("round 2", 2), ("round 1", 1)]))
    assert [line.get_label() for line in redone.axes[0].lines] == ["round 1", "round 2"]
    assert loss.get_yscale() == "log"
    assert_whole(figure)
    zero = plots.training(
        [{**row, "loss": 0.0} for row in make_rows(arms=[("round 1", 1)])]
    )  # a loss of 0 has no logarithm
    assert zero.axes[0].get_yscale() == "linear"
    assert_whole(zero)
    assert plt.get_fignums() == []


def test_ood_shows_every_kind_before_and_after():
    axis = plots.ood(make_metrics()).axes[0]
    assert [bar.get_height() for bar in axis.patches] == pytest.approx(
        [0.91, 0.91, 0.86, 0.88, 0.88, 0.83, 0.9, 0.9, 0.85]
    )
    assert [t.get_text() for t in axis.get_xticklabels()] == ["all", "copy", "other\nletters"]
    assert "200 questions" in axis.get_title(loc="left")
    assert "no OOD probe" in words(plots.ood(make_metrics(probe=None)))


@pytest.mark.parametrize(
    "game",
    [
        make_game(),
        make_game(("[left]",)),
        make_game(("?", "?")),
        make_game(("[left]", "[right]") * 6),
        make_game(("[left]", "[up]", "[right]"), "oelkit/Sokoban-v0", 1),
    ],
)
def test_strip_draws_each_turn(game):
    figure = plots.strip(game)
    assert len(figure.axes) == len(game.turns)
    said = " ".join(words(figure).split())
    for i, turn in enumerate(game.turns):
        assert f"{i + 1}. {f'[{turn.action}]' if turn.action else 'no move'}" in said
        assert turn.feedback in said
    assert f"{game.id}: {game.outcome.replace('_', ' ')}" in said
    assert_whole(figure)
    assert plt.get_fignums() == []


def test_strip_shows_foreign_text_as_it_is():
    """Logs of an agent: no board, an unknown action, text that matplotlib would read as math."""
    turn = Turn(
        r"Cost: $\frac{1$ per <b>item</b>",
        [],
        "r",
        "buy $x^2 now or never",
        "$\\sqrt$ \ud83d " * 60,  # half an emoji, as a broken model writes it
        1,
        1,
        False,
    )
    figure = plots.strip(
        Trajectory("a$b$", "logs", None, "m", 1, (turn,) * 2, Outcome.UNKNOWN, "the $end")
    )
    assert_whole(figure)
    said = words(figure)
    assert r"$\frac{1$" in said and "the $end" in said and "…" in said


def test_names_of_a_stranger_are_labels_and_no_formulas():
    """Such names are not read as math, too long for the width, or hidden from a legend."""
    odd = "_$\\frac{1$ and $x^2$ \ud83d"
    rows = make_metrics(probe=None)
    rows["arms"] = {odd: rows["arms"]["sft"]}
    probe = {"all": 0.5, odd: 0.5, "n": 20}
    for r in rows["rounds"]:
        r["ood"] = {"base": probe, "consolidated": probe}
    runs = {odd: rows, "other": make_metrics()}
    drawn = [plots.arms(rows), plots.ood(rows), plots.training(make_rows(arms=[(odd, 1)]))]
    item = ExperienceItem("i", odd, (), "m", 1, 0)
    for figure in [*drawn, comparison.figure(runs), Curation([item]).plot()]:
        assert_whole(figure)
        said = [t.get_text().replace("\\$", "$").replace("\n", " ") for t in texts(figure)]
        assert any("$x^2$" in text for text in said), said
    cells = "\n".join(
        ["+-----+", r"|$\f$ |", "+-----+", "| $$  |", "+-----+", "|abcde|", "+-----+"]
    )
    turn = Turn(cells, [], "r", None, "f", 1, 1, False)
    assert_whole(plots.strip(Trajectory("a", "logs", None, "m", 1, (turn,), Outcome.UNKNOWN, "f")))


def test_episodes_are_not_called_maps():
    metrics = make_metrics((115,))
    for row in metrics["rounds"][0]["pass_rate"].values():
        row.update(n=1280, maps=128)
    shown = words(plots.pass_rates(metrics))
    assert "1,280 episodes on 128 held-out maps" in shown and "1280 held-out" not in shown


def test_views_need_no_torch():
    """Viewing files must need neither the start-up time nor the packages of a model."""
    code = (
        "import sys, oelkit.views.plots, oelkit.views.report, oelkit.views.widgets\n"
        "from oelkit import summary\n"
        "print({'torch', 'transformers', 'peft', 'oelkit.model', 'oelkit.steps'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

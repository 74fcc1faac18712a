"""The trajectory viewer, driven as a person would: text of models stays text."""
import ipywidgets
import pytest
from test_plots import make_game

from oelkit.records import Outcome, Trajectory, Turn
from oelkit.widgets import trajectory_viewer

EVIL = "<script>alert(1)</script>"


def find(widget, kind):
    found = [widget] if isinstance(widget, kind) else []
    return found + [w for child in getattr(widget, "children", ()) for w in find(child, kind)]


def shown(widget):
    return " ".join(w.value for w in find(widget, ipywidgets.HTML))


def test_viewer_follows_menu_and_slider():
    games = [make_game(("[left]", "[right]", "[right]")), make_game((EVIL, "[up]"), seed=7)]
    view = trajectory_viewer(games)
    kinds = ipywidgets.Dropdown, ipywidgets.IntSlider, ipywidgets.Image
    (menu,), (slider,), (board,) = (find(view, kind) for kind in kinds)
    assert slider.max == len(games[0].turns) and bytes(board.value[:4]) == b"\x89PNG"
    first = bytes(board.value)
    slider.value = len(games[0].turns)
    assert bytes(board.value) != first and games[0].turns[-1].feedback in shown(view)
    menu.value = 1
    assert (slider.value, slider.max) == (1, 2)
    assert "&lt;script&gt;" in shown(view) and "<script" not in shown(view) and "none found" in shown(view)
    slider.value = 2
    menu.value = 0  # from a shorter game to a longer one and back, at its end
    slider.value = slider.max
    menu.value = 1
    assert games[1].turns[0].feedback in shown(view)


def test_viewer_shows_logs_without_a_board_and_refuses_nothing():
    turn = Turn(f"dialogue {EVIL}", [], "reply", None, "ok", 1, 1, False)
    log = Trajectory("log", "logs", None, "m", 1, (turn,), Outcome.UNKNOWN, "ok")
    view = trajectory_viewer([log, make_game()])
    assert "dialogue &lt;script" in shown(view)
    assert find(view, ipywidgets.Image)[0].layout.display == "none"
    find(view, ipywidgets.Dropdown)[0].value = 1
    assert find(view, ipywidgets.Image)[0].layout.display != "none"
    with pytest.raises(ValueError, match="no trajectory"):
        trajectory_viewer([])


def test_saved_notebooks_keep_html():
    bundle = trajectory_viewer([make_game((EVIL,))])._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "&lt;script" in bundle["text/html"] and "<script" not in bundle["text/html"]

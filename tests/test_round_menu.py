"""The menus for run and round, and the notice of stale stages: they open the chosen folder, say
what cannot be opened, and redo stale stages.
"""

from pathlib import Path
from types import SimpleNamespace

import ipywidgets
import pytest

from oelkit import Curation
from oelkit.records import ExperienceItem, read_jsonl, write_jsonl
from oelkit.views.widgets import RedoNotice, RoundMenu, experience_editor


@pytest.fixture
def runs(tmp_path):
    for run, k in (("a", 1), ("a", 2), ("a", 10), ("b", 1)):
        item = ExperienceItem("i", f"item of {run}{k} <b>", (), "m", k, 0)
        write_jsonl(tmp_path / run / f"round_{k}" / "items.jsonl", [item])
    return tmp_path


def views(folder: Path):
    return [experience_editor(Curation(read_jsonl(folder / "items.jsonl", ExperienceItem)))]


def shown(menu):
    return menu._repr_mimebundle_()[0]["text/html"]


def test_the_menus_open_what_is_chosen(runs):
    menu = RoundMenu(views, runs / "b" / "round_1", runs)
    run, k = menu.children[0].children
    assert "item of b1 &lt;b&gt;" in shown(menu) and k.options == (("1", runs / "b" / "round_1"),)
    run.value = runs / "a"
    assert "item of a1" in shown(menu) and [name for name, _ in k.options] == ["1", "2", "10"]
    old = menu.children[1].children[0]
    k.value = runs / "a" / "round_2"
    assert "item of a2" in shown(menu) and old.comm is None  # the previous view is closed


def test_ipywidgets_7_has_no_mime_bundle_of_its_own(runs, monkeypatch):
    """The version on Colab. The views' own bundle is tested with them."""
    monkeypatch.delattr(ipywidgets.Widget, "_repr_mimebundle_", raising=False)
    data, _ = RoundMenu(views, runs / "b" / "round_1", runs)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data and "item of b1" in data["text/html"]


def test_a_folder_outside_of_the_runs_is_first(runs):
    write_jsonl(runs / "sample" / "items.jsonl", [])
    menu = RoundMenu(views, runs / "sample", runs / "nothing")
    assert [name for name, _ in menu.children[0].children[0].options] == [runs.name]
    assert menu.children[0].children[1].value == runs / "sample"


def test_what_cannot_be_opened_is_said_in_its_place(runs):
    (runs / "a" / "round_2" / "items.jsonl").write_text("{}\n")
    menu = RoundMenu(views, runs / "a" / "round_1", runs)
    menu.children[0].children[1].value = runs / "a" / "round_2"
    assert (
        "line 1" in menu.children[1].children[0].value
        and "schema" in menu.children[1].children[0].value
    )


def stage(name, state, why="", follows=False):
    return SimpleNamespace(name=name, state=state, why=why, follows=follows)


def test_what_is_out_of_date_is_said_and_done_again_on_demand():
    stages = [stage("extract of round 1", "done"), stage("distill of round 2", "missing")]
    notice = RedoNotice(lambda: stages, lambda: stages.pop())
    assert notice.layout.display == "none" and shown(notice) == ""
    stages.append(stage("distill of round 1", "stale", "experience.md <b> has changed since"))
    notice.refresh()
    assert notice.layout.display != "none" and notice.children[1].layout.display != "none"
    text = "<li>distill of round 1: experience.md &lt;b&gt; has changed since</li>"
    assert text in notice.children[0].value and text in shown(notice)
    stages.append(stage("evaluate of round 1", "stale", "distill of round 1 is stale", True))
    notice.refresh()
    assert f"{text}<li>and so evaluate of round 1</li>" in shown(notice)
    later = [stage(f"evaluate of round {k}", "stale", "", True) for k in range(2, 31)]
    stages += later
    notice.refresh()
    few = "evaluate of round 1, evaluate of round 2, evaluate of round 3, 27 more</li>"
    assert f"<li>and so {few}" in shown(notice)
    del stages[-len(later) - 1 :]
    assert "extract" not in shown(notice) and "distill of round 2" not in shown(notice)
    notice.children[1].click()
    assert len(stages) == 2 and notice.layout.display == "none"


def test_a_redo_that_fails_says_why_and_can_be_tried_again():
    def redo():
        raise ValueError("<nothing> to distill")

    notice = RedoNotice(lambda: [stage("distill of round 1", "stale", "new items")], redo)
    notice.children[1].click()
    assert "&lt;nothing&gt; to distill" in shown(notice)
    assert notice.children[1].layout.display != "none"


def test_a_run_that_cannot_be_read_says_so_beside_its_editor():
    def status():
        raise ValueError("runs/<old> is a run of an older form")

    notice = RedoNotice(status, list)
    assert "runs/&lt;old&gt; is a run of an older form" in shown(notice)
    assert notice.children[1].layout.display == "none"

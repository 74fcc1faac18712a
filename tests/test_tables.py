"""How objects are shown: a line, a small escaped table, a data frame, a figure."""

import json
from dataclasses import replace

import pytest
from helpers import make_metrics

import oelkit
from oelkit.curation import Curation
from oelkit.records import (
    Evidence,
    ExperienceItem,
    Outcome,
    Trajectory,
    Turn,
    from_dict,
    to_dict,
    write_jsonl,
)
from oelkit.steps.evaluation import report_of
from oelkit.tables import visible

EVIL = "<script>alert(1)</script> $x_1$"
TURN = Turn("board", [], EVIL, "left", EVIL, 1, 3, False)
GAMES = [
    Trajectory(f"g{n}", "e", n, "m", 1, (TURN,) * 4, outcome, EVIL)
    for n, outcome in enumerate([Outcome.SUCCESS, Outcome.FAILURE] * 60)
]


def curation():
    items = [ExperienceItem(f"i{n}", EVIL, (Evidence("g", n),), "m", 1, n % 3) for n in range(60)]
    return Curation([*items, ExperienceItem("x", "G wins.", (), "m", 1, 0)])


@pytest.mark.parametrize(
    "thing, line",
    [
        (lambda: GAMES[0], "Trajectory g0: success in 4 turns"),
        (lambda: report_of(GAMES), "EvalReport: 50.0% ["),
        (curation, "Curation(61 items: 61 pending)"),
    ],
)
def test_a_line_and_a_small_escaped_table(thing, line):
    shown = thing()
    assert repr(shown).startswith(line) and len(repr(shown)) < 150 and "\n" not in repr(shown)
    html = shown._repr_html_()
    assert len(html) < 4000 and "<script" not in html and html.count("<tr>") <= 12
    half = replace(GAMES[0], id="\ud83d", turns=(replace(TURN, reply="\ud83d"),))
    assert (repr(half) + half._repr_html_()).encode()  # Jupyter cannot send half an emoji


def test_nothing_that_a_terminal_obeys_is_printed():
    said = "a\x1b[31m\r\u061c\u200e\u200f\u2028\u202e\u2066"
    assert visible(said) == r"a\x1b[31m\r\u061c\u200e\u200f\u2028\u202e\u2066"
    assert visible(kept := "a line\n\tof كتاب, семь and 🙂") == kept


def test_a_policy_is_a_line(tiny):
    assert repr(tiny).startswith("Policy ") and "trained" in repr(tiny) and len(repr(tiny)) < 250
    assert "architecture" in tiny._repr_html_()


def test_a_policy_is_as_large_as_its_base():
    assert repr(oelkit.load_policy("micro")).startswith("Policy micro: 1.14 M parameters, 0.205 M")


def test_frames_and_figures():
    pytest.importorskip("pandas")
    report = report_of(GAMES)
    assert list(report.to_frame()["outcome"][:2]) == ["success", "failure"]
    assert len(GAMES[0].to_frame()) == 4 and len(curation().to_frame()) == 61
    for thing in (report, curation()):
        figure = thing.plot()
        figure.canvas.draw()  # a $ in a text is not math
        assert figure.axes[0].get_title(loc="left").startswith(repr(thing)[:40].replace("$", r"\$"))
    with pytest.raises(ValueError, match="nothing to plot of Trajectory g0"):
        GAMES[0].plot()


def test_a_record_on_disk_has_no_field_of_what_is_shown():
    assert set(to_dict(GAMES[0])) == {
        *("schema", "id", "env_id", "seed", "model", "round", "turns", "outcome", "feedback")
    }
    assert from_dict(Trajectory, to_dict(GAMES[0])) == GAMES[0]


def test_runs_are_there_by_name_without_a_model(tmp_path, monkeypatch):
    from dataclasses import asdict

    from oelkit.runs.settings import Settings
    from oelkit.runs.stages import FORM

    monkeypatch.chdir(tmp_path)
    assert list(oelkit.runs) == []
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    record = {"settings": asdict(Settings()), "form": FORM, "prompts": {}}
    (folder / "run.json").write_text(json.dumps(record))
    run = oelkit.runs["demo"]
    assert list(oelkit.runs) == ["demo"] and repr(run).endswith("nothing measured yet")
    (folder / "metrics.json").write_text(json.dumps(make_metrics()))
    assert "passed" in repr(run) and "round 1" in run._repr_html_()
    run.plot().canvas.draw()
    write_jsonl(folder / "round_1/items.jsonl", [ExperienceItem("i", "x", (), "m", 1, 0)])
    run.curation(1).accept("i")
    assert run.curation(1).item("i").status == "accepted" and len(run.items(1)) == 1
    with pytest.raises(ValueError, match="nobody"):
        oelkit.runs["nobody"]

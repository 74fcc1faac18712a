"""The dinner world for a real model, and its script, tried on the embedded model."""

from dataclasses import replace
from pathlib import Path
from runpy import run_path

import matplotlib
import pytest

from oelkit import envs
from oelkit.records import read_jsonl
from oelkit.runs.run import HELD_OUT

matplotlib.use("Agg")
FOLDER = Path(__file__).parents[1] / "examples" / "dinner"
WORLD = "dinner:dinner/Dinner-v0"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def test_the_next_course_is_for_those_who_served_the_one_before():
    from dinner import COURSES, TABLES

    world = envs.make(WORLD)
    for seed in range(40):
        asked, info = world.reset(seed=seed)
        table = asked.split(" table")[0].split()[-1]
        assert info["level"] == 1 and table in TABLES
        for course, (verb, menu) in enumerate(COURSES.items(), 1):
            assert asked.split("\n")[-1].endswith(f"this table {verb}?")
            others = [menu[other] for other in TABLES if other != table]
            assert menu[table] not in others
            asked, _, done, _, info = world.step(f"Guests at the {table} table want {menu[table]}.")
            assert "thanks you" in info["feedback"]
            assert info["level"] == min(course + 1, 3) and done == (course == 3)
        assert info["outcome"] == "success"


@pytest.mark.parametrize("reply", ["water", "tea or coffee", "", "figs", "tea coffee milk juice"])
def test_who_guesses_is_told_one_fact_and_sees_no_more(reply):
    world = envs.make(WORLD)
    asked, _ = world.reset(seed=1)
    _, _, done, _, info = world.step(reply)
    assert done and info["outcome"] != "success" and "we drink" in info["feedback"]
    assert "we eat" not in info["feedback"] + asked


def test_held_out_guests_are_never_seen_in_training():
    train, unseen = envs.make(WORLD), envs.make(envs.held_out(WORLD))
    seen = {train.reset(seed=seed)[0] for seed in range(1000)}
    new = {unseen.reset(seed=HELD_OUT + seed)[0] for seed in range(128)}
    assert len(new) > 80 and not seen & new


@pytest.mark.slow
def test_an_arm_runs_goes_on_and_is_drawn(micro_folder, tmp_path, monkeypatch):
    learn = run_path(str(FOLDER / "learn.py"))
    monkeypatch.chdir(tmp_path)
    few = {"model": str(micro_folder), "dtype": "float32", "extract_games": 2, "state_games": 2}
    few |= {"num_draws": 1, "steps": 1, "batch_size": 2, "eval_maps": 4, "rounds": 2}
    settings, out = replace(learn["ONLINE"], **few), tmp_path / "rows.jsonl"
    folder = tmp_path / "runs" / "dinner_online_0" / "round_1"
    folder.mkdir(parents=True)
    (folder / "experience.md").write_text("- EXPERIENCE ITEM: Guests at the red table drink tea.\n")
    learn["learn"](settings, "online", out)
    rows = read_jsonl(out)
    assert [row["round"] for row in rows] == [1, 2] and "base" in rows[0]
    assert all(row["command"].endswith("--seed 0 --dtype float32") for row in rows)
    assert all(len(row["consolidated"]["courses"]) == 4 for row in rows)
    learn["learn"](settings, "online", out)
    assert read_jsonl(out) == rows  # nothing is measured twice
    assert learn["table"](rows).count("\n| online | 0 |") == 2
    assert "of unseen guests" in learn["figure"](rows).axes[0].get_title("left")


def test_what_is_true():
    is_true = run_path(str(FOLDER / "learn.py"))["is_true"]
    assert is_true("Guests at the red table drink tea.") and is_true("Red table: figs.")
    assert not is_true("Guests at the red table drink milk.")
    assert not is_true("Guests at the red table drink tea and eat fish.")
    assert not is_true("Guests at the red or the blue table drink tea.")

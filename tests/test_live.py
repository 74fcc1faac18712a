"""The panel and the trackers watch a training without changing it."""

import importlib.util
import os
import sys
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.image
import pytest
from helpers import assert_whole, by_hand, make_rows, words

from oelkit.records import read_jsonl
from oelkit.runs.run import Run
from oelkit.stats import wilson_interval
from oelkit.views.live import LivePanel, several, tracker

ROWS = [{**row, "reply_tokens": 9.0, "truncated": 0.1} for row in make_rows(7, [("round 1", 1)])]


def test_the_panel_draws_each_curve_and_what_is_kept_with_its_interval(tmp_path):
    shares = iter((1.0, 0.8, 0.6))
    panel = LivePanel(lambda: {"all": next(shares), "n": 20}, 3, tmp_path / "live" / "panel.png")
    for row in ROWS:
        panel(row)
    steps = [0, 3, 6]
    want = [(s, p, *wilson_interval(round(20 * p), 20)) for s, p in zip(steps, (1, 0.8, 0.6))]
    assert panel.evaluations == want
    figure = panel.show()
    assert_whole(figure)
    for said in ("loss", "entropy", "tokens per reply", "cut off", "95% interval"):
        assert said in words(figure)
    loss = figure.axes[0].lines[0].get_ydata()
    assert list(loss) == [row["loss"] for row in ROWS]
    assert matplotlib.image.imread(tmp_path / "live" / "panel.png").std() > 0.02


def test_without_an_evaluation_there_are_four_curves():
    panel = LivePanel()
    panel(ROWS[0])
    assert len(panel.show().axes) == 4 and panel.evaluations == []


def test_wrong_evaluations_and_trackers_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="every=0"):
        LivePanel(every=0)
    with pytest.raises(ValueError, match=r"must give all and n, .*it gave \['right'\]"):
        LivePanel(lambda: {"right": 1})(ROWS[0])
    with pytest.raises(ValueError, match="choose one of tensorboard, wandb, trackio"):
        tracker("mlflow", tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"tracker wandb is not installed: pip install"):
        tracker("wandb", tmp_path)


def test_a_report_counts_as_an_evaluation():
    panel = LivePanel(lambda: {"pass_rate": 0.5, "low": 0.2, "high": 0.8, "n": 9})
    panel(ROWS[0])
    assert panel.evaluations == [(0, 0.5, 0.2, 0.8)]


def needs(name):
    found = importlib.util.find_spec(name)
    return pytest.mark.skipif(not found, reason=f"{name} is missing: pip install 'oelkit[track]'")


@needs("tensorboard")
def test_tensorboard_reads_what_was_tracked(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for part in (ROWS[:4], ROWS[4:]):  # stopped and resumed
        track = tracker("tensorboard", tmp_path, "demo")
        for row in part:
            track(row)
    events = EventAccumulator(str(tmp_path / "demo"))
    events.Reload()
    got = events.Tensors("round 1/loss")
    assert [event.step for event in got] == list(range(7))
    values = [event.tensor_proto.float_val[0] for event in got]
    assert values == pytest.approx([row["loss"] for row in ROWS])


@needs("wandb")
def test_wandb_writes_offline(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    track = tracker("wandb", tmp_path, "demo")
    track(ROWS[0])
    assert wandb.run.summary["round 1/loss"] == ROWS[0]["loss"]
    wandb.finish()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_trackio_writes_where_it_was_asked_to(tmp_path, monkeypatch):
    """Whatever tracker was made before."""
    monkeypatch.setenv("TRACKIO_DIR", "")
    monkeypatch.delenv("TRACKIO_DIR")
    logged = []
    library = SimpleNamespace(init=lambda **_: None, log=lambda row: logged.append(row["at"]))
    monkeypatch.setitem(sys.modules, "trackio", library)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: None))
    tracker("wandb", tmp_path / "first")
    tracker("trackio", tmp_path / "second")(ROWS[0])
    assert os.environ["TRACKIO_DIR"] == str(tmp_path / "second") and logged == [ROWS[0]["step"]]


@pytest.mark.slow
def test_watching_changes_nothing(settings, tmp_path):
    """Compares the bytes of an adapter evaluated during training with one that was not."""
    small, seen = replace(settings, rounds=1), []
    quiet = by_hand(Run(tmp_path / "quiet", small, progress=False))
    quiet.distill(1)
    watched = Run(tmp_path / "watched", small, progress=False)
    panel = LivePanel(watched.probe, 1, tmp_path / "panel.png")
    watched.on_step = several(panel, seen.append)
    by_hand(watched).distill(1)
    name = "round_1/adapter/adapter_model.safetensors"
    assert (quiet.folder / name).read_bytes() == (watched.folder / name).read_bytes()
    rows = read_jsonl(watched.folder / "metrics.jsonl")
    assert [row["loss"] for row in seen] == [row["loss"] for row in rows]
    assert seen[0]["arm"] == "round 1" and len(panel.evaluations) == small.steps

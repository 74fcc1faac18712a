"""The benchmarks run on the embedded model and tiny sizes. Speed is not tested here."""

import json
from pathlib import Path
from subprocess import CompletedProcess

import arms
import bench
import bench_plot
import gpu_learn
import pytest
from helpers import assert_whole

pytestmark = pytest.mark.slow

STEP = {
    "arm": "ours",
    "model": "micro",
    "quantize": "auto",
    "repeats": 1,
    "states": 2,
    "reply": 4,
    "experience": 300,
}


def test_a_figure_from_its_processes_to_the_table(tmp_path, capsys):
    out = tmp_path / "results.jsonl"
    assert bench.main(["--only", "kl", "--rows", "256", "--repeats", "1", "--out", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert any("naive" in line["peer_name"] for line in lines)
    shown = capsys.readouterr().out
    for line in lines:
        assert line["what"] in shown
        assert line["ours"] > 0 and line["peer"] > 0 and line["n"] == 1 and line["model"] == "micro"
        # targets apply to another model
        assert line["ratio"] == line["peer"] / line["ours"] and line["target"] is None
        # the arms compute the same loss
        assert line["peer_gradient_error"] < 1e-4 > line["ours_gradient_error"]
        assert str(Path.cwd()) not in json.dumps(line)


def test_the_start_and_the_waiting_threads_are_measured(tmp_path, monkeypatch):
    out, asked = tmp_path / "results.jsonl", []

    def run(command, env=None, **_):
        asked.append((command, env))
        return CompletedProcess(command, 0, '{"seconds": [1.0], "peak": null}\n', "")

    monkeypatch.setattr(bench.subprocess, "run", run)
    monkeypatch.setattr(bench, "_gflops", lambda: 1.0)
    assert bench.main(["--only", "start,waiting", "--repeats", "1", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    whats = [
        "start of python -c import oelkit: time",
        "start of python -m oelkit --help: time",
        "distillation step, waiting threads soon sleep (GOMP_SPINCOUNT=1000): time",
    ]
    assert [row["what"] for row in rows] == whats
    assert all(row["ours"] > 0 and row["peer"] > 0 for row in rows)
    *starts, (_, ours), (_, peer) = asked
    assert len({tuple(command) for command, _ in starts}) == 3 and len(starts) == 6
    assert bench.WAITING.items() <= ours.items() and not bench.WAITING.keys() & peer.keys()


def test_a_step_counts_what_it_reads():
    found = arms.measure_step(STEP)
    assert 280 < found["experience_tokens"] <= 300
    assert found["teacher_tokens"] > found["experience_tokens"] + found["student_tokens"]
    assert len(found["seconds"]) == 1 and found["first"] > 0 and 1 <= found["reply_tokens"] <= 4


@pytest.mark.parametrize("arm", ["ours", "padded", "alone"])
def test_turns(arm):
    found = arms.measure_turns(STEP | {"arm": arm, "games": 2, "turns": 2})
    assert found["turns"] == 4 and found["seconds"][0] > 0 and found["prompt_tokens"] > 280


@pytest.mark.parametrize("arm", ["rollout", "extract"])
def test_scaling(arm):
    assert arms.measure_scaling(STEP | {"arm": arm, "games": 3})["seconds"][0] > 0


def test_an_arm_that_fails_is_said(tmp_path, capsys, monkeypatch):
    out = tmp_path / "results.jsonl"
    (tmp_path / "arms.py").write_text("raise MemoryError('too large')")
    monkeypatch.setattr(bench, "HERE", tmp_path)
    monkeypatch.setattr(bench, "_gflops", lambda: 1.0)
    assert bench.main(["--only", "cost", "--out", str(out)]) == 1
    said = capsys.readouterr().out
    assert "failed with exit status 1: MemoryError: too large" in said and not out.exists()


def test_benchmarks_draws_each_line_once_with_its_target():
    path = Path(__file__).parents[2] / "data/results/bench_cpu.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    figure = bench_plot.benchmarks(rows)
    axes = figure.axes
    assert sum(len(axis.patches) for axis in axes) == len(rows)
    ends = sorted(bar.get_x() + bar.get_width() for axis in axes for bar in axis.patches)
    assert ends == pytest.approx(sorted(row["ratio"] for row in rows))
    marks = [line for axis in axes for line in axis.lines if line.get_color() == "#d55e00"]
    assert len(marks) == sum(row["target"] is not None for row in rows)
    # "more is better" and "less is better" do not share an axis
    costs = [row["ratio"] for row in rows if row["ratio_is"] == "ours / peer"]
    assert sorted(bar.get_width() for bar in axes[2].patches) == pytest.approx(sorted(costs))
    assert axes[2].get_xscale() == "linear" and "less is better" in axes[2].get_xlabel()
    assert [axis.get_xlabel() for axis in axes[:2]] == ["Times faster", "Times less memory"]
    assert all(label.get_fontsize() >= 9 for axis in axes for label in axis.get_yticklabels())
    assert rows[0]["model"] in figure.get_suptitle()
    assert_whole(figure)


def test_runs_that_wait_for_one_that_failed_are_left_out_at_once(tmp_path, monkeypatch):
    first = gpu_learn.Job("first", ["-c", "raise SystemExit('no items')"], tmp_path / "0.jsonl")
    second = gpu_learn.Job("second", ["-c", ""], tmp_path / "1.jsonl", first)
    monkeypatch.setattr(gpu_learn, "_jobs", lambda *_: [first, second])
    out = tmp_path / "learn.jsonl"
    gpu_learn.learn(gpu_learn.Call(out, 300, small=True), "micro", 1, 1, 1)
    failed, left_out = map(json.loads, out.read_text().splitlines())
    assert (failed["run"], failed["error"]) == ("first", "no items\n")
    assert (left_out["run"], left_out["left_out"]) == ("second", "no first")


def test_learning_on_a_card_is_rehearsed_with_the_settings_that_it_names(
    micro_folder, tmp_path, monkeypatch
):
    out = tmp_path / "new" / "learn.jsonl"
    what = ["--small", "--model", str(micro_folder), "--rounds=1", "--seeds=1", "--at-once=1"]
    monkeypatch.setattr("sys.argv", ["gpu_learn.py", *what, "--out", str(out), "--seconds=1000"])
    assert gpu_learn.main() == 0
    first, other = map(json.loads, out.read_text().splitlines())
    assert first["figure"] == "learn" and {"base", "in_context", "consolidated"} <= first.keys()
    assert "temperature=0.7" in other["run"] and other["in_context"] == first["in_context"]
    few = {"batch_size": 2, "state_games": 2, "steps": 1, "eval_maps": 2, "gate": "off"}
    runs = sorted(out.with_suffix("").glob("*/runs/*"))
    settings = [json.loads((run / "run.json").read_text())["settings"] for run in runs]
    assert all(one.items() >= few.items() for one in settings)
    assert [one["temperature"] for one in settings] == [1.0, 0.7]

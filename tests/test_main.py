"""The command line, through its real entry: what it does to files, and one clear line for every
mistake.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from helpers import make_game

from oelkit import __main__ as cli
from oelkit.curation import Curation
from oelkit.records import Evidence, ExperienceItem, State, Trajectory, read_jsonl, write_jsonl
from oelkit.runs.settings import Settings

ROOT = Path(__file__).parent.parent


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory that is a repository root of its own, so that runs/ lies in it."""
    for name in ("notebooks", "oelkit"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(place, capsys):
    """Runs a command in this process; (status, stdout, stderr)."""

    def run(*arguments):
        try:
            status = cli.main([str(a) for a in arguments])
        except SystemExit as end:  # argparse
            status = end.code
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def refused(answer, *parts):
    """It ended with 1 and one line on stderr that says `parts`."""
    status, out, err = answer
    lines = err.strip().splitlines()
    assert (status, out, len(lines)) == (1, "", 1), answer
    assert lines[0].startswith("error: ") and all(part in lines[0] for part in parts), lines[0]


def items(path, texts, draws=2):
    write_jsonl(
        path,
        [
            ExperienceItem(f"i{n}", text, (Evidence("g", 0),), "tiny", 1, n % draws)
            for n, text in enumerate(texts)
        ],
    )
    return path


def flags(tiny):
    given = {
        name: getattr(tiny, name)
        for name in (
            "model",
            "env",
            "extract_games",
            "state_games",
            "num_draws",
            "steps",
            "batch_size",
            "eval_maps",
            "prompt_set",
            "rounds",
            "lr",
        )
    }
    return [
        part
        for name, value in given.items()
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]


@pytest.mark.slow
def test_the_real_command_line():
    """Once in a process of its own: the module starts, a mistake is one line and status 1, usage is
    status 2.
    """

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "oelkit", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            timeout=300,
        )

    wrong = run(
        "play",
        "--env",
        "oelkit/Nowhere-v0",
        "--out",
        os.devnull + ".jsonl",
        "--model",
        "/no/such/model",
    )
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert (
        wrong.stderr.startswith("error: unknown environment 'oelkit/Nowhere-v0'")
        and wrong.stderr.count("\n") == 1
    )
    usage = run("loop", "--rounds", "many")
    assert usage.returncode == 2 and "--rounds: invalid int value: 'many'" in usage.stderr


@pytest.mark.parametrize(
    "command", ["notebooks", "loop", "play", "extract", "distill", "evaluate", "report"]
)
def test_help(call, command):
    status, out, _ = call(command, "--help")
    assert status == 0 and "python -m oelkit loop --run first --resume" in out
    assert command in call("--help")[1]


def test_the_flags_of_the_loop_are_its_settings():
    args = cli.parser().parse_args(["loop"])
    assert {f.name: getattr(args, f.name) for f in fields(Settings)} == {
        f.name: f.default for f in fields(Settings)
    } | {"lr": 1e-3}  # the scale tiny
    args = cli.parser().parse_args(
        [
            "loop",
            "--no-run-ablations",
            "--no-carry-experience",
            "--top-k",
            "256",
            "--lr",
            "2e-3",
            "--prompt-set",
            "paper",
            "--rounds",
            "5",
        ]
    )
    assert (args.run_ablations, args.carry_experience, args.top_k, args.lr) == (
        False,
        False,
        256,
        2e-3,
    )
    assert (args.prompt_set, args.rounds) == ("paper", 5)
    args = cli.parser("paper").parse_args(["loop", "--steps", "5"])
    paper = asdict(Settings.of("paper", steps=5))
    assert {name: getattr(args, name) for name in paper} == paper


def test_a_scale_is_other_defaults_and_a_flag_beside_it_holds(call, place):
    refused(call("loop", "--scale", "paper", "--env", "none/Such-v0"), "none/Such-v0")
    refused(call("loop", "--scale", "small", "--dtype", "float8"), "float8", "bfloat16")


@pytest.mark.slow
def test_loop_stops_resumes_and_reports(call, place, settings):
    run = place / "runs" / "first"
    refused(
        call("loop", "--run", "first", *flags(settings)), "round 1", "write items by hand into"
    )  # a random model
    refused(call("loop", "--run", "first", *flags(settings)), "--resume", "--run NAME")
    refused(call("report", "--run", "first"), "no metrics.json", "loop --run first --resume")
    items(run / "round_1" / "items.jsonl", ["H is a hole.", "G is the goal."])
    status, out, err = call("loop", "--run", "first", "--resume", *flags(settings))
    assert status == 0, err
    metrics = json.loads((run / "metrics.json").read_text())
    assert [r["round"] for r in metrics["rounds"]] == [1, 2] and set(metrics["arms"]) == {
        "raw",
        "forward_kl",
        "sft",
    }
    assert (
        f"report: {run / 'report.html'}" in out
        and "consolidated" in out
        and "4 held-out maps" in out
    )
    assert "H is a hole." in (run / "report.html").read_text(encoding="utf-8")
    (run / "report.html").unlink()
    assert call("report", "--run", "first") == (0, out, "") and (run / "report.html").exists()
    refused(
        call("loop", "--run", "first", "--resume", *flags(settings), "--seed", "3"),
        "other settings",
        "seed was 0",
    )
    with (run / "round_1" / "trajectories.jsonl").open("a") as f:
        f.write("{")
    refused(call("report", "--run", "first"), "trajectories.jsonl, line 3", "not JSON")


def test_steps_on_files(call, place, settings):
    tiny = ["--model", settings.model, "--prompt-set", settings.prompt_set]
    status, out, err = call(
        "play", *tiny, "--env", settings.env, "--seeds", "4:7", "--out", "new/games.jsonl"
    )
    assert (status, out) == (0, "written: new/games.jsonl\n"), err
    games = read_jsonl("new/games.jsonl", Trajectory)
    assert [g.seed for g in games] == [4, 5, 6]
    refused(
        call("play", *tiny, "--out", "new/games.jsonl"),
        "new/games.jsonl is there already",
        "--force",
    )
    notes = place / "notes.md"
    notes.write_text("H is a hole.")
    status, _, err = call(
        "play",
        *tiny,
        "--env",
        settings.env,
        "--seeds",
        "4:7",
        "--experience",
        notes,
        "--force",
        "--out",
        "new/games.jsonl",
    )
    assert status == 0, err
    told = read_jsonl("new/games.jsonl", Trajectory)
    assert all("H is a hole." in t.prompt[0]["content"] for g in told for t in g.turns)
    status, _, err = call(
        "extract",
        *tiny,
        "--trajectories",
        "new/games.jsonl",
        "--num-draws",
        "2",
        "--previous",
        notes,
        "--out",
        "items.jsonl",
    )
    assert status == 0 and read_jsonl("items.jsonl", ExperienceItem) is not None, err
    items(place / "items.jsonl", ["H is a hole.", "G is the goal."])
    status, out, err = call(
        "distill",
        *tiny,
        "--trajectories",
        "new/games.jsonl",
        "--experience",
        "items.jsonl",
        "--steps",
        "2",
        "--batch-size",
        "2",
        "--out",
        "adapter",
    )
    assert (
        status == 0 and "loss" in out and (place / "adapter" / "adapter_model.safetensors").exists()
    ), err
    status, out, err = call(
        "evaluate",
        *tiny,
        "--adapter",
        "adapter",
        "--env",
        settings.env,
        "--eval-maps",
        "3",
        "--out",
        "rate.json",
    )
    assert status == 0 and "on 3 maps of oelkit/FrozenLake3x3Unseen-v0" in out, err
    assert re.search(r"a difference of 10 points: \d+ episodes an arm", out)
    assert json.loads((place / "rate.json").read_text())["n"] == 3


def test_experience_files(place):
    (place / "plain.txt").write_text("H is a hole.\n")
    (place / "experience.md").write_text("## Draw 0\na\nb\n\n## Draw 1\nc\n\n")
    path = str(items(place / "items.jsonl", ["a", "b", "c"]))
    assert cli._texts(None) == [""] and cli._texts("plain.txt") == ["H is a hole."]
    assert cli._texts("experience.md") == ["a\nb", "c"]
    assert cli._texts(path) == [
        "- EXPERIENCE ITEM: a\n- EXPERIENCE ITEM: c",
        "- EXPERIENCE ITEM: b",
    ]
    curation = Curation.open(path, place / "curation.jsonl")
    curation.accept("i1")
    curation.add("mine")
    assert cli._texts(path) == ["- EXPERIENCE ITEM: b\n- EXPERIENCE ITEM: mine"]


def test_bad_input_is_one_line_and_leaves_nothing(call, place, settings):
    tiny = ["--model", settings.model]
    for name in ("games", "bad", "none"):
        write_jsonl(place / f"{name}.jsonl", [make_game()] if name != "none" else [])
    with open("bad.jsonl", "a") as f:
        f.write('{"schema": 1, "id": "x"}\n')
    write_jsonl("states.jsonl", [State("s", "t", 0, [{"role": "user", "content": "x"}])])
    path = items(place / "items.jsonl", ["a", "b"])
    Curation.open(path, place / "curation.jsonl").reject(["i0", "i1"])
    before = sorted(place.rglob("*"))
    distill = ["distill", *tiny, "--out", "a", "--steps", "1"]
    refused(
        call("play", *tiny, "--env", "oelkit/Nowhere-v0", "--out", "x"),
        "unknown environment",
        "FrozenLake4x4-v0",
    )
    refused(call("play", "--model", "no/such/model/here", "--out", "x"), "no/such/model/here")
    refused(call("loop", *tiny, "--run", "a/b"), "run name 'a/b'")
    refused(call("report", "--run", "../x"), "run name '../x'")
    refused(call("loop", *tiny, "--env", "Nowhere-v0"), "unknown environment 'Nowhere-v0'")
    refused(call("loop", *tiny, "--rounds", "0"), "rounds is 0")
    refused(
        call("extract", *tiny, "--trajectories", "bad.jsonl", "--out", "x"),
        "bad.jsonl, line 2",
        "'env_id'",
    )
    refused(call("extract", *tiny, "--trajectories", "none.jsonl", "--out", "x"), "empty")
    refused(
        call("extract", *tiny, "--trajectories", "absent.jsonl", "--out", "x"),
        "absent.jsonl: No such file",
    )
    refused(
        call(*distill, "--trajectories", "none.jsonl", "--experience", "items.jsonl"),
        "trajectories are empty",
    )
    refused(
        call(*distill, "--states", "states.jsonl", "--experience", "items.jsonl"),
        "all were rejected",
    )
    refused(
        call(*distill, "--states", "states.jsonl", "--experience", "games.jsonl"),
        "games.jsonl, line 1",
        "'text'",
    )
    refused(call("evaluate", *tiny, "--eval-maps", "0"), "no ")
    refused(call("evaluate", *tiny, "--adapter", "no/adapter"), "no/adapter")
    assert call("play", "--seeds", "5", "--out", "x")[0] == 2
    assert call("distill", "--experience", "x", "--out", "y")[0] == 2
    assert sorted(place.rglob("*")) == before


def test_unwritable_run_folder(call, place, settings):
    (place / "runs").write_text("a file where a folder should be")
    refused(
        call("loop", "--model", settings.model, "--run", "first"),
        "cannot write the run folder",
        "runs/first",
    )


def test_interrupt_says_how_to_go_on(call, place, settings, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("oelkit.runs.work.rollout", stop)  # Ctrl-C while it plays
    status, out, err = call("loop", "--run", "first", *flags(settings))
    assert (status, out, err) == (
        130,
        "",
        "stopped in rollout of round 1; go on with `python -m oelkit loop --run first --resume`\n",
    )

"""The first ten minutes: the installation, and what the commands create in an empty folder."""

import os
import re
import socket
import subprocess
import sys
import sysconfig
import venv
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import make_metrics
from transformers import AutoTokenizer

from oelkit import __main__ as cli
from oelkit.given import did_you_mean
from oelkit.model.known import KNOWN
from oelkit.project import shipped
from oelkit.records import Trajectory, read_jsonl, write_text
from oelkit.views import app

ROOT = Path(__file__).parent.parent


def said(capsys, *arguments):
    try:
        status = cli.main(list(arguments))
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize(
    "line, meant",
    [
        ("plya --out x", "play"),
        ("play --sedes 0:3 --out x", "--seeds"),
        ("loop --scale smal", "small"),
        ("loop --round 2", "--rounds"),
        ("play --out x --adap y", "--adapter"),
        ("play --env oelkit/FrozenLak4x4-v0 --out x", "oelkit/FrozenLake4x4-v0"),
        ("play --env oelkit.envs:oelkit/Sokoban-v1 --out x", "oelkit.envs:oelkit/Sokoban-v0"),
        ("loop --run x --stepz 3", "--steps"),
        ("curate x --rond 1", "--round"),
        ("play --outt x", "--out"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_one_that_was_meant(line, meant, capsys):
    status, _, err = said(capsys, *line.split())
    assert status in (1, 2) and f"(did you mean {meant}?)" in err, err


def test_a_misspelt_model_is_answered_with_the_one_that_was_meant(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "oelkit", *["play", "--model", "Qwen/Qwen3-1.7", "--out", "x"]],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "(did you mean Qwen/Qwen3-1.7B?)" in done.stderr, done.stderr


def test_what_is_far_from_everything_is_not_guessed(capsys):
    assert did_you_mean("oelkit/Nowhere-v0", ["oelkit/Sql-v0", "oelkit/Sokoban-v0"]) == ""
    assert did_you_mean("a/B", ["a/B", "a/C"]) == ""  # itself
    status, _, err = said(capsys, "play", "--out", "x", "--frobnicate")
    assert status == 2 and "unrecognized arguments: --frobnicate" in err and "mean" not in err


def test_version_and_doctor(capsys):
    assert said(capsys, "--version")[:2] == (0, "oelkit 0.1.0\n")
    status, out, _ = said(capsys, "doctor")
    assert status == 0 and "runs on: " in out and "GiB free of" in out
    assert all(f"\n{name} " in out for name in KNOWN)
    assert "It was loaded and has answered." in out
    assert "\nNothing is missing." in out or "\nOptional, but not installed:\n  " in out
    rows = [line for line in out.splitlines() if line.startswith(tuple(KNOWN))]
    assert len({line.index("GiB") for line in rows}) == 1, "one column"


def test_the_sizes_of_known_models_are_theirs():
    """Compares them with the numbers of weights on their model cards."""
    cards = {"Qwen3-1.7B": 1.7e9, "Qwen3-8B": 8.2e9, "SmolLM2-135M": 135e6, "Qwen2.5-0.5B": 494e6}
    for name, sizes in KNOWN.items():
        for card, weights in cards.items():
            if card in name:
                assert sizes.linear + sizes.embedding == pytest.approx(weights, rel=0.02)
        assert sizes.training_bytes("nf4") < sizes.training_bytes("bfloat16")
        weights = sizes.linear + sizes.embedding
        assert 2 * weights < sizes.training_bytes("bfloat16") < 2 * weights + 4 * 2**30
        assert 4 * weights < sizes.training_bytes("float32") < 4 * weights + 4 * 2**30


@pytest.mark.slow
def test_what_init_leaves_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, out, _ = said(capsys, "init", "mine")
    assert status == 0 and "python mine/learn.py" in out
    assert {p.name for p in (tmp_path / "mine").iterdir()} == {
        "learn.py",
        "prompts.toml",
        "world.py",
    }
    done = subprocess.run(
        [sys.executable, "mine/learn.py", "micro", "1"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *_, before, in_context, after, why, then = done.stdout.splitlines()
    assert [row.split()[0] for row in (before, in_context, after)] == ["before", "in", "after"]
    assert "cannot learn this one" in why and "mine/learn.py Qwen/" in then
    assert (tmp_path / "mine/my_adapter/adapter_config.json").exists()
    (tmp_path / "mine/world.py").write_text("mine")
    assert "already exists and differs" in said(capsys, "init", "mine")[2]


def test_neither_what_a_model_wrote_nor_a_log_steers_the_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    metrics = make_metrics()
    metrics["rounds"][0]["pass_rate"]["base"]["maps"] = 64
    write_text("runs/first/round_1/experience.md", "- EXPERIENCE ITEM: \x1b[31mred")
    monkeypatch.setattr("oelkit.runs.run.Run", lambda *_: SimpleNamespace(run_all=lambda: metrics))
    status, out, _ = said(capsys, "demo")
    assert status == 0 and "\\x1b[31mred" in out and "\x1b" not in out
    write_text("log.jsonl", '{"messages": [{"role": "user", "content": "?"}, {"role": "assistant",')
    with open("log.jsonl", "a") as log:
        log.write(' "content": "!"}]}\n{"\\u001b[31mred": 1}\n')
    status, out, _ = said(capsys, "import", "log.jsonl", "--run", "mine", "--bad", "skip")
    assert status == 0 and "\\x1b[31mred" in out and "\x1b" not in out


def files_below(*folders):
    return {p for folder in folders for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_fresh_environment_needs_no_clone(tmp_path):
    """pip installs the project into a new environment, which shares this one's other packages. The
    demo then runs in an empty folder and writes nowhere else.
    """
    place, home, empty = (tmp_path / name for name in ("env", "home", "empty"))
    for folder in (home, empty):
        folder.mkdir()
    venv.create(place, with_pip=False)
    scripts = place / ("Scripts" if os.name == "nt" else "bin")
    python, oelkit = scripts / "python", scripts / "oelkit"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, str(ROOT)], check=True)
    vary = {"base": str(place), "platbase": str(place)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=vary))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "XDG", "MPL"))}
    env |= {"HOME": str(home), "USERPROFILE": str(home), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(*command):
        done = subprocess.run(command, cwd=empty, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert str(site) in run(python, "-c", "import oelkit; print(oelkit.__file__)")
    before = files_below(home, place)
    out = run(oelkit, "demo")
    arms = re.findall(r"^  (before|in context|after) +\d+% \[", out, re.M)
    assert arms == ["before", "in context", "after"]
    assert "oelkit curate first" in out and (empty / "runs/first/figures/demo.png").exists()
    assert {path.name for path in empty.iterdir()} == {"runs"}
    # matplotlib's font cache, shared by all programs
    written = files_below(home, place) - before
    assert {p.name for p in written if "fontlist" not in p.name} == set(), written
    run(oelkit, "notebooks", "--copy", "mine")
    assert (empty / "mine/notebooks/00_tour.ipynb").exists()


def test_what_an_app_shows_of_a_run_of_a_round_and_of_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k in (1, 2, 10):
        folder = tmp_path / f"runs/mine/round_{k}"
        folder.mkdir(parents=True)
        (folder / "items.jsonl").write_text("")
    last = tmp_path / "runs/mine/round_10/items.jsonl"
    assert app.place("curate", "mine", None) == last
    assert app.place("curate", "runs/mine", 2).parent.name == "round_2"
    assert app.place("curate", "runs/mine/round_1", None).parent.name == "round_1"
    assert app.place("curate", str(last), None) == last
    for one in (last, last.parent):  # else it would show another round than the one asked for
        with pytest.raises(ValueError, match="items.jsonl is a file: leave out the round"):
            app.place("curate", str(one), 1)
    wrong = ("mine", 3), ("other", None), ("runs/mine/item.jsonl", None), ("my games.jsonl", None)
    for what, k in wrong:
        with pytest.raises(ValueError, match=r"no such file, and (no round of .*|.* holds no run)"):
            app.place("curate", what, k)
    with pytest.raises(ValueError, match=r"trajectories\.jsonl"):
        app.place("view", "mine", None)


def test_apps_say_what_is_missing_before_a_server_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as without:
        without.setattr(app, "find_spec", lambda name: None)
        assert "no such file" in said(capsys, "curate", "nothing")[2]
    (tmp_path / "items.jsonl").write_text("{}\n")
    assert "items.jsonl, line 1" in said(capsys, "curate", "items.jsonl")[2]
    (tmp_path / "items.jsonl").write_text("")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert (
            f"port {port} at 127.0.0.1" in said(capsys, "curate", "items.jsonl", "--port", port)[2]
        )
    monkeypatch.setattr(app, "find_spec", lambda name: None)
    assert "pip install voila" in said(capsys, "curate", "items.jsonl")[2]


def test_an_editors_server_waits_for_no_torch(tmp_path, monkeypatch, capsys):
    (tmp_path / "round_1").mkdir()
    (tmp_path / "round_1/items.jsonl").write_text("")
    (tmp_path / "run.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "oelkit.model.source", None)  # which loads tokenizers
    monkeypatch.setattr(app.signal, "signal", lambda *_: None)
    done, tries = [], []

    class Server:
        stdout, returncode = (), 0

        def __init__(self, *_, **__):
            self.wait = lambda *_: done.append("wait") or 0
            self.terminate, self.kill = (partial(done.append, x) for x in ("terminate", "kill"))

        def poll(self):
            return None

    def connect(*_):
        tries.append(capsys.readouterr().out)
        if len(tries) < 3:
            raise ConnectionRefusedError
        return nullcontext()

    monkeypatch.setattr(app.subprocess, "Popen", Server)
    monkeypatch.setattr(app.socket, "create_connection", connect)
    status, out, err = said(capsys, "curate", str(tmp_path), "--no-browser")
    assert (status, err) == (0, "") and "(Ctrl+C ends it)" in out
    assert tries == ["", "", ""], "the address is told once somebody answers there"
    assert done == ["wait", "terminate", "wait", "kill"]


def test_an_editors_tokenizer_waits_for_no_torch():
    code = "import sys; from oelkit.model.source import load_tokenizer; "
    code += "t = load_tokenizer('micro'); print(t.apply_chat_template([{'role': 'user', 'content': "
    code += "'Move?'}], tokenize=False), t('Move?').input_ids, 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    whole = AutoTokenizer.from_pretrained(shipped("data/micro"))
    asked = whole.apply_chat_template([{"role": "user", "content": "Move?"}], tokenize=False)
    assert out.stdout == f"{asked} {whole('Move?').input_ids} False\n"


def test_a_chat_log_is_viewed_as_it_is():
    games = app.games(shipped("data/logs/lake_chats.jsonl"))
    assert len(games) > 5 and all(isinstance(game, Trajectory) for game in games)
    sample = shipped("data/sample/trajectories.jsonl")
    assert app.games(sample) == [g for g in read_jsonl(sample, Trajectory) if g.turns]

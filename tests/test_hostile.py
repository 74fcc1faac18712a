"""Hostile input: a few of the inputs of `make soak`, and the faults that these found."""

import json
import os
import socket
import sqlite3
from functools import partial

import nbformat
import pytest
from fuzz import TARGETS, Forbidden, query, target, watched
from helpers import Doors

from oelkit import executed, load_policy, text
from oelkit.envs import parse_action, parse_board
from oelkit.envs.sql import SqlEnv, query_of
from oelkit.envs.text_env import TextEnvWrapper
from oelkit.likeness import similar
from oelkit.logs import read_chats
from oelkit.model.plain import PlainModel
from oelkit.model.served import ServedModel
from oelkit.model.source import load_tokenizer
from oelkit.notebooks import run_notebooks
from oelkit.redaction import redact
from oelkit.runs import files
from oelkit.runs.files import locked
from oelkit.runs.stages import FORM, stages_of, status
from oelkit.views import app
from oelkit.views.report import write_report

N = 40_000
LONG = {
    f"{begin!r} and {piece!r} over and over, {end!r}": begin + piece * (N // len(piece)) + end
    for end in ("", "!")  # an end that does not fit makes an expression try again
    for begin in ("", "[", "- EXPERIENCE ITEM:", "**")
    for piece in (
        " ",
        "[",
        "[ ",
        "a",
        "a ",
        "\n",
        "**",
        "`",
        "<think>",
        "EXPERIENCE ITEM:",
        "- ",
        "1",
    )
}
READERS = {
    "items": text.parse_items,
    "strict items": lambda said: text.parse_items(said, strict=True),
    "answer": text.answer_text,
    "nothing new": text.says_nothing_new,
    "wording": text.wording,
    "difference": lambda said: text.word_diff(said, said[1:] + "."),
    "action": parse_action,
    "board": parse_board,
    "query": query_of,
    "redact": redact,
}


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_input_is_read_or_refused(name):
    test, counts = target(name, 60)
    test()
    assert counts["inputs"] >= 60 or name == "names"


@pytest.mark.parametrize("name", READERS)
def test_no_reader_takes_longer_than_its_input_grows(name):
    for what, said in LONG.items():
        with watched(longest := [0.0]):
            READERS[name](said)
        assert longest[0] < 2, what  # all take below 0.2 s of CPU, one that is quadratic 7


# large rows to sort, more than SQLite keeps in memory
MANY = f"SELECT '{'x' * 1_800}' FROM kunde a, kunde b, kunde c, kunde d ORDER BY b.name, c.name, 1"


@pytest.mark.parametrize("said", ["ATTACH 'a.db' AS a", "VACUUM INTO 'b.db'", MANY])
def test_what_sqlite_writes_is_seen(said, tmp_path, monkeypatch):
    with watched([0.0]):
        query(said)
    world = SqlEnv()
    world.connection.set_authorizer(None)
    world.connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 1)
    world.connection.executescript("PRAGMA query_only = OFF; PRAGMA temp_store = FILE")
    monkeypatch.setattr("fuzz.SHOP", world)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Forbidden, match="file"), watched([0.0]):
        query(said)


@pytest.mark.parametrize("piece", ["7 word ", "from "])
def test_nor_does_the_likeness_of_items(piece):
    with watched([0.0]):  # with the square of the words it takes over 20 s
        assert similar([piece * 30_000, piece * 29_000]) == [[0, 1]]


def test_nor_does_the_copy_of_a_notebook():
    output = nbformat.v4.new_output("stream", text="1%\r2%\r\n" + "x" * 400_000)
    cell = nbformat.v4.new_code_cell("print()", outputs=[output])
    with watched([0.0]):  # nbconvert takes minutes
        executed.clean(nbformat.v4.new_notebook(cells=[cell]))
    assert cell.outputs[0].text == "2%\r\n" + "x" * 400_000


def test_nor_does_a_world_of_ones_own():
    env = TextEnvWrapper(Doors(), 99)
    env.reset(seed=0)
    for said in LONG.values():
        with watched([0.0]):
            env.step(said)
    assert env.step("so [ go up ] or [ left ] ]")[-1]["action"] == "left"


@pytest.mark.parametrize(
    "data", ["[" * 5000, "[1", "[\ud800"], ids=["deep", "cut off", "not UTF-8"]
)
def test_a_list_of_chats_that_is_not_json_names_the_file(tmp_path, data):
    path = tmp_path / "chats.json"
    path.write_bytes(data.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=r"chats\.json: not JSON"):
        read_chats(path)


def stranger(folder, settings=None, **files):
    record = {"form": FORM, "settings": {"rounds": 2, **(settings or {})}, "prompts": {"name": "x"}}
    for name, value in {"run": record, **files}.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize("start", ["../../elsewhere", -1, 2, True, None, [0]])
def test_a_strangers_chain_names_no_folder_but_a_rounds(tmp_path, start):
    assert stages_of(stranger(tmp_path, chain={"start": {"2": 0}})).start(2) == 0
    with pytest.raises(ValueError, match=r"chain\.json: round '2' cannot start from"):
        stages_of(stranger(tmp_path, chain={"start": {"2": start}})).start(2)


@pytest.mark.parametrize(
    "settings", [{"rounds": 10**9}, {"rounds": "2"}, {"lora_rank": 10**6}, {"hook": "x"}]
)
def test_a_strangers_settings_are_of_their_kind_and_range(tmp_path, settings):
    with pytest.raises(ValueError, match=rf"run\.json: .*{next(iter(settings))}"):
        status(stranger(tmp_path, settings))


@pytest.mark.parametrize(
    "manifest", [[], {"inputs": {}}, {"inputs": 1, "outputs": {}, "settings": {}}]
)
def test_a_damaged_manifest_names_the_file(tmp_path, manifest):
    stranger(tmp_path, **{"round_1/manifests/rollout": manifest})
    (tmp_path / "round_1/trajectories.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"rollout\.json: damaged"):
        status(tmp_path)
    with pytest.raises(ValueError, match=r"metrics\.json: damaged \(no object in it\)"):
        stages_of(stranger(tmp_path, **{"round_1/metrics": []})).lost(1)


LINKS = {
    "run.lock": "file",
    "metrics.jsonl": "file",
    "round_1/curation.jsonl": "file",
    "round_1": "folder",
    "figures": "folder",
    "notebooks": "folder",
}


@pytest.mark.parametrize("name", LINKS)
def test_nothing_is_written_through_a_link_out_of_a_run(tmp_path, name):
    outside, run = tmp_path / "outside", stranger(tmp_path / "runs/demo", metrics={})
    outside.mkdir()
    (outside / "file").write_text("mine\n")
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(outside / "file" if LINKS[name] == "file" else outside)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/01_a.ipynb").write_text('{"cells": [], "nbformat": 4, "metadata": {}}')
    found = rf"{name} is a symbolic link out of .*demo, to "
    with pytest.raises(ValueError, match=found), locked(run):
        pass
    with pytest.raises(ValueError, match=found):
        write_report(run)
    with pytest.raises(ValueError, match=found):
        run_notebooks(root=tmp_path)
    for show in (app.editor, app.viewer) if name == "round_1/curation.jsonl" else ():
        (run / "round_1/items.jsonl").write_text("")
        with pytest.raises(ValueError, match=found):
            show(run / "round_1/items.jsonl")
    assert [p.name for p in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "mine\n"
    (run / name).unlink()
    (run / "round_9").symlink_to(run / "figures")  # links within the run are allowed
    with locked(run):
        pass


def test_a_models_own_code_is_neither_run_nor_asked_about(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
    own = {name: "own.C" for name in ("AutoConfig", "AutoModelForCausalLM")}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": own}))
    tokenizer = {"tokenizer_class": "C", "auto_map": {"AutoTokenizer": ["own.C", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # as a person may answer Transformers
    plain = partial(PlainModel, base="micro", prompt_set="brief")
    for load in (load_policy, load_tokenizer, partial(ServedModel, "http://127.0.0.1:9", "m")):
        with pytest.raises(ValueError, match="not a usable causal language model .*custom code"):
            load(str(tmp_path))
    with pytest.raises(ValueError, match="custom code"):
        plain(tmp_path)
    assert not (tmp_path / "ran").exists()


PIPES = {  # what waited for them
    "run.json": status,
    "round_1/manifests/rollout.json": status,
    "round_1/trajectories.jsonl": status,
    "round_1/curation.jsonl": lambda run: app.editor(run / "round_1/items.jsonl", teacher=False),
    "comments.jsonl": lambda run: app.viewer(run / "round_1/items.jsonl"),
}


@pytest.mark.parametrize("name", PIPES)
def test_a_pipe_in_a_strangers_run_is_not_waited_for(tmp_path, name):
    stranger(
        tmp_path, **{"round_1/manifests/rollout": {"inputs": {}, "outputs": {}, "settings": {}}}
    )
    (tmp_path / "round_1/items.jsonl").write_text("")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}: is not a regular file"):
        PIPES[name](tmp_path)


def test_a_lock_that_says_nonsense_is_named(tmp_path, monkeypatch):
    stranger(tmp_path)
    host = socket.gethostname().encode()
    for said in (b"\xff\xfe\0", b"abc " + host, b"-1 " + host):
        (tmp_path / "run.lock").write_bytes(said)
        with locked(tmp_path):  # no such process runs here
            pass
    monkeypatch.setattr(files, "_flock", lambda _: None)  # a disk without locks
    for said in (b"abc " + host, b"999999999 " + host):
        (tmp_path / "run.lock").write_bytes(said)
        with locked(tmp_path):
            pass
    (tmp_path / "run.lock").write_bytes(b"\xff\xfe elsewhere")
    with (
        pytest.raises(ValueError, match=r"on elsewhere: wait for it to end, or delete .*run\.lock"),
        locked(tmp_path),
    ):
        pass


@pytest.mark.parametrize("metrics", [[], {}, {"rounds": [{}]}, {"rounds": 3, "run": None}])
def test_a_report_of_what_is_none_is_an_error_in_a_sentence(tmp_path, metrics):
    with pytest.raises(ValueError, match=r"base\.json or run\.json is damaged"):
        write_report(stranger(tmp_path, metrics=metrics))


def test_editor_and_viewer_open_what_stands_beside_a_persons_own_folders(tmp_path):
    for name in ("round_1", "round_10", "round_9", "round_old", "round_10 copy"):
        folder = stranger(tmp_path, {"model": 3}) / name
        folder.mkdir()
        (folder / "items.jsonl").write_text("")
    assert app.place("curate", str(tmp_path), None) == tmp_path / "round_10/items.jsonl"
    assert app.place("curate", str(tmp_path), 9) == tmp_path / "round_9/items.jsonl"
    with pytest.raises(ValueError, match="no round of .* has items.jsonl"):
        app.place("curate", str(tmp_path), 2)
    assert app.editor(tmp_path / "round_1/items.jsonl").budget is None  # what names no model
    for record in ('{"settings": {}}', "[]", '{"settings": {"model": "micro"}, "prompts": {}}'):
        (tmp_path / "run.json").write_text(record)
        assert app.editor(tmp_path / "round_1/items.jsonl").budget is None
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json: damaged"):
        app.editor(tmp_path / "round_1/items.jsonl")

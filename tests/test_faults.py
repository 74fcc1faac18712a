"""What can go wrong around a run, and its state afterwards: the rows of docs/faults.md that no
other test covers."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from importlib import import_module

import pytest
import torch
from helpers import ROOT, by_hand, in_mounts, make_model, read_only
from soak import outputs

from oelkit import load_policy
from oelkit.__main__ import main
from oelkit.curation import Curation
from oelkit.model.sampling import generate
from oelkit.records import ExperienceItem, State, write_jsonl
from oelkit.runs import measures, work
from oelkit.runs.driver import WORK
from oelkit.runs.run import Run
from oelkit.runs.stages import status
from oelkit.steps.distillation import distill
from oelkit.steps.extraction import extract
from oelkit.steps.rollouts import rollout

STEPS = [
    import_module(f"oelkit.steps.{name}")
    for name in ("rollouts", "extraction", "distillation", "evaluation")
]


@pytest.fixture(scope="module")
def small(settings):
    return replace(settings, rounds=1, run_ablations=False, gate="off", eval_maps=2)


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """Return what an undisturbed run writes."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    by_hand(Run(folder, small, progress=False)).run_all()
    return outputs(folder)


def ask(patch, before):
    """Run with `before`, which gets the number of each call of the model, and of each writing of a
    stage that measures.
    """
    count = [0]

    def counting(function):
        def counted(*args, **options):
            count[0] += 1
            before(count[0])
            return function(*args, **options)

        return counted

    for module in STEPS:
        patch.setattr(module, "generate", counting(generate))
    patch.setattr(measures, "write_json", counting(measures.write_json))


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_every_stage_loses_nothing(small, tmp_path, monkeypatch):
    """Each stage is stopped at its first call, then at the one after, until it is done."""
    settings = replace(small, steps=3, run_ablations=True, gate="warn")
    policy = load_policy(settings.model)
    whole = by_hand(Run(tmp_path / "whole", settings, policy, progress=False))
    whole.run_all()
    run, stopped, n = Run(tmp_path / "run", settings, policy, progress=False), [], 0

    def press(call):
        for _ in range(1 + n % 2 if call == n else 0):  # twice: a training stops at once
            signal.raise_signal(signal.SIGINT)

    while not (run.folder / "metrics.json").exists():
        n += 1
        with monkeypatch.context() as patch:
            ask(patch, press)
            try:
                if not (run.folder / "round_1/items.jsonl").exists():
                    by_hand(run)
                run.run_all()
            except KeyboardInterrupt as stop:
                found = re.fullmatch(
                    r"stopped in (\w+)( of round 1)?( \(.*\))?; resume with "
                    r"`oelkit loop --run \S+/run --resume`",
                    str(stop),
                )
                assert found, stop
                n = n if stopped and stopped[-1][0] == found[1] else 1  # another stage began
                stopped.append((found[1], found[3]))
    assert outputs(run.folder) == outputs(whole.folder)
    assert {name for name, _ in stopped} == {*WORK} - {"curate"}, "every stage that takes long"


def test_ctrl_c_amid_the_decisions_loses_none_of_them(small, whole, tmp_path, monkeypatch):
    """Interrupt this stage, which calls no model, between any two lines of its log."""
    stopped, append = 0, work.append_jsonl
    while True:
        run, left = by_hand(Run(tmp_path / f"run{stopped}", small, progress=False)), [stopped]

        def press(*args, left=left, **options):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return append(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(work, "append_jsonl", press)
            try:
                run.curate(1)
                break
            except KeyboardInterrupt as stop:
                assert "stopped in curate of round 1; resume with" in str(stop)
        stopped += 1
        run.run_all()
        assert outputs(run.folder) == whole
    assert stopped > 0


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_it_goes_on_where_there_is_room(small, whole, tmp_path):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes fail with EFBIG
    run, full = by_hand(Run(tmp_path / "run", small, progress=False)), 0
    try:
        # size limits in bytes: smaller than the games, the metrics, the adapter
        for room in (100, 3_000, 20_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
            with pytest.raises(OSError, match="(?i)file too large|os error 27"):
                run.run_all()
            full += 1
            states = {s.state for s in status(run.folder)}
            assert states <= {"done", "missing"}, "nothing is half done"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert full == 3
    run.run_all()
    assert outputs(run.folder) == whole
    assert not list(run.folder.rglob("*.tmp")) and not list(run.folder.rglob("*.partial"))


SMALL_DISK = """
import json, subprocess, sys
from pathlib import Path
from helpers import by_hand
from soak import outputs
from oelkit.__main__ import main
from oelkit.runs.run import Run
from oelkit.runs.settings import Settings
from oelkit.runs.stages import status

disk, settings = Path("runs"), Settings(**json.loads(sys.argv[1]))
by_hand(Run(disk / "run", settings, progress=False))
for room in (0, 40, 100):  # KiB beside what is there: not for the states, a checkpoint, the adapter
    used = sum(-(-p.stat().st_size // 4096) * 4 for p in disk.rglob("*") if p.is_file())
    subprocess.run(["mount", "-o", f"remount,size={used + room}k", disk], check=True)
    assert main(["loop", "--run", "run", "--resume"]) == 1
    assert {s.state for s in status(disk / "run")} <= {"done", "missing"}
    left = [p.name for p in disk.rglob("*") if p.suffix in (".tmp", ".partial")]
    assert not left, left
subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
Run(disk / "run", settings, progress=False).run_all()
(Path("outputs")).write_text(repr(outputs(disk / "run")))
"""


@pytest.mark.slow
def test_a_disk_that_fills_up_stops_the_run_and_it_goes_on_where_there_is_room(
    small, whole, tmp_path
):
    (tmp_path / "runs").mkdir()
    code = [sys.executable, "-c", SMALL_DISK, json.dumps(asdict(small))]
    done = in_mounts("mount -t tmpfs -o size=1m none runs", *code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 3 and all("No space left" in line for line in told), done.stderr
    assert (tmp_path / "outputs").read_text() == repr(whole)


# in one process, as each start takes seconds
EACH_COMMAND = """
import json, sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from oelkit.__main__ import main

told = []
for command in json.loads(sys.argv[1]):
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = main(command)
    told.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(told))
"""


@pytest.mark.slow
def test_a_run_that_cannot_be_written_is_looked_at_and_not_gone_on_with(small, tmp_path):
    run = by_hand(Run(tmp_path / "runs/run", small, progress=False))
    before, model = outputs(run.folder), ["--model", small.model]

    def python(*arguments):
        return in_mounts(read_only(tmp_path), sys.executable, *arguments, cwd=tmp_path)

    looked = python("-m", "oelkit", "status", "run")
    assert looked.returncode == 3 and "extract    done" in looked.stdout, looked
    commands = [
        ["loop", "--run", "run", "--resume"],
        ["loop", "--run", "other", *model],
        ["play", *model, "--out", "games.jsonl"],
        ["notebooks", "--copy", "mine"],
        ["init", "world"],
    ]
    done = python("-c", EACH_COMMAND, json.dumps(commands))
    assert done.returncode == 0, done
    told = json.loads(done.stdout)
    assert len(told) == len(commands)
    for command, (code, out, err) in zip(commands, told, strict=True):
        assert (code, out) == (1, ""), (command, code, out, err)
        assert err.startswith("error: ") and err.count("\n") == 1, (command, err)
    assert outputs(run.folder) == before


def talks(policy, ids):
    """Return a policy that answers every prompt with these ids."""
    head = policy.base_lm.get_output_embeddings()
    assert policy.head  # checked only once

    def only(_, __, logits):
        logits = logits.clone()
        logits[..., ids] += 1e6
        return logits

    head.register_forward_hook(only)
    return policy


@pytest.mark.parametrize("kind", ["nothing", "newlines", "words to the cap"])
def test_a_model_that_says_nothing_goes_through_every_step(tiny_model, kind):
    policy = load_policy(tiny_model)
    said = {"nothing": policy.eos_ids, "newlines": policy.tokenizer("\n")["input_ids"]}
    policy = talks(policy, said.get(kind, policy.tokenizer("a")["input_ids"]))
    games = rollout(policy, "oelkit/FrozenLake3x3-v0", [1, 2], prompt_set="brief", max_new_tokens=4)
    turns = [turn for game in games for turn in game.turns]
    assert all(game.outcome == "invalid" and len(game.turns) == 2 for game in games)
    assert all(turn.truncated == (kind != "nothing") for turn in turns)
    assert extract(policy, games, prompt_set="brief", max_new_tokens=4) == []
    states = [State("s", "t", 0, turns[0].prompt)]
    rows = distill(
        policy, states, "- EXPERIENCE ITEM: H is a hole.", steps=1, batch_size=1, max_new_tokens=4
    )
    assert rows[0]["reply_tokens"] == (1 if kind == "nothing" else 4)
    assert torch.tensor(rows[0]["loss"]).isfinite()


def test_memory_that_runs_out_on_a_cpu_names_the_setting(tiny, monkeypatch):
    # the message of torch's allocator without such memory
    monkeypatch.setattr("oelkit.steps.teacher.hidden_states", lambda *_: torch.empty(2**50))
    state = State("s", "t", 0, [{"role": "user", "content": "Which move?"}])
    with pytest.raises(RuntimeError, match="training ran out of memory: lower batch_tokens"):
        distill(tiny, [state], "- EXPERIENCE ITEM: x", steps=1, batch_size=1, max_new_tokens=3)


LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from oelkit.__main__ import main
from oelkit.model import loading

load = loading.policy_from_config


def loaded(*args, **options):
    policy = load(*args, **options)
    lines = Path("/proc/self/status").read_text().splitlines()
    size = next(int(line.split()[1]) for line in lines if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, ((size + 24 * 1024) * 1024,) * 2)
    return policy


loading.policy_from_config = loaded
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["distill", "play"])
def test_a_child_under_a_memory_limit_ends_in_a_sentence(tmp_path, command):
    """Existing files stay."""
    folder = make_model(tmp_path / "model", hidden_size=512, max_position_embeddings=4096)
    ask = [{"role": "user", "content": "Which way? " * 300}]
    write_jsonl(tmp_path / "states.jsonl", [State(f"s{n}", "t", 0, ask) for n in range(16)])
    (tmp_path / "told.md").write_text("- EXPERIENCE ITEM: H is a hole. " * 20)
    told = ["--experience", "told.md", "--model", str(folder), "--out", "out"]
    told += ["--prompt-set", "brief"]
    if command == "distill":
        given = ["--states", "states.jsonl", "--batch-size", "16", "--steps", "1", *told]
    else:
        given = ["--seeds", "0:64", *told]
    before = sorted(tmp_path.rglob("*"))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1"}
    child = [sys.executable, "-c", LITTLE_MEMORY, command, *given]
    done = subprocess.run(child, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr and "out of memory: lower" in last, last
    assert sorted(tmp_path.rglob("*")) == before


def test_a_clock_that_goes_backwards_changes_no_order(tmp_path, monkeypatch):
    module = import_module("oelkit.curation")

    class Clock:
        at = 2_000_000_000

        @classmethod
        def now(cls, zone):
            cls.at -= 3600
            return real.fromtimestamp(cls.at, zone)

    real = module.datetime
    monkeypatch.setattr(module, "datetime", Clock)
    items = [ExperienceItem(f"i{n}", f"text {n}", (), "m", 1, 0) for n in range(3)]
    curation = Curation(items, tmp_path / "log.jsonl")
    curation.reject("i0"), curation.accept("i0"), curation.edit("i1", "new"), curation.undo()
    times = [json.loads(line)["time"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert times == sorted(times, reverse=True)
    again = Curation(items, tmp_path / "log.jsonl")
    assert again.items == curation.items and again.item("i0").status == "accepted"


@pytest.mark.slow
def test_a_clock_that_goes_backwards_costs_no_training(small, tmp_path):
    run = by_hand(Run(tmp_path / "run", small, progress=False))
    run.run_all()
    paths = (run.folder / f"round_1/{name}.jsonl" for name in ("items", "curation"))
    Curation.open(*paths).add("Walls cost a turn.")
    later = time.time() + 1e6  # the clock was set back after the previous training
    os.utime(run.folder / "round_1/manifests/distill.json", (later, later))

    def press(row):
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="stopped in distill"):
        Run(run.folder, small, progress=False, on_step=press).run_all(redo=True)
    steps = []
    Run(run.folder, small, progress=False, on_step=steps.append).run_all(redo=True)
    assert [row["step"] for row in steps] == [1], "the first step was kept"


@pytest.mark.parametrize("gone", ["round_1/items.jsonl", "round_1/states.jsonl", "run.json", ""])
def test_what_is_removed_amid_a_training_is_named(small, tmp_path, monkeypatch, gone, capsys):
    run = by_hand(Run(tmp_path / "runs/run", small, progress=False))
    run.collect(1)

    def remove(row):
        path = run.folder / gone
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    told = "holds no run" if gone == "run.json" else gone or "run"
    with pytest.raises((ValueError, OSError, RuntimeError), match=told):
        Run(run.folder, small, progress=False, on_step=remove).run_all()
    monkeypatch.chdir(tmp_path)
    status, err = main(["status", "run"]), capsys.readouterr().err
    said = f"error: {run.folder} holds no run\n"
    assert (status, err) == ((3, "") if gone.startswith("round") else (1, said))


@pytest.mark.slow
def test_a_file_that_is_removed_under_a_run_is_made_again_or_named(small, whole, tmp_path):
    run = by_hand(Run(tmp_path / "run", small, progress=False))
    run.run_all()
    (run.folder / "round_1/adapter/adapter_model.safetensors").unlink()
    stale = {s.stage: s for s in status(run.folder) if s.state != "done"}
    assert stale["distill"].state == "missing" and "is not there" in stale["distill"].why
    run.run_all(redo=True)
    assert outputs(run.folder) == whole
    path = run.folder / "round_1/adapter/adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="adapter_model.safetensors has changed since"):
        Run(run.folder, small, progress=False).run_all()
    with pytest.raises(ValueError, match="adapter_model.safetensors is damaged"):
        run.load(1)

"""Several processes train like one: real ones, with Accelerate, gloo and the embedded model."""

import json
import subprocess
import sys
from pathlib import Path
from runpy import run_path

import pytest
import torch
from safetensors.torch import load_file

from oelkit.__main__ import main
from oelkit.model import ranks
from oelkit.records import State, write_jsonl

ROOT = Path(__file__).parents[1]
TEXT = "- EXPERIENCE ITEM: Walk right first."
SCRIPT = """
import json, sys
from oelkit import distill, load_policy
from oelkit.model import ranks
from oelkit.records import State, read_jsonl

out = sys.argv[1]
policy = load_policy("micro", lora={"r": 4, "lora_alpha": 8, "lora_dropout": 0.0})
states = read_jsonl(sys.argv[2], State)
options = {"steps": 4, "batch_size": 5, "lr": 1e-4, "max_new_tokens": 12, "batch_tokens": 200}
rows = distill(policy, states, sys.argv[3], checkpoint=f"{out}.checkpoint", **options)
assert ranks.count() == int(sys.argv[4])
if ranks.rank() == 0:
    policy.save_adapter(out)
    open(f"{out}.json", "w").write(json.dumps(rows))
"""


def launched(*arguments, cwd):
    """Return the result of `accelerate launch` with two processes on the CPU."""
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    code = "from accelerate.commands.accelerate_cli import main; main()"
    command = [sys.executable, "-c", code, "launch", *options, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=900)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with seven states of different lengths."""
    asked = [f"BOARD {'x ' * 5 * i}{i}" for i in range(7)]
    states = [State(f"s{i}", "t", i, [{"role": "user", "content": a}]) for i, a in enumerate(asked)]
    write_jsonl(tmp_path / "states.jsonl", states)
    (tmp_path / "text.md").write_text(TEXT + "\n")
    (tmp_path / "train.py").write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


def off(one, two):
    """Return the largest difference between two adapters."""
    a, b = (load_file(Path(folder, "adapter_model.safetensors")) for folder in (one, two))
    assert a.keys() == b.keys()
    assert any(t.abs().max() > 1e-4 for name, t in a.items() if "lora_B" in name)  # it has learned
    return max((t - b[name]).abs().max() for name, t in a.items())


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(folder, monkeypatch):
    """States are divided unevenly (3 and 2), some are in the retention share, batches are small."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["train.py", "one", "states.jsonl", TEXT, "1"])
    run_path("train.py")
    done = launched("train.py", "two", "states.jsonl", TEXT, "2", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert off(folder / "one", folder / "two") < 1e-5
    one, two = (json.loads((folder / f"{name}.json").read_text()) for name in ("one", "two"))
    assert len(one) == 4 and one[0]["loss"] > 1e-3
    for a, b in zip(one, two, strict=True):
        del a["seconds"], b["seconds"]
        assert b == pytest.approx(a, abs=1e-5)
    one, two = (load_file(folder / f"{name}.checkpoint") for name in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


@pytest.mark.slow
def test_the_command_is_launched_and_only_the_first_process_writes(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    command = ["distill", "--states", "states.jsonl", "--experience", "text.md", "--steps", "2"]
    command += ["--batch-size", "3", "--max-new-tokens", "8", "--lr", "1e-4", "--out"]
    assert main([*command, "one"]) == 0
    done = launched("-m", "oelkit", *command, "two", cwd=folder)
    assert done.returncode == 0, done.stderr
    said, alone = done.stdout.splitlines(), capsys.readouterr().out.replace("one", "two")
    assert said[-3:] == alone.splitlines()[-3:]  # losses and written files, without seconds
    assert len(said) == len(alone.splitlines())
    assert off("one", "two") < 1e-5
    monkeypatch.setattr(ranks, "count", lambda: 2)
    assert main([*command, "three", "--batch-size", "1"]) == 1
    assert "batch_size=1 with 2 processes" in capsys.readouterr().err
    assert not Path("three").exists()


def test_a_gradient_that_only_one_process_has_reaches_both(monkeypatch):
    """Such as those of an expert that no token of the other's states reached."""
    sent = []
    monkeypatch.setattr(ranks, "count", lambda: 2)
    monkeypatch.setattr(
        torch.distributed, "all_reduce", lambda x: sent.append(x.clone()) or x.add_(sum(sent[:-1]))
    )
    for first, second in ((True, False), (True, True)):
        weights = [torch.nn.Parameter(torch.zeros(n)) for n in (2, 3, 4)]
        weights[0].grad = torch.ones(2) if first else None
        weights[1].grad = torch.ones(3) if second else None
        ranks.add_gradients(weights)
    assert [None if p.grad is None else p.grad.tolist() for p in weights] == [[2, 2], [1] * 3, None]


def test_other_commands_are_refused_where_several_processes_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["play", "--out", str(tmp_path / "games.jsonl")]) == 1
    assert "play runs in one process" in capsys.readouterr().err

"""What may go wrong around a run, and what is there afterwards: the rows of docs/faults.md that no
other test has."""

import json
import resource
import signal
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from helpers import by_hand
from soak import outputs

from oelkit import load_policy
from oelkit.curation import Curation
from oelkit.model.sampling import generate
from oelkit.records import ExperienceItem, State
from oelkit.runs.run import Run
from oelkit.runs.stages import status
from oelkit.steps.distillation import distill
from oelkit.steps.extraction import extract
from oelkit.steps.rollouts import rollout

STEPS = [
    import_module(f"oelkit.steps.{name}") for name in ("rollouts", "extraction", "distillation")
]


@pytest.fixture(scope="module")
def small(settings):
    return replace(settings, rounds=1, run_ablations=False, gate="off", eval_maps=2)


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """A run that nothing happened to, and how often its model was asked."""
    calls, folder = [0], tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        ask(patch, lambda n: calls.append(n))
        by_hand(Run(folder, small, progress=False)).run_all()
    return outputs(folder), len(calls) - 1


def ask(patch, before):
    """Let `before` get the number of each call of the generator in a run."""
    count = [0]

    def counted(*args, **options):
        count[0] += 1
        before(count[0])
        return generate(*args, **options)

    for module in STEPS:
        patch.setattr(module, "generate", counted)


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_every_stage_loses_nothing(small, whole, tmp_path, monkeypatch):
    wanted, calls = whole
    stopped = []
    for n in range(1, calls + 1):
        folder = tmp_path / f"run{n}"

        def press(call, n=n):
            if call == n:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            ask(patch, press)
            with pytest.raises(KeyboardInterrupt, match=r"stopped in .* go on with") as stop:
                by_hand(Run(folder, small, progress=False)).run_all()
        stopped.append(str(stop.value).split()[2])
        by_hand_again = (folder / "round_1/items.jsonl").exists()
        run = Run(folder, small, progress=False)
        (run if by_hand_again else by_hand(run)).run_all()
        assert outputs(folder) == wanted, n
    assert {"rollout", "extract", "collect", "base", "distill", "evaluate"} <= set(stopped)


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_it_goes_on_where_there_is_room(small, whole, tmp_path):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes fail with EFBIG
    run, full = by_hand(Run(tmp_path / "run", small, progress=False)), 0
    try:
        # bytes that a file may have: smaller than the games, the metrics, the adapter
        for room in (100, 3_000, 20_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
            with pytest.raises((OSError, Exception), match="(?i)file too large|os error 27"):
                run.run_all()
            full += 1
            states = {s.state for s in status(run.folder)}
            assert states <= {"done", "missing"}, "nothing is half done"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert full == 3
    run.run_all()
    assert outputs(run.folder) == whole[0]
    assert not list(run.folder.rglob("*.tmp")) and not list(run.folder.rglob("*.partial"))


def talks(policy, ids):
    """A policy that says these ids and no others, whatever it is asked."""
    head = policy.base_lm.get_output_embeddings()
    assert policy.head  # it is checked once, and then known

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
    # what torch's own allocator says where there is no such memory
    monkeypatch.setattr(STEPS[2], "_score", lambda *_: torch.empty(2**50))
    state = State("s", "t", 0, [{"role": "user", "content": "Which move?"}])
    with pytest.raises(RuntimeError, match="training ran out of memory: lower batch_tokens"):
        distill(tiny, [state], "- EXPERIENCE ITEM: x", steps=1, batch_size=1, max_new_tokens=3)


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


def test_a_file_that_is_removed_under_a_run_is_made_again_or_named(small, whole, tmp_path):
    run = by_hand(Run(tmp_path / "run", small, progress=False))
    run.run_all()
    (run.folder / "round_1/adapter/adapter_model.safetensors").unlink()
    stale = {s.stage: s for s in status(run.folder) if s.state != "done"}
    assert stale["distill"].state == "missing" and "is not there" in stale["distill"].why
    run.run_all(redo=True)
    assert outputs(run.folder) == whole[0]
    path = run.folder / "round_1/adapter/adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="adapter_model.safetensors has changed since"):
        Run(run.folder, small, progress=False).run_all()
    with pytest.raises(ValueError, match="adapter_model.safetensors is damaged"):
        run.load(1)

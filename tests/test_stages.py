"""Stale stages of a run are reported, refused or redone; a person's edits stay."""

import inspect
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from helpers import ROOT, by_hand

from oelkit.curation import Curation
from oelkit.model.loading import load_policy
from oelkit.prompts import load_prompt_set
from oelkit.records import ExperienceItem, State, Trajectory, from_dict, read_jsonl, write_jsonl
from oelkit.runs import card, driver, files, gate, measures, stages, table, work
from oelkit.runs.run import HELD_OUT, Run
from oelkit.runs.settings import Settings
from oelkit.runs.stages import Stages, StaleRunError
from oelkit.views import app


@pytest.fixture(scope="module")
def policy(settings):
    return load_policy(settings.model)


@pytest.fixture(scope="module")
def small(settings):
    """Settings for two rounds without arms."""
    return replace(settings, run_ablations=False)


@pytest.fixture(scope="module")
def finished(small, policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run = by_hand(Run(folder, small, policy, progress=False))
    run.run_all()
    return folder


@pytest.fixture
def run(finished, small, policy, tmp_path):
    """A copy of a finished run."""
    shutil.copytree(finished, tmp_path / "run")
    return Run(tmp_path / "run", small, policy, progress=False)


@pytest.fixture
def weights(monkeypatch):
    """Record the weights at each call of a step in a run: (step, student, teacher)."""
    seen = []

    def spy(module, name):
        step = getattr(module, name)

        def called(policy, *args, **options):
            by_name = {n: p.clone() for n, p in policy.model.named_parameters() if "lora_" in n}
            pick = [
                [p for n, p in by_name.items() if f".{a}." in n] for a in ("student", "teacher")
            ]
            seen.append((name, *pick, options.get("adapter", "student")))
            return step(policy, *args, **options)

        monkeypatch.setattr(module, name, called)

    for module, name in (
        (work.rollouts, "rollout"),
        (work.extraction, "extract"),
        (work.distillation, "distill"),
        (measures.evaluation, "evaluate"),
    ):
        spy(module, name)
    return seen


def log_of(run, k=1):
    folder = run.folder / f"round_{k}"
    return Curation.open(folder / "items.jsonl", folder / "curation.jsonl")


def tree(folder):
    """Return each file with the hash of its bytes and its time."""
    return {
        p.relative_to(folder).as_posix(): (files.sha256(p), p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file()
    }


def states(run):
    return {(s.round, s.stage): s.state for s in run.status()}


def adapter(run, k):
    """Return the LoRA tensors of a round's adapter, as in the policy."""
    other = load_policy(run.settings.model)
    other.reset()
    if k:
        other.load_adapter(run.folder / f"round_{k}/adapter")
    return other.trainable()


def same(a, b):
    return len(a) == len(b) > 0 and all(x.equal(y) for x, y in zip(a, b, strict=True))


# -- edits after training


def test_an_edit_after_training_is_refused_in_a_sentence_and_nothing_is_written(run):
    assert set(states(run).values()) == {"done"}
    log_of(run).add("Walls cost a turn.")
    before = tree(run.folder)
    for ask in (
        run.run_all,
        lambda: run.curate(1),
        lambda: run.experiences(1),
        lambda: run.distill(1),
        lambda: run.evaluate(1),
        lambda: run.extract(2),
        lambda: run.distill(2),
        run.ablations,
    ):
        with pytest.raises(
            StaleRunError,
            match="curate of round 1: round_1/curation.jsonl has changed since; 8 more in run",
        ) as caught:
            ask()
        assert f"`oelkit loop --run {run.folder} --redo`" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert "; out of date: curate of round 1, distill of round 1, " in repr(run)
    assert len(run.rollout(1)) == 2 and len(run.collect(1)) > 2  # unaffected stages are read
    assert tree(run.folder) == before
    stale = [node for node, state in states(run).items() if state == "stale"]
    assert stale == [
        (1, "curate"),
        (1, "distill"),
        (1, "evaluate"),
        *((2, s) for s in table.STAGES),
        (0, "metrics"),
    ]


def test_redo_does_again_what_is_out_of_date_and_no_more(run):
    log_of(run).add("Walls cost a turn.")
    before = tree(run.folder)
    metrics = run.run_all(redo=True)
    after = tree(run.folder)
    changed = {name for name in after if after[name] != before.get(name)}
    untouched = {f"round_1/{n}.jsonl" for n in ("trajectories", "items", "states", "curation")}
    untouched |= {"base.json", "run.json", "manifests/base.json"}
    untouched |= {f"round_1/manifests/{n}.json" for n in ("rollout", "extract", "collect")}
    assert set(after) - changed == untouched and set(before) <= set(after)
    assert set(states(run).values()) == {"done"}
    read = (run.folder / "round_1/adapter/experience.md").read_text()
    assert "Walls cost a turn." in read
    assert metrics["rounds"][0]["experience_sha256"] == files.sha256(
        run.folder / "round_1/experience.md"
    )


def test_every_file_of_an_adapter_is_watched(run):
    """Only the weights were: a run with half an adapter counted as done, the text in it could not
    be made again, and an edited text passed for what the model has read."""
    folder = run.folder / "round_1/adapter"
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    others = sorted(set(whole) - {"adapter_model.safetensors"})
    assert others == ["adapter_config.json", "experience.md", "oelkit.json"]
    for name in others:
        (folder / name).unlink()
        with pytest.raises(StaleRunError, match=f"distill of round 1: .*{name} is gone"):
            run.run_all()
        (folder / name).write_bytes(whole[name] + b" ")
        with pytest.raises(StaleRunError, match=f"distill of round 1: .*{name} is not what the st"):
            run.run_all()
        (folder / name).write_bytes(whole[name])
        assert set(states(run).values()) == {"done"}
    (folder / "experience.md").write_text("edited")
    run.run_all(redo=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert (run.folder / "round_1/adapter.old/experience.md").read_text() == "edited"
    (folder / "experience.md").unlink()
    run.run_all(redo=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_a_text_edited_amid_a_training_is_not_what_the_model_has_read(run, monkeypatch):
    path, distill = run.folder / "round_1/experience.md", work.distillation.distill

    def edited(*args, **options):
        path.write_text("edited")
        return distill(*args, **options)

    read = path.read_bytes()
    (run.folder / "round_1/adapter/adapter_model.safetensors").unlink()
    monkeypatch.setattr(work.distillation, "distill", edited)
    run.distill(1)
    assert (run.folder / "round_1/adapter/experience.md").read_bytes() == read
    assert states(run)[1, "distill"] == "stale"


def test_an_edit_that_leaves_the_text_as_it_was_trains_nothing_again(run):
    before = tree(run.folder)
    curation = log_of(run)
    curation.undo(), curation.redo()
    assert states(run)[1, "distill"] == "stale"
    assert run.redo()[0].stage == "curate"
    after = tree(run.folder)
    names = {"round_1/curation.jsonl", "round_1/experience.md", "round_1/manifests/curate.json"}
    names |= {"metrics.json", "manifests/metrics.json"}  # it counts kept items and seconds
    assert {name for name in after if after[name] != before[name]} == names
    assert set(states(run).values()) == {"done"}


def test_what_was_decided_before_any_training_needs_no_redo(small, policy, tmp_path):
    run = by_hand(Run(tmp_path / "run", small, policy, progress=False))
    run.curate(1), run.collect(1)
    log_of(run).add("Walls cost a turn.")
    assert all("Walls" in text for text in run.experiences(1))
    run.distill(1)
    assert "Walls" in (run.folder / "round_1/adapter/experience.md").read_text()


@pytest.mark.parametrize(
    "ask", [lambda r: r.evaluate(1), lambda r: r.extract(2), lambda r: r.distill(2)]
)
def test_a_touched_log_never_puts_other_weights_into_a_stage(run, weights, ask):
    """A log touched after training once led stages to other weights in three ways: the untrained
    student was measured as consolidated, the base wrote the items of round 2, and round 2 trained
    from the start of round 1."""
    log_of(run).add("Walls cost a turn.")
    if ask.__code__.co_consts[1] == 2:  # as if round 2 had stopped after its states
        for name in ("items.jsonl", "experience.md", "adapter", "metrics.json"):
            files.remove(run.folder / "round_2" / name)
    with pytest.raises(StaleRunError):
        ask(run)
    assert not weights
    run.run_all(redo=True)
    one, two, untrained = adapter(run, 1), adapter(run, 2), adapter(run, 0)
    assert not same(one, untrained) and not same(one, two)
    starts = {
        step: [w for w in weights if w[0] == step] for step in ("distill", "extract", "evaluate")
    }
    first, second = starts["distill"]
    assert same(first[1], untrained) and same(second[1], one) and same(second[2], one)
    assert all(same(w[1], one) and same(w[2], one) for w in starts["extract"])  # of round 2
    measured = [w for w in starts["evaluate"] if w[3] == "student"]
    assert [same(w[1], one) for w in measured] == [True, True, False, False]  # held-out, validation
    assert [same(w[1], two) for w in measured] == [False, False, True, True]
    in_context = [w for w in starts["evaluate"] if w[3] == "teacher"]
    assert same(in_context[0][2], untrained) and same(in_context[1][2], one)


def test_stages_that_make_what_they_need_work_with_their_own_weights(
    small, policy, tmp_path, weights
):
    run = by_hand(Run(tmp_path / "run", small, policy, progress=False))
    run.evaluate(2)  # all at once, from two games and two items
    one = adapter(run, 1)
    of_round_2 = [w for w in weights if w[0] in ("rollout", "extract", "distill")][-4:]
    assert [w[0] for w in of_round_2] == ["rollout", "extract", "rollout", "distill"]
    assert all(same(w[1], one) and same(w[2], one) for w in of_round_2)


def test_a_stage_leaves_the_policy_as_it_found_it(small, tmp_path):
    policy = load_policy(small.model)
    run = by_hand(Run(tmp_path / "run", small, policy, progress=False))
    for n, p in enumerate(policy.model.parameters()):
        if p.requires_grad:
            p.data += 0.01 * (n + 1)
    policy.model.train()
    policy.base_lm.generation_config.temperature = 0.123
    before = [p.clone() for p in policy.model.parameters()]
    run.run_all()
    assert all(p.equal(q) for p, q in zip(policy.model.parameters(), before, strict=True))
    assert policy.model.training and policy.base_lm.generation_config.temperature == 0.123


def test_the_teacher_of_a_resumed_round_is_its_start(run):
    run.distill(2)
    run.load(2)
    by_name = dict(run.policy.model.named_parameters())
    teacher = [by_name[n.replace("student", "teacher")] for n in by_name if ".student." in n]
    assert same(run.policy.trainable(), adapter(run, 2)) and same(teacher, adapter(run, 1))
    run.load(2, trained=False)
    assert same(run.policy.trainable(), adapter(run, 1))


# -- a person's edits


def test_a_hand_written_experience_stays_whatever_becomes_of_the_log(small, policy, tmp_path):
    run = by_hand(Run(tmp_path / "run", small, policy, progress=False))
    run.curate(1)
    path = run.folder / "round_1/experience.md"
    path.write_text("## Draw 0\nmine\n\n## Draw 1\nmine too\n")
    text = path.read_bytes()
    assert run.curate(1) == ["mine", "mine too"]
    log_of(run).add("Walls cost a turn.")
    assert run.experiences(1) == ["mine", "mine too"]
    (status,) = (s for s in run.status() if (s.round, s.stage) == (1, "curate"))
    assert status.state == "done" and "put there by hand and is kept" in status.why
    assert "round_1/curation.jsonl has changed since" in status.why
    run.run_all()
    assert (run.folder / "round_1/adapter/experience.md").read_bytes() == text
    path.write_text("## Draw 0\nanother\n\n## Draw 1\n\n")
    with pytest.raises(StaleRunError, match="distill of round 1: round_1/experience.md has chan"):
        run.run_all()
    text = path.read_bytes()
    run.run_all(redo=True)
    assert path.read_bytes() == (run.folder / "round_1/adapter/experience.md").read_bytes() == text
    path.unlink()  # only this restores the decisions of the log
    with pytest.raises(StaleRunError, match="round_1/experience.md is gone"):
        run.run_all()
    run.run_all(redo=True)
    assert "Walls" in path.read_text() and "mine" not in path.read_text()


def test_texts_that_a_program_hands_in_stay_too(small, policy, tmp_path):
    run = by_hand(Run(tmp_path / "run", small, policy, progress=False))
    derived = run.curate(1)
    run.write_experience(1, derived)  # the same words, but now a person's
    log_of(run).add("Walls cost a turn.")
    assert run.curate(1) == derived
    path = run.folder / "round_1/experience.md"
    path.write_text("a person's")
    with pytest.raises(ValueError, match="1 texts for 2 draws"):
        run.write_experience(1, ["a"])
    with pytest.raises(ValueError, match="round=0: need 1 or more"):
        run.write_experience(0, ["a", "b"])
    assert path.read_text() == "a person's" and not (run.folder / "round_0").exists()
    run.write_experience(1, ["a", "b"])
    run.write_experience(1, ["a", "b"])
    assert [p.read_text() for p in path.parent.glob("experience.old*")] == ["a person's"]


def test_logs_of_other_items_are_kept_each_under_its_own_name(small, policy, tmp_path):
    run = by_hand(Run(tmp_path / "run", small, policy, progress=False))
    folder, logs = run.folder / "round_1", []
    for _ in range(3):
        run.curate(1)
        log_of(run).add("Walls cost a turn.")
        logs.append((folder / "curation.jsonl").read_bytes())
        (folder / "items.jsonl").unlink()
        with pytest.warns(
            UserWarning, match=r"curation.jsonl is about other .* kept as curation.o"
        ):
            run.extract(1)
        by_hand(run)
    names = ("curation.old.jsonl", "curation.old-2.jsonl", "curation.old-3.jsonl")
    assert [(folder / name).read_bytes() for name in names] == logs


def test_items_that_come_out_the_same_keep_their_log(run):
    (run.folder / "round_2/items.jsonl").unlink()
    log = run.folder / "round_2/curation.jsonl"
    run.redo()
    assert not list(log.parent.glob("curation.old*")) and set(states(run).values()) == {"done"}


def test_decisions_before_the_first_text_stay_with_items_that_come_out_the_same(
    small, policy, tmp_path
):
    run = Run(tmp_path / "run", small, policy, progress=False)
    run.extract(1)
    log_of(run).add("Walls cost a turn.")
    run.settings = replace(run.settings, show_previous=False)  # with no item, nothing changes
    run.redo()
    assert all("Walls" in text for text in run.curate(1))


def test_damaged_lines_of_metrics_are_kept_aside(small, policy, tmp_path):
    run = by_hand(Run(tmp_path / "run", small, policy, progress=False))
    lines = run.folder / "metrics.jsonl"
    there = b'{"schema": 1, "arm": "mine"}\n{"schema": 1, "brm": "round 1"}\n'
    lines.write_bytes(there + b'\xff not a line\n{"schema": 1, "ar')
    run.distill(1)
    assert [row.get("arm") for row in read_jsonl(lines)] == ["mine", None, "round 1", "round 1"]
    aside = lines.with_name("metrics.damaged.jsonl").read_bytes()
    assert aside == b'\xff not a line\n{"schema": 1, "ar\n'


def test_a_stage_that_is_refused_leaves_the_run_as_it_was(run, monkeypatch):
    def whole():
        return tree(run.folder), sorted(p for p in run.folder.rglob("*") if p.is_dir())

    before = whole()
    with monkeypatch.context() as patch:
        patch.setattr(Stages, "lost", lambda self, k: "it lost" if k == 2 else "")
        run.settings = replace(run.settings, gate="stop")
        with pytest.raises(ValueError, match="round 3 does not start: it lost"):
            run.rollout(3)
    assert run.settings.rounds == 2 and whole() == before
    (run.folder / "run.json").unlink()
    (run.folder / "round_1/states.jsonl").unlink()
    before = whole()
    with pytest.raises(ValueError, match="holds no run"):
        run.collect(1)
    assert whole() == before


def test_a_text_that_could_not_be_written_leaves_that_of_the_run(run, monkeypatch):
    """It then passed for one by hand: no later decision about its items had an effect."""

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(driver, "write_text", full)
    with pytest.raises(OSError, match="disk full"):
        run.write_experience(1, ["a", "b"])
    (curate,) = (s for s in run.status() if (s.round, s.stage) == (1, "curate"))
    assert (curate.state, curate.why) == ("done", "")


def test_items_that_changed_beside_a_text_by_hand_are_counted_again(run):
    run.write_experience(1, ["mine", "mine too"])
    run.write_experience(2, ["mine", "mine too"])
    assert run.run_all(redo=True)["rounds"][0]["items"] == 2
    items = run.items(1)
    write_jsonl(run.folder / "round_1/items.jsonl", [*items, replace(items[0], id="i9")])
    assert {node for node, state in states(run).items() if state != "done"} == {(0, "metrics")}
    assert [run.run_all()["rounds"][0][name] for name in ("items", "kept")] == [3, 2]


@pytest.mark.parametrize("field", ["prompts", "name"])
def test_a_run_json_with_a_damaged_field_is_named(run, field):
    """One flipped bit is enough; `oelkit data` ended in a traceback."""
    path = run.folder / "run.json"
    path.write_text(path.read_text().replace(f'"{field}"', f'"{field[:-1]}q"'))
    with pytest.raises(ValueError, match=r"run.json: .*damaged"):
        stages.status(run.folder)
    path.write_text(path.read_text().replace(f'"{field[:-1]}q"', f'"{field}"').replace("ersi", ""))
    assert card.about(run.stages, 2, "peft")["versions"] == {}


# -- looking at a run


def test_looking_at_a_run_writes_nothing(run, small, policy):
    before = tree(run.folder), sorted(p.stat().st_mtime_ns for p in run.folder.rglob("*"))
    other = Run(run.folder, replace(small, rounds=1, gate="off"), policy, progress=False)
    other.status(), Run.open(run.folder, policy).run_all(), stages.status(run.folder)
    Run(run.folder, replace(small, rounds=3), policy, progress=False).rollout(1)
    now = tree(run.folder), sorted(p.stat().st_mtime_ns for p in run.folder.rglob("*"))
    assert now == before
    Run(run.folder, replace(small, rounds=3), policy, progress=False).rollout(3)
    assert Run.open(run.folder, policy).settings.rounds == 3
    Run(run.folder, replace(small, rounds=1), policy, progress=False).collect(3)
    assert Run.open(run.folder, policy).settings.rounds == 3


def test_a_run_opened_for_fewer_rounds_keeps_those_that_it_has(run, small, policy):
    before = (run.folder / "metrics.json").read_bytes()
    other = Run(run.folder, replace(small, rounds=1), policy, progress=False)
    assert other.settings.rounds == 2 and {s.state for s in other.status()} == {"done"}
    other.redo(), other.run_all()
    assert (run.folder / "metrics.json").read_bytes() == before


def test_another_setting_leaves_what_does_not_depend_on_it(run, policy):
    games = (run.folder / "round_1/trajectories.jsonl").stat().st_mtime_ns
    other = Run.open(run.folder, policy, progress=False, steps=1)
    with pytest.raises(StaleRunError, match="distill of round 1: the setting steps was 2 and is 1"):
        other.run_all()
    assert Run.open(run.folder, policy).settings.steps == 2, "nothing was done with it"
    other.run_all(redo=True)
    now = Run.open(run.folder, policy)
    assert now.settings.steps == 1 and {s.state for s in now.status()} == {"done"}
    rows = read_jsonl(run.folder / "metrics.jsonl")
    assert [(row["arm"], row["step"]) for row in rows] == [("round 1", 0), ("round 2", 0)]
    assert (run.folder / "round_1/trajectories.jsonl").stat().st_mtime_ns == games


def test_a_changed_setting_is_named_and_reaches_what_depends_on_it(run, policy):
    """An arm has a loss of its own, and that of raw games reads a game per draw."""
    arms = {arm: run.stages.slice(0, arm) for arm in table.ARMS}
    other = Run.open(run.folder, policy, progress=False, loss="jsd", num_draws=1).stages
    assert [arm for arm in arms if arms[arm] != other.slice(0, arm)] == ["raw"]

    def whys(**change):
        statuses = Run.open(run.folder, policy, progress=False, **change).status()
        return {f"{s.name}: {s.why}" for s in statuses if s.state == "stale"}

    told = "extract of round 2: the setting carry_experience was True and is False"
    assert told in whys(carry_experience=False)
    assert "base: the gate was on and no longer is" in whys(gate="off")


def test_a_manifest_of_another_form_stops_no_status(run):
    for stage, settings in (
        ("evaluate", {}),
        ("evaluate", {"start": [1]}),
        ("metrics", {"chain": 3}),
    ):
        at = run.stages.manifest_path(2 if stage == "evaluate" else 0, stage)
        manifest = json.loads(before := at.read_text())
        at.write_text(json.dumps(manifest | {"settings": settings}))
        assert states(run)[0, "metrics"] == "stale"
        at.write_text(before)


def test_a_round_beyond_those_of_the_run_is_one_of_them(run, policy):
    run.rollout(3)
    assert Run.open(run.folder, policy).settings.rounds == 3
    assert states(run)[3, "rollout"] == "done" and states(run)[3, "extract"] == "missing"


@pytest.mark.parametrize(
    "change, why",
    [
        ({"seed": 3}, "seed was 0, is 3; .*another name"),
        ({"rounds": 1}, "rounds was 2, is 1"),
        ({"stepz": 1}, "no setting 'stepz'"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_a_change_that_makes_another_run_is_refused(run, change, why):
    with pytest.raises(ValueError, match=why):
        Run.open(run.folder, **change)  # before the model is loaded


def test_the_status_of_a_folder_needs_no_torch(run):
    log_of(run).add("Walls cost a turn.")
    code = (
        "import sys\nfrom oelkit.runs.stages import status\n"
        f"for s in status({str(run.folder)!r}): print(s.round, s.stage, s.state, '-', s.why)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 curate stale - round_1/curation.jsonl has changed since" in done.stdout
    assert "2 rollout stale - distill of round 1 is stale" in done.stdout
    assert len(done.stdout.splitlines()) == 14 == len(run.status())


def test_another_prompt_file_is_seen(small, policy, tmp_path):
    source = "\n".join(
        f"{k} = {json.dumps(v)}" for k, v in vars(load_prompt_set("brief")).items() if k != "name"
    )
    path = tmp_path / "mine.toml"
    path.write_text(source)
    mine = replace(small, prompt_set=str(path), rounds=1)
    run = by_hand(Run(tmp_path / "run", mine, policy, progress=False))
    run.run_all()
    path.write_text(source.replace('act = "', 'act = "Now: ', 1))
    said = f"rollout of round 1: the prompt set {str(path)!r} has changed (act)"
    changed = Run(tmp_path / "run", mine, policy, progress=False)
    with pytest.raises(StaleRunError) as caught:
        changed.run_all()
    assert said in str(caught.value)
    stale = {s.stage: s.why for s in stages.status(tmp_path / "run") if s.state == "stale"}
    assert said.endswith(stale["rollout"]) and {"collect", "distill", "base"} <= set(stale)
    assert changed.status() == stages.status(tmp_path / "run")
    path.write_text(source.replace('extract = "', 'extract = "Now: ', 1))
    now = Run(tmp_path / "run", mine, policy, progress=False)
    said = {s.stage: s.why for s in now.status() if s.state == "stale"}
    assert not said, "a person's items are kept"
    prompts = [now.stages.slice(1, stage)["prompt_set"] for stage in ("extract", "rollout")]
    assert "extract" in prompts[0] and not {"extract", "turn", "previous", "experience"} & set(
        prompts[1]
    )
    path.write_text(source.replace('act = "', 'act = "Now: ', 1))
    changed.run_all(redo=True)
    assert {s.state for s in stages.status(tmp_path / "run")} == {"done"}


def test_a_run_rehearses_its_own_copy_of_the_prompts(small, policy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = [
        State(f"r{i}", "t", 0, [{"role": "user", "content": f"Count to {i}."}]) for i in (3, 4)
    ]
    mine = replace(small, rehearsal="general.jsonl", rounds=1, run_ablations=True)
    with pytest.raises(FileNotFoundError, match=r"general\.jsonl"):
        Run(tmp_path / "run", mine, policy)
    write_jsonl("general.jsonl", [])
    with pytest.raises(ValueError, match=r"general\.jsonl: no prompts in it to rehearse"):
        Run(tmp_path / "run", mine, policy)
    assert not (tmp_path / "run").exists()
    write_jsonl("general.jsonl", asked)
    run = by_hand(Run(tmp_path / "run", mine, policy, progress=False))
    (tmp_path / "general.jsonl").unlink()
    run.run_all()
    assert all("rehearsal_loss" in row for row in read_jsonl(run.folder / "metrics.jsonl"))
    copy = run.folder / "rehearsal.jsonl"
    assert read_jsonl(copy, State) == asked
    with pytest.raises(ValueError, match="other settings: rehearsal was 'general.jsonl', is None"):
        Run.open(run.folder, rehearsal=None)
    assert {s.state for s in stages.status(run.folder)} == {"done"}
    write_jsonl(copy, asked[:1])
    said = {s.stage: s.why for s in stages.status(run.folder) if s.state == "stale"}
    assert said["distill"] == said["sft"] == "rehearsal.jsonl has changed since"
    assert not {"rollout", "extract", "collect", "base"} & {*said}


def test_prompts_to_rehearse_come_with_a_model_too(micro_folder):
    beside = SimpleNamespace(source=str(micro_folder))
    asked = work.read_rehearsal(Settings(rehearsal="rehearsal.jsonl"), beside)
    probe = [row["messages"] for row in read_jsonl(ROOT / "data/micro/probe.jsonl")]
    assert len(asked) == 256 and not [state for state in asked if state.prompt in probe]


def test_a_run_of_an_older_form_is_told_apart(tmp_path, small, policy):
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"settings": {"games": 64}, "prompts": {}}))
    for ask in (
        lambda: stages.status(folder),
        lambda: Run(folder, small, policy),
        lambda: Run.open(folder, policy),
    ):
        with pytest.raises(
            ValueError, match="older form.*oelkit report --run old.*start a new run"
        ):
            ask()
    with pytest.raises(ValueError, match="holds no run"):
        stages.status(tmp_path)


# -- seconds, arms, writers


def test_the_seconds_of_stages_add_up_to_less_than_the_wall_time(small, policy, tmp_path):
    run = by_hand(Run(tmp_path / "run", small, policy, progress=False))
    began, slow = time.perf_counter(), work.rollouts.rollout
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work.rollouts, "rollout", lambda *a, **o: time.sleep(0.3) or slow(*a, **o))
        run.distill(1)  # collects its states, too
    seconds = {
        stage: run.stages.manifest(1, stage)["seconds"]
        for stage in ("curate", "collect", "distill")
    }
    assert seconds["collect"] >= 0.3
    assert sum(seconds.values()) <= time.perf_counter() - began + 0.02  # rounded to 0.01


def test_arms_go_on_after_the_last_one_that_is_done(run, monkeypatch):
    trained, distill = [], work.distillation.distill

    def fails_at_raw(*args, **options):
        trained.append(args[3].loss)
        if len(trained) == 3:
            raise OSError("no space left")
        return distill(*args, **options)

    monkeypatch.setattr(work.distillation, "distill", fails_at_raw)
    with pytest.raises(OSError, match="no space"):
        run.ablations()
    arms = run.ablations()
    assert trained == ["forward_kl", "sft", "reverse_kl", "reverse_kl"]
    assert set(arms) == {"forward_kl", "sft", "raw"} and "in_context" in arms["raw"]
    assert set(run.run_all()["arms"]) == set(arms) and run.ablations() == arms


def test_ctrl_c_in_what_the_settings_leave_out_names_the_command_that_resumes_it(run, monkeypatch):
    def press(*_):
        raise KeyboardInterrupt

    for stage in ("rollout", "forward_kl"):
        monkeypatch.setitem(driver.WORK, stage, press)
    with pytest.raises(KeyboardInterrupt, match=r"of round 3; .*--run \S+/run --resume`$"):
        run.rollout(3)
    assert Run.open(run.folder).settings.rounds == 3
    with pytest.raises(
        KeyboardInterrupt, match=r"in forward_kl; .*--run \S+/run --resume --run-ablations`$"
    ):
        run.ablations()


def test_a_second_writer_is_told_who_the_first_is(run):
    log_of(run).add("Walls cost a turn.")
    lock, host = run.folder / "run.lock", socket.gethostname()
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom oelkit.runs.files import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('mine', flush=True)\n    time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(run.folder)], stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout.readline() == "mine\n"
            with pytest.raises(ValueError, match=f"written by process {other.pid} on {host}: wait"):
                run.run_all(redo=True)
            assert len(run.rollout(1)) == 2 and run.status()  # readers do not need the lock
        finally:
            other.kill()
    assert lock.exists()  # its owner is dead
    run.redo()
    assert not lock.exists()
    lock.write_text("4711 elsewhere\n")  # a shared disk
    log_of(run).add("One more.")
    with pytest.raises(ValueError, match=r"process 4711 on elsewhere: .* or delete .*run.lock"):
        run.redo()


@pytest.mark.parametrize("anew", [False, True])
def test_a_folder_that_was_deleted_and_perhaps_begun_anew_is_left_alone(
    small, policy, tmp_path, anew
):
    def delete(row):
        shutil.rmtree(tmp_path / "run")
        if anew:  # held by another running process
            Run(tmp_path / "run", small, policy, progress=False)
            (tmp_path / "run/run.lock").write_text("4711 elsewhere")

    run = Run(tmp_path / "run", small, policy, progress=False, on_step=delete)
    by_hand(run)
    with pytest.raises(RuntimeError, match="was deleted or replaced while this process wrote it"):
        run.distill(1)
    there = sorted(path.name for path in tmp_path.glob("run/*"))
    assert there == (["run.json", "run.lock"] if anew else [])


def test_of_two_that_start_a_run_the_second_must_want_the_same(small, policy, tmp_path):
    class Slow(Run):
        def _load_policy(self, given):
            super()._load_policy(given)
            Run(tmp_path / "run", replace(small, **changed), policy, progress=False)

    changed = {"seed": 7, "rounds": 3, "gate": "stop"}
    with pytest.raises(ValueError, match="seed was 7, is 0"):
        Slow(tmp_path / "run", small, policy, progress=False)
    assert files.read_json(tmp_path / "run/run.json")["settings"]["seed"] == 7
    shutil.rmtree(tmp_path / "run")
    del changed["seed"]
    joined = Slow(tmp_path / "run", replace(small, gate=None), policy, progress=False).settings
    assert (joined.rounds, joined.gate) == (3, "stop")  # those of the first


# -- gate


def test_validation_maps_are_neither_training_nor_held_out_maps():
    last = 899 * 1_000_000 + 99 * 10_000 + 10_000
    assert last <= HELD_OUT < HELD_OUT + 1_000_000 < gate.VALIDATION


def row(passes, right=None):
    return {"validation": {"passes": passes}, "ood": right and {"all": right, "n": 100}}


def test_the_gate_says_what_was_lost():
    found = gate.judge(2, 1, row("1" * 50 + "0" * 14, 0.9), row("1" * 20 + "0" * 44, 0.7))
    assert found["high"] < 0 and found["maps"] == 64
    assert "round 2 passes 31.2% of 64 validation maps, round 1 before it 78.1%" in found["lost"]
    assert "70.0% of 100 OOD questions, round 1 before it 90.0%" in found["lost"]
    for before, after in (
        (row("1" * 50 + "0" * 14, 0.9), row("1" * 49 + "0" * 15, 0.88)),
        (row("0" * 64), row("1" * 64)),
    ):
        assert gate.judge(1, 0, before, after)["lost"] == ""


@pytest.fixture
def losing(monkeypatch):
    """A run whose round 1 loses."""
    judge = gate.judge
    monkeypatch.setattr(
        gate,
        "judge",
        lambda k, *rest: judge(k, *rest) | {"lost": "round 1 lost it" if k == 1 else ""},
    )


@pytest.mark.parametrize("how", ["off", "warn", "stop", "rollback"])
def test_a_round_that_lost(small, policy, tmp_path, losing, weights, how):
    run = by_hand(Run(tmp_path / "run", replace(small, gate=how), policy, progress=False))
    if how == "stop":
        with (
            pytest.warns(UserWarning, match="round 1 lost it"),
            pytest.raises(
                ValueError, match=r"round 2 does not start: round 1 lost it.*run.promote\(1\)"
            ),
        ):
            run.run_all()
        assert not (run.folder / "round_2/trajectories.jsonl").exists()
        run.promote(1)
    if how == "rollback":  # the items of round 1 are not carried over either: round 2 has none
        with (
            pytest.warns(UserWarning, match="round 1 lost it"),
            pytest.raises(ValueError, match="round 2"),
        ):
            run.run_all()
        by_hand(run, k=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if how == "warn" else "error", UserWarning)
        metrics = run.run_all()
    assert [c["start"] for c in metrics["chain"]] == [0, 0 if how == "rollback" else 1]
    assert [bool(c["lost"]) for c in metrics["chain"]] == [how != "off", False]
    assert ("validation" in metrics["rounds"][0]) == (how != "off")
    trained = [w for w in weights if w[0] == "distill"]
    assert same(trained[1][1], adapter(run, 0 if how == "rollback" else 1))
    assert metrics["next_start"] == 2 and set(states(run).values()) == {"done"}


@pytest.mark.parametrize("progress", [True, False])
def test_what_the_gate_says_is_a_line_of_progress_else_a_warning(
    small, policy, tmp_path, losing, capsys, progress
):
    run = by_hand(Run(tmp_path / "run", replace(small, gate="warn"), policy, progress=progress))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.evaluate(1)
    warned = [str(w.message) for w in caught if "lost it" in str(w.message)]
    assert warned == ([] if progress else ["gate: round 1 lost it"])
    assert ("gate: round 1 lost it\n" in capsys.readouterr().out) == progress


def test_a_person_rolls_a_round_back_and_promotes_it_again(run):
    before = tree(run.folder)
    run.rollback(1)
    with pytest.raises(
        StaleRunError, match="it started from round 1, but should start from the untrained model"
    ):
        run.run_all()
    (whole,) = [s for s in run.status() if s.stage == "metrics"]
    assert whole.why == "round 2 should start from the untrained model"
    assert states(run)[1, "evaluate"] == "done" and states(run)[2, "rollout"] == "stale"
    run.promote(1)
    assert set(states(run).values()) == {"done"}
    assert {k: v for k, v in tree(run.folder).items() if k != "chain.json"} == before
    with pytest.raises(ValueError, match="round 7 is not trained yet"):
        run.rollback(7)
    with pytest.raises(TypeError, match="round: expected a whole number, got the str '1'"):
        run.promote("1")


def test_more_sampling_seeds_do_not_multiply_the_validation_games(small, policy, tmp_path, weights):
    run = Run(tmp_path / "run", replace(small, samples_per_map=3), policy, progress=False)
    run.ensure(0, "base")
    base = json.loads((run.folder / "base.json").read_text())
    assert (base["pass_rate"]["n"], base["pass_rate"]["maps"]) == (12, 4)
    assert base["validation"]["n"] == gate.VALIDATION_MAPS == len(base["validation"]["passes"])
    shown = [game["seed"] for game in base["shown"]]
    assert shown and len(set(shown)) == len(shown), "each map once"


def test_games_on_the_same_held_out_maps_are_kept_before_and_after(run):
    games = [
        [from_dict(Trajectory, game) for game in json.loads((run.folder / at).read_text())["shown"]]
        for at in ("base.json", "round_1/metrics.json", "round_2/metrics.json")
    ]
    seeds = [[game.seed for game in played] for played in games]
    assert seeds[0] == seeds[1] == seeds[2] and 0 < len(seeds[0]) <= measures.SHOWN
    assert set(seeds[0]) <= set(run.eval_seeds)
    assert not any(turn.prompt for played in games for game in played for turn in game.turns)
    assert all("shown" not in row for row in run.run_all()["rounds"])


def test_a_killed_run_is_missing_stages_and_never_half_done(run, monkeypatch):
    """Kill it between any two changes of the folder, while a stage's files are put in place."""
    log_of(run).add("Walls cost a turn.")
    for stop in range(12):
        shutil.rmtree(run.folder.with_name("tried"), ignore_errors=True)
        shutil.copytree(run.folder, run.folder.with_name("tried"))
        tried = Run(run.folder.with_name("tried"), run.settings, run.policy, progress=False)
        left = [stop]

        def dies(real, left=left):
            def called(*args, **options):
                if left[0] == 0:
                    raise MemoryError("killed")
                left[0] -= 1
                return real(*args, **options)

            return called

        with pytest.MonkeyPatch.context() as patch:
            for name in ("replace", "rename", "unlink"):
                patch.setattr(os, name, dies(getattr(os, name)))
            try:
                tried.ensure(1, "distill", redo=True)
            except MemoryError:
                assert states(tried)[1, "distill"] != "done" or left[0] == 0
        tried.ensure(1, "distill", redo=True)
        assert states(tried)[1, "distill"] == "done"
        assert "Walls" in (tried.folder / "round_1/adapter/experience.md").read_text()
        assert not list(tried.folder.rglob("*.partial"))


def test_a_kill_amid_the_automatic_decisions_changes_none_of_them(small, policy, tmp_path):
    """With only half of them, others would follow, as agreement of draws needs all items."""
    items = [
        ExperienceItem(f"{d}{n}", text, (), "m", 1, d)
        for d in range(4)
        for n, text in enumerate(("H is a hole.", "G is the goal.", f"Only {d}."))
    ]
    kept, n, append = None, 0, work.append_jsonl
    while True:
        run = Run(tmp_path / f"run{n}", replace(small, num_draws=4), policy, progress=False)
        write_jsonl(run.round_folder(1) / "items.jsonl", items)

        def dies(path, operation, left=[n], **options):  # noqa: B006
            if not left[0]:
                with open(path, "ab") as f:
                    f.write(b'{"n": 1, "op": "mer')  # the line that was being written
                raise MemoryError("killed")
            left[0] -= 1
            return append(path, operation, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(work, "append_jsonl", dies)
            try:
                run.curate(1)
                break
            except MemoryError:
                pass
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the line that was cut off
            texts = run.curate(1)
            assert kept in (None, texts) and len(log_of(run).log) == 8
        kept, n = texts, n + 1
    wanted = "- EXPERIENCE ITEM: H is a hole.\n- EXPERIENCE ITEM: G is the goal."
    assert n == 8 and texts == [wanted] * 4


def test_what_a_killed_writer_left_is_removed_by_the_next(run):
    home = run.folder / "round_1/manifests"
    left = [run.folder / ".run.json.999999999.tmp", home / ".distill.checkpoint"]
    kept = [run.folder / f".report.html.{os.getppid()}.tmp", home / ".evaluate.checkpoint"]
    for path in left + kept:
        path.write_text("")
    old, now = (home / "distill.json").stat().st_mtime, time.time()
    os.utime(left[1], (old - 1, old - 1))  # of the finished training
    os.utime(kept[1], (now, now))  # of one that is being redone
    log_of(run).add("Walls cost a turn.")
    run.ensure(1, "curate", redo=True)
    assert not any(path.exists() for path in left) and all(path.exists() for path in kept)


def test_opening_a_run_without_a_word_on_the_gate_keeps_its_own(small, policy, tmp_path):
    def gate_of(settings):
        run = by_hand(Run(tmp_path / "run", settings, policy, progress=False))
        run.collect(1)
        return json.loads((run.folder / "run.json").read_text())["settings"]["gate"]

    assert gate_of(replace(small, gate="stop")) == "stop"
    (tmp_path / "run/round_1/states.jsonl").unlink()
    assert gate_of(replace(small, gate=None)) == "stop"
    assert Run.open(tmp_path / "run", policy, gate=None).settings.gate == "stop"
    (tmp_path / "run/round_1/states.jsonl").unlink()
    assert gate_of(replace(small, gate="warn")) == "warn"  # an explicit setting wins


def test_each_stage_of_many_rounds_is_asked_once(small, policy, tmp_path, monkeypatch):
    run, asked = Run(tmp_path / "run", replace(small, rounds=9), policy, progress=False), []
    real = stages.Stages.before
    monkeypatch.setattr(
        stages.Stages, "before", lambda self, *node: asked.append(node) or real(self, *node)
    )
    assert len(run._needs((9, "evaluate"))) == 55  # six per round and the base
    assert len(asked) < 200


def known(folder, text, draws=3):
    """Return what the draws of round 2 already know if round 1 left this experience.md."""
    (folder / "round_1").mkdir(exist_ok=True)
    (folder / "round_1/experience.md").write_text(text, "utf-8")
    settings = SimpleNamespace(num_draws=draws, carry_experience=True)
    start = SimpleNamespace(start=lambda k: k - 1)
    return work.known_before(SimpleNamespace(folder=folder, settings=settings, stages=start), 2)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("Draw 0", "Draw 0 \t"),
        lambda text: "\n" + text.replace("\n", "\r\n"),
        lambda text: text.replace("Draw 1", "Draw 1\u00a0"),
        lambda text: text.replace("Draw 1", "Draw 1\u200b"),
        lambda text: text.replace("## Draw 1", "\ufeff## Draw 1"),
        lambda text: text.replace("## Draw 1", " ##  draw\t1:"),
        lambda text: text.replace("## Draw 1", "### Draw 1 ###"),
        lambda text: text.replace("## Draw 1", "##Draw 1 (mine)"),
        lambda text: text.replace("## Draw 1", "**Draw 1**"),
        lambda text: text.replace("## Draw 1", "## Draws 1: mine"),
        lambda text: text.replace("## Draw 1", "## Draw 1 - mine"),
    ],
)
def test_what_an_editor_adds_to_an_experience_md_loses_no_draw(tmp_path, edit):
    texts = [f"text of draw {d}" for d in range(3)]
    assert known(tmp_path, edit(work.as_draws(texts))) == texts


def test_a_text_about_draws_is_no_heading(tmp_path):
    texts = ["Draw 2 cards.\n## Draw 2 cards, then\n## Draw 1.5", "b", "c"]
    assert known(tmp_path, work.as_draws(texts)) == texts


def test_draws_are_told_apart_by_their_numbers(tmp_path):
    texts = known(tmp_path, "## Draw 2\nc\n## Draw 0\na\n## Draw 1\nb\n")
    assert texts == ["a", "b", "c"]


def test_a_text_that_would_be_another_when_read_again_is_refused(run):
    path = run.round_folder(1) / "experience.md"
    before = path.read_text("utf-8")
    with pytest.raises(ValueError, match="a line like a draw heading, '## Draw 7'"):
        run.write_experience(1, ["a\n## Draw 7\nb", "c"])
    with pytest.raises(TypeError, match="texts: expected a text or a list of texts"):
        run.write_experience(1, [None])
    assert path.read_text("utf-8") == before
    assert work.as_draws(["half \ud83d"]) == "## Draw 0\nhalf \ufffd\n\n"


def test_a_draw_that_was_taken_out_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"round_1.experience\.md has 2 headings .* with 3 draws"):
        known(tmp_path, work.as_draws(["a", "b"]))
    with pytest.raises(ValueError, match=r"experience\.md: text before the first heading"):
        known(tmp_path, "mine\n" + work.as_draws(["a", "b", "c"]))


def test_the_editor_of_a_run_says_what_an_edit_makes_out_of_date(run):
    editor = app.editor(run.round_folder(1) / "items.jsonl")
    said = []
    editor.send = lambda content, buffers=None: said.append(json.loads(content["json"]))
    editor._handle_custom_msg({"op": "hello"}, [])
    assert said[-1]["hint"] == ""
    editor._handle_custom_msg({"op": "edit", "ids": said[-1]["order"][:1], "texts": ["New."]}, [])
    assert said[-1]["hint"].endswith(
        f"out of date; redo it with: oelkit loop --run {run.folder} --redo"
    )


class FilesRun(driver.Driver):
    """A run whose stages only write their files, without a model."""

    def __init__(self, folder, rounds, monkeypatch):
        self.folder, self.policy = folder, SimpleNamespace(as_found=nullcontext)
        self.settings, self.progress = Settings(rounds=rounds, gate="off", run_ablations=False), 0
        self.prompts, self._writing, self.asked = load_prompt_set("paper"), False, []
        folder.mkdir()
        files.write_json(folder / "run.json", self.record() | {"versions": {}})
        for stage in driver.WORK:
            monkeypatch.setitem(driver.WORK, stage, partial(self.write, stage))
        monkeypatch.setattr(work, "known_texts", lambda *_: ["x"])
        real = Stages._status

        def counted(stages, k, *rest):
            self.asked.append(k)
            return real(stages, k, *rest)

        monkeypatch.setattr(Stages, "_status", counted)

    def write(self, stage, _, k, folder):
        path = folder / self.stages.writes(k, stage).split("/", k > 0)[-1]
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
        if stage == "distill":
            (path.parent / "experience.md").write_text("x")
        return {}

    def start_stage(self, *_):
        pass


def test_hundreds_of_rounds_stand_one_upon_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "sync_tree", lambda _: None)  # nothing is left out here
    run, limit = FilesRun(tmp_path / "run", 30, monkeypatch), sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 120)  # as a thousand is for hundreds of rounds
    try:
        run.ensure(30, "rollout")  # from the first round on, in one call
        assert run.stages.status(30, "rollout").state == "done"
    finally:
        sys.setrecursionlimit(limit)
    (run.folder / "round_1/states.jsonl").write_text("changed")
    (run.folder / "round_1/manifests/collect.json").unlink()
    assert run.stages.status(30, "rollout").follows
    assert {s.why for s in run.status() if s.state == "stale" and not s.follows} == {
        "round_1/states.jsonl has changed since"
    }


def test_earlier_rounds_are_looked_at_once_in_a_round(tmp_path, monkeypatch):
    run = FilesRun(tmp_path / "run", 12, monkeypatch)
    run.run_all()
    assert {s.state for s in run.status()} == {"done"}
    in_round = 6 * 13  # its six stages, at the start of each round and at the end
    assert run.asked.count(1) < 3 * in_round  # not for every stage of every round
    assert run.asked.count(1) < 2 * run.asked.count(11) + in_round


def test_a_round_reads_no_file_of_rounds_long_ago(tmp_path, monkeypatch):
    run, opened = FilesRun(tmp_path / "run", 9, monkeypatch), []
    at, ensure = [0], run.ensure
    sys.addaudithook(lambda e, args: at[0] and e == "open" and opened.append((at[0], str(args[0]))))

    def ensured(k, stage, redo=False):
        at[0] = k  # 0 at the end, when all are checked again
        ensure(k, stage, redo)

    run.ensure = ensured
    run.run_all()
    at[0] = 0
    reads = {k: [f for now, f in opened if now == k and str(run.folder) in f] for k in range(1, 10)}
    for k in range(3, 10):
        assert not [f for f in reads[k] for j in range(1, k - 1) if f"round_{j}/" in f]
        assert len(reads[k]) == len(reads[3])
    assert {s.state for s in run.status()} == {"done"}


def test_a_run_goes_on_without_asking_what_is_done_in_each_round(tmp_path, monkeypatch):
    run = FilesRun(tmp_path / "run", 12, monkeypatch)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="in base; resume"):
        patch.setitem(driver.WORK, "base", stop)
        run.run_all()
    run.run_all()
    (run.folder / "round_12/states.jsonl").unlink()
    (run.folder / "round_12/manifests/collect.json").unlink()
    run.asked.clear()
    run.run_all(redo=True)
    # when it begins, before round 12, and for the metrics of all
    assert run.asked.count(3) < 4 * 13 and run.asked.count(12) > 0


def test_a_training_reads_and_writes_no_steps_of_other_rounds(small, policy, tmp_path, monkeypatch):
    run, calls = by_hand(Run(tmp_path / "run", small, policy, progress=False)), []
    for name in ("read_jsonl", "write_jsonl"):
        real = getattr(work, name)

        def spy(path, *args, name=name, real=real):
            calls.append((name, path.name))
            return real(path, *args)

        monkeypatch.setattr(work, name, spy)
    run.distill(2)
    lines = run.folder / "metrics.jsonl"
    steps = [(row["arm"], row["step"]) for row in read_jsonl(lines)]
    assert steps == [(f"round {k}", step) for k in (1, 2) for step in range(small.steps)]
    assert not [call for call in calls if call[1] == "metrics.jsonl"]
    (run.folder / "round_1/manifests/distill.json").unlink()
    shutil.rmtree(run.folder / "round_1/adapter")
    with open(lines, "a") as f:  # another user's
        f.write('{"schema": 1, "arm": "mine"}\n')
    run.distill(1)
    arms = [row["arm"] for row in read_jsonl(lines)]
    assert arms == ["round 2"] * small.steps + ["mine"] + ["round 1"] * small.steps


def test_a_change_under_an_earlier_round_is_told_when_the_next_begins(tmp_path, monkeypatch):
    run = FilesRun(tmp_path / "run", 4, monkeypatch)

    def change(k, stage):
        if (k, stage) == (2, "extract"):
            (run.folder / "round_1/curation.jsonl").write_text("")

    run.start_stage = change
    with pytest.raises(StaleRunError, match=r"curate of round 1: round_1/curation.jsonl is new"):
        run.run_all()
    states = {(s.round, s.stage): s.state for s in run.status()}
    assert states[2, "distill"] != "missing" and states[3, "rollout"] == "missing"


def test_no_two_rounds_play_the_same_maps(monkeypatch):
    played = []
    monkeypatch.setattr(
        work.rollouts, "rollout", lambda p, e, seeds, *_, **__: played.append(seeds)
    )
    for seed in (0, 1, 899):
        run = SimpleNamespace(settings=Settings(seed=seed), policy=0, prompts=0, progress=False)
        for k in (1, 2, 99, 100, 101, 199, 200, 999):
            work._play(run, k, 0, [""] * 5000, 0), work._play(run, k, 5000, [""] * 5000, 0)
    measured = [range(HELD_OUT, HELD_OUT + 10**6), range(gate.VALIDATION, gate.VALIDATION + 64)]
    ends = sorted((maps[0], maps[-1]) for maps in [*played, *measured])
    assert all(a[1] < b[0] for a, b in itertools.pairwise(ends))

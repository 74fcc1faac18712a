"""The loop in a run folder: the files it writes, and that it resumes as if it had never been
stopped.
"""

import json
import math
import shutil
from dataclasses import asdict, replace

import pytest
from helpers import by_hand, make_model

from oelkit.auto_curation import auto_curate
from oelkit.curation import Curation
from oelkit.model.loading import load_policy
from oelkit.records import ExperienceItem, append_jsonl, read_jsonl, to_dict, write_jsonl
from oelkit.runs import files, measures, work
from oelkit.runs.files import sha256
from oelkit.runs.run import Run, run_loop
from oelkit.runs.settings import Settings, run_folder
from oelkit.views.summary import summary

STAGES = ("rollout", "extract", "curate", "collect", "distill", "evaluate")


def start(folder, settings):
    return Run(folder, settings, load_policy(settings.model), progress=False)


@pytest.fixture(scope="module")
def done(settings, tmp_path_factory):
    """Return an uninterrupted, finished run: (folder, metrics)."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    return folder, by_hand(start(folder, settings)).run_all()


def timeless(value):
    """Remove what differs between runs: seconds and the run's name."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "run")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def assert_same_run(a, b):
    for k in (1, 2):
        for name in (
            "trajectories.jsonl",
            "items.jsonl",
            "states.jsonl",
            "experience.md",
            "adapter/adapter_model.safetensors",
        ):
            assert (a / f"round_{k}" / name).read_bytes() == (
                b / f"round_{k}" / name
            ).read_bytes(), (k, name)
    assert timeless(read_jsonl(a / "metrics.jsonl")) == timeless(read_jsonl(b / "metrics.jsonl"))
    for name in ("metrics.json", "round_1/metrics.json", "round_2/metrics.json", "run.json"):
        assert timeless(json.loads((a / name).read_text())) == timeless(
            json.loads((b / name).read_text())
        ), name


def test_the_folder_and_the_metrics_are_as_the_design_says(done, settings):
    folder, metrics = done
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    record = json.loads((folder / "run.json").read_text())
    assert (
        record["settings"] == asdict(replace(settings, gate="warn")) and record["versions"]["torch"]
    )
    assert record["prompts"]["max_new_tokens"] == 4
    assert len(metrics["rounds"]) == 2 and metrics["eval_env"] == "oelkit/FrozenLake3x3Unseen-v0"
    assert set(metrics["bounds"]) >= {"random", "fixed_plan", "ceiling"} and metrics["seed"] == 0
    for k, row in enumerate(metrics["rounds"], 1):
        assert row["round"] == k
        for arm in ("base", "in_context", "consolidated"):
            rate = row["pass_rate"][arm]
            assert rate["n"] == 4 and 0 <= rate["low"] <= rate["pass_rate"] <= rate["high"] <= 1
            assert 0 < row["reply_tokens"][arm] <= 4 and 0 <= row["truncated"][arm] <= 1
        assert len(row["pass_rate"]["in_context"]["by_draw"]) == 2
        assert {"all", "copy"} <= set(row["ood"]["base"]) and {"all", "copy"} <= set(
            row["ood"]["consolidated"]
        )
        assert set(row["seconds"]) == set(STAGES)
        assert {p.name for p in (folder / f"round_{k}").iterdir()} >= {
            "trajectories.jsonl",
            "states.jsonl",
            "items.jsonl",
            "experience.md",
            "adapter",
            "metrics.json",
        }
    assert all(
        row["extraction"] == {"replies": 4, "empty": 4, "nothing_new": 0, "items": 0}
        for row in metrics["rounds"]
    )
    assert [row["items"] for row in metrics["rounds"]] == [2, 0] and metrics["rounds"][0][
        "kept"
    ] == 2
    assert set(metrics["arms"]) == {"forward_kl", "sft", "raw"}
    assert all(
        arm["consolidated"]["n"] == 4 and arm["ood"]["n"] == 1 for arm in metrics["arms"].values()
    )
    assert "in_context" in metrics["arms"]["raw"]
    lines = read_jsonl(folder / "metrics.jsonl")
    assert [(row["arm"], row["round"], row["step"]) for row in lines] == [
        (arm, k, step)
        for arm, k in (("round 1", 1), ("round 2", 2), ("forward_kl", 1), ("sft", 1), ("raw", 1))
        for step in range(2)
    ]
    assert set(lines[0]) >= {
        "loss",
        "entropy",
        "reply_tokens",
        "truncated",
        "grad_norm",
        "lr",
        "seconds",
    }
    assert not list(folder.rglob("*.partial"))


def test_the_table(done):
    text = summary(done[1])
    assert all(
        word in text
        for word in (
            "in context",
            "consolidated",
            "random policy",
            "arm sft",
            "4 held-out maps",
            "without an item: round 1 4 of 4, round 2 4 of 4, normal in later rounds",
        )
    )
    assert max(map(len, text.splitlines())) < 200


def test_scales():
    assert Settings.of("tiny", rounds=2).rounds == 2 and Settings.of("small", seed=3).seed == 3
    paper = Settings.of("paper", model="m", lr=5e-6)
    assert (paper.model, paper.lr, paper.rounds) == ("m", 5e-6, 3)
    assert (
        paper.num_draws,
        paper.extract_games,
        paper.budget_tokens,
        paper.temperature,
        paper.top_k,
    ) == (10, 15, 2048, 0.7, 256)
    assert (paper.batch_size, paper.steps, paper.retention, paper.carry_experience) == (
        64,
        20,
        0.0,
        False,
    )
    assert (paper.env, paper.eval_maps, paper.samples_per_map) == ("oelkit/FrozenLake-v0", 128, 10)
    with pytest.raises(ValueError, match="no scale 'huge': choose one of tiny, small, paper"):
        Settings.of("huge")


def test_a_map_is_played_with_several_sampling_seeds(settings, tmp_path, monkeypatch):
    seen, evaluate = [], measures.evaluation.evaluate

    def spy(*args, **options):
        seen.append(evaluate(*args, **options))
        return seen[-1]

    monkeypatch.setattr(measures.evaluation, "evaluate", spy)
    drawn = set()
    for seed in (0, 1):
        run = start(tmp_path / f"run{seed}", replace(settings, samples_per_map=2, seed=seed))
        row = measures.measure(run, adapter=None)
        assert (row["n"], row["maps"], row["samples_per_map"]) == (8, 4, 2)
        assert [t.seed for t in seen[-1].trajectories] == 2 * list(run.eval_seeds)
        drawn |= {t.id.split("-s")[-1].split("-")[0] for t in seen[-1].trajectories}
    assert drawn == {"0", "1", "2", "3"}  # no two runs share one


def test_the_rounds_carry_experience_and_start_from_the_last_adapter(done, settings):
    folder, _ = done
    assert (folder / "round_1/experience.md").read_text() == (
        "## Draw 0\n- EXPERIENCE ITEM: H is a hole.\n\n"
        "## Draw 1\n- EXPERIENCE ITEM: G is the goal.\n\n"
    )
    assert (folder / "round_2/experience.md").read_text() == (
        folder / "round_1/experience.md"
    ).read_text()
    run = start(folder, settings)
    run.load(2, trained=False)
    one = load_policy(settings.model)
    one.load_adapter(folder / "round_1/adapter")
    weights = {n: p for n, p in run.policy.model.named_parameters()}
    assert all(
        p.equal(weights[n]) and p.equal(weights[n.replace("student", "teacher")])
        for n, p in one.model.named_parameters()
        if ".student." in n
    )
    maps = [{t.seed for t in run.rollout(k)} for k in (1, 2)]
    assert not maps[0] & maps[1] and max(maps[1]) < run.eval_seeds[0]
    assert not {s.trajectory_id for s in run.collect(1)} & {t.id for t in run.rollout(1)}


def test_what_is_carried_is_not_said_twice(settings, tmp_path):
    run = by_hand(start(tmp_path / "run", settings))
    run.policy.save_adapter(run.round_folder(1) / "adapter")
    run.write_experience(1, ["- EXPERIENCE ITEM: H is a hole.", "- EXPERIENCE ITEM: K is a hole."])
    words = ("h is a hole", "H is a hole!", "G is the goal.")
    write_jsonl(
        run.round_folder(2) / "items.jsonl",
        [
            ExperienceItem(f"n{n}{d}", text, (), "m", 2, d)
            for n, text in enumerate(words)
            for d in (0, 1)
        ],
    )
    new = ["- EXPERIENCE ITEM: G is the goal."]
    carried, other = (text.splitlines() for text in run.curate(2))
    assert carried == ["- EXPERIENCE ITEM: H is a hole."] + new
    assert other == ["- EXPERIENCE ITEM: K is a hole.", "- EXPERIENCE ITEM: h is a hole"] + new


def test_items_against_what_earlier_rounds_know_are_left_out(settings, tmp_path):
    run = by_hand(start(tmp_path / "run", settings))
    run.policy.save_adapter(run.round_folder(1) / "adapter")
    run.write_experience(1, ["- EXPERIENCE ITEM: M is the key.", ""])
    said = ("M is the goal.", "G is the goal.")
    items = [ExperienceItem(f"n{n}{d}", said[n], (), "m", 2, d) for n in (0, 1) for d in (0, 1)]
    write_jsonl(run.round_folder(2) / "items.jsonl", items)
    assert not any("M is the goal." in text for text in run.curate(2))
    assert all("G is the goal." in text for text in run.curate(2))


def test_states_from_games_with_the_experience(settings, tmp_path):
    """States are stored without the experience, but stale if it changes."""
    run = by_hand(start(tmp_path / "run", replace(settings, states_with_experience=True)))
    found = run.collect(1)
    assert found and not any("EXPERIENCE ITEM" in str(state.prompt) for state in found)
    assert "round_1/experience.md" in run.stages.manifest(1, "collect")["inputs"]
    run.write_experience(1, ["- EXPERIENCE ITEM: other words.", "- EXPERIENCE ITEM: and more."])
    assert {s.stage: s.state for s in run.status() if s.round == 1}["collect"] == "stale"
    plain = by_hand(start(tmp_path / "plain", settings))
    plain.collect(1)
    assert plain.stages.manifest(1, "collect")["inputs"] == {}


@pytest.mark.slow
def test_a_new_process_for_every_stage_gives_the_same_run(done, settings, tmp_path):
    by_hand(start(tmp_path / "run", settings))
    for k in (1, 2):
        for stage in STAGES:
            getattr(start(tmp_path / "run", settings), stage)(k)
    start(tmp_path / "run", settings).run_all()
    assert_same_run(done[0], tmp_path / "run")


def test_finishing_again_changes_nothing(done, settings):
    folder, metrics = done
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    run = start(folder, settings)
    assert run.run_all() == metrics
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    run.load(2)
    last = load_policy(settings.model)
    last.load_adapter(folder / "round_2/adapter")
    assert all(a.equal(b) for a, b in zip(last.trainable(), run.policy.trainable(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("crash", [KeyboardInterrupt, OSError])
def test_a_crash_amid_training_leaves_nothing_half_done(
    done, settings, tmp_path, monkeypatch, crash
):
    run = by_hand(start(tmp_path / "run", settings))

    def fail(path, row, **options):
        if path.name == "metrics.jsonl" and row["step"] == 1:
            raise crash("power cut")
        return append_jsonl(path, row, **options)

    monkeypatch.setattr(work, "append_jsonl", fail)
    with pytest.raises(crash):
        run.run_all()
    assert (
        not list(tmp_path.rglob("adapter*")) and len(read_jsonl(run.folder / "metrics.jsonl")) == 1
    )
    with open(run.folder / "metrics.jsonl", "a") as f:
        f.write('{"arm": "round 1", "st')  # the line that was being written
    monkeypatch.undo()
    start(tmp_path / "run", settings).run_all()
    assert_same_run(done[0], tmp_path / "run")


def test_rounds_may_be_raised_later_and_nothing_else_changed(done, settings, tmp_path):
    one = replace(settings, rounds=1)
    first = by_hand(start(tmp_path / "run", one)).run_all()
    assert len(first["rounds"]) == 1
    with pytest.raises(
        ValueError,
        match=r"other settings \(steps was 2, is 3, lr was 0.005, is 0.1\): choose another name, "
        r"or open it as it is: Run.open\('.*'\), or changed: Run.open\('.*', steps=3, lr=0.1\)$",
    ):
        start(tmp_path / "run", replace(one, lr=0.1, steps=3))
    more = start(tmp_path / "run", settings).run_all()
    assert more["rounds"][0] == first["rounds"][0] and len(more["rounds"]) == 2
    assert timeless(more["rounds"]) == timeless(done[1]["rounds"])
    other = make_model(tmp_path / "model", seed=1)
    with pytest.raises(ValueError, match=r"model was .*: Run.open\([^,]*\)$"):
        Run(tmp_path / "run", settings, load_policy(other))
    (tmp_path / "run/run.json").write_text("{")
    with pytest.raises(ValueError, match="run.json: damaged"):
        start(tmp_path / "run", settings)


def test_all_items_rejected_is_refused_until_some_are_back(settings, tmp_path):
    settings = replace(settings, rounds=1, run_ablations=False)
    run = by_hand(start(tmp_path / "run", settings))
    items, log = run.round_folder(1) / "items.jsonl", run.round_folder(1) / "curation.jsonl"
    Curation.open(items, log).reject(["i0", "i1"], "nonsense")
    with pytest.raises(
        ValueError,
        match="round 1: all 2 items were rejected; restore some, or add .*curation.jsonl",
    ):
        run.run_all()
    assert (
        not (run.folder / "metrics.jsonl").exists()
        and not (run.round_folder(1) / "states.jsonl").exists()
    )
    curation = Curation.open(items, log)
    curation.restore("i1")
    curation.add("Mine is for all draws.")
    texts = start(tmp_path / "run", settings).experiences(
        1
    )  # redone, as the log is newer than experience.md
    mine = "- EXPERIENCE ITEM: Mine is for all draws."
    assert texts == [mine, f"- EXPERIENCE ITEM: G is the goal.\n{mine}"]
    metrics = start(tmp_path / "run", settings).run_all()
    assert (
        metrics["rounds"][0]["items"] == 2
        and metrics["rounds"][0]["kept"] == 2
        and "arms" not in metrics
    )


def test_a_draw_without_items_is_left_out(settings, tmp_path):
    settings = replace(settings, rounds=1, run_ablations=False, eval_maps=1)
    run = by_hand(start(tmp_path / "run", settings), "Only draw 0.")
    assert run.curate(1) == ["- EXPERIENCE ITEM: Only draw 0.", ""]
    assert run.run_all()["rounds"][0]["pass_rate"]["in_context"]["by_draw"] == [0.0]


def test_fewer_episodes_than_draws(settings, tmp_path):
    run = by_hand(
        start(tmp_path / "run", replace(settings, rounds=1, run_ablations=False, eval_maps=1))
    )
    assert len(run.run_all()["rounds"][0]["pass_rate"]["in_context"]["by_draw"]) == 1


def test_no_items_at_all_says_what_to_do_and_a_person_may_do_it(settings, tmp_path):
    settings = replace(settings, rounds=1, run_ablations=False)
    with pytest.raises(
        ValueError, match="wrote no item about 2 games .*more games or a higher temp.*items.jsonl"
    ):
        start(tmp_path / "run", settings).run_all()
    assert (tmp_path / "run/round_1/items.jsonl").read_text() == ""
    assert len(by_hand(start(tmp_path / "run", settings)).run_all()["rounds"]) == 1


def test_what_left_no_text_is_named(settings, tmp_path):
    run = by_hand(start(tmp_path / "run", replace(settings, budget_tokens=2)))
    with pytest.raises(ValueError, match="no item fits into budget_tokens=2; start a run with mor"):
        run.experiences(1)
    (run.round_folder(1) / "experience.md").write_text("")
    with pytest.raises(ValueError, match=r"experience\.md, put there by hand, has no text"):
        run.experiences(1)


def test_an_item_of_a_draw_that_the_run_has_not_is_not_lost(settings, tmp_path):
    run = by_hand(start(tmp_path / "run", settings))
    path = run.round_folder(1) / "items.jsonl"
    first, last = read_jsonl(path, ExperienceItem)
    write_jsonl(path, [first, replace(last, draw=7)])
    with pytest.raises(ValueError, match=r"items\.jsonl: item 'i1' is of draw 7, .* draws 0 to 1"):
        run.curate(1)
    Curation.open(path, path.with_name("curation.jsonl")).accept("i1")
    assert all("G is the goal." in text for text in run.curate(1))


def test_a_draw_that_a_person_left_out_is_told_before_the_training(settings, tmp_path):
    run = start(tmp_path / "run", settings)
    run.curate(1)
    (run.round_folder(1) / "experience.md").write_text("## Draw 0\nNever step on H.\n")
    with pytest.raises(ValueError, match=r"has 1 headings .* but round 2 continues with 2 draws"):
        run.distill(1)
    assert not (run.folder / "metrics.jsonl").exists()


def test_an_experience_written_by_hand(settings, tmp_path):
    run = start(tmp_path / "run", settings)
    run.curate(1)
    (run.round_folder(1) / "experience.md").write_text("Never step on H.\nReach G.\n")
    assert run.experiences(1) == ["Never step on H.\nReach G."] * 2


def test_a_round_that_no_run_has_is_refused_at_once(settings, tmp_path):
    run = start(tmp_path / "run", settings)
    for k in (0, 1000):  # not after 999 rounds, with a run.json that cannot be read again
        with pytest.raises(ValueError, match=f"round {k}: a round must be 1 to 999"):
            run.rollout(k)
    assert not list((tmp_path / "run").glob("*.jsonl"))


def test_how_a_given_policy_thinks_is_recorded_and_compared(settings, tmp_path):
    policy = load_policy(settings.model, enable_thinking=False)
    run = Run(tmp_path / "run", settings, policy, progress=False)
    run.rollout(1)
    record = json.loads((run.folder / "run.json").read_text())
    assert record["settings"]["enable_thinking"] is False
    with pytest.raises(ValueError, match="enable_thinking"):
        Run(tmp_path / "run", settings, progress=False)


def test_the_rank_of_a_given_policy_is_recorded(settings, tmp_path):
    """Otherwise no later process could continue the run."""
    policy = load_policy(settings.model, lora={"r": 4, "lora_alpha": 8})
    assert Run(tmp_path / "run", settings, policy).settings.lora_rank == 4
    assert Run.open(tmp_path / "run").policy.model.peft_config["student"].r == 4
    with pytest.raises(ValueError, match="lora_rank was 4, is 16"):
        Run.open(tmp_path / "run", load_policy(settings.model))


def test_decisions_left_by_a_kill_do_not_reach_a_new_log(settings, tmp_path):
    run = by_hand(start(tmp_path / "run", settings))
    run.extract(1)
    items, log = (run.round_folder(1) / f"{name}.jsonl" for name in ("items", "curation"))
    decided = auto_curate(Curation(read_jsonl(items, ExperienceItem))).log
    left = {"items": sha256(items), "n": 3}
    left["operations"] = [{**to_dict(operation), "n": operation.n + 3} for operation in decided]
    (run.round_folder(1) / ".curate.decided").write_text(json.dumps(left))
    assert decided and not log.exists()  # the person has moved the log away
    run.curate(1)
    assert Curation.open(items, log).log[0].n == 1


def test_new_items_do_not_meet_an_old_log(settings, tmp_path):
    run = by_hand(start(tmp_path / "run", settings))
    run.curate(1)
    log = (run.round_folder(1) / "curation.jsonl").read_bytes()
    (run.round_folder(1) / "items.jsonl").unlink()
    run.extract(1)
    assert not (run.round_folder(1) / "curation.jsonl").exists()
    assert (run.round_folder(1) / "curation.old.jsonl").read_bytes() == log


def test_the_cap_holds_for_what_is_carried(settings, tmp_path):
    run = start(tmp_path / "run", replace(settings, budget_tokens=60))
    by_hand(run, *[f"Item number {n}." for n in range(6)])
    ids = [len(run.policy.tokenizer(text)["input_ids"]) for text in run.experiences(1)]
    assert max(ids) <= 60 and [text[-2] for text in run.experiences(1)] == ["4", "5"]


def test_an_experience_over_the_context_is_an_error_before_any_training(settings, tmp_path):
    run = by_hand(start(tmp_path / "run", settings), "Far too long. " * 50)
    with pytest.raises(
        ValueError,
        match="the experience that begins '- EXPERIENCE ITEM: Far too long.*context of 512",
    ):
        run.run_all()
    assert (
        not (run.folder / "metrics.jsonl").exists()
        and not (run.round_folder(1) / "adapter").exists()
    )


def test_without_carry_a_round_stands_on_its_own_items(settings, tmp_path):
    run = by_hand(start(tmp_path / "run", replace(settings, carry_experience=False)))
    with pytest.raises(ValueError, match="round 2: .* wrote no item"):
        run.run_all()
    assert (run.round_folder(1) / "metrics.json").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"env": "oelkit/Nowhere-v0"}, "unknown environment 'oelkit/Nowhere-v0'"),
        ({"prompt_set": "none", "model": "no/model"}, "no prompt set 'none'"),  # before the model
        ({"seed": 900}, "seed is 900: must be 0 to 899"),
        ({"extract_games": 0}, "extract_games is 0"),
        ({"state_games": 5001}, "state_games is 5001"),
        ({"rounds": 0}, "rounds is 0"),
    ],
)
def test_wrong_settings_leave_no_run_behind(settings, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        Run(tmp_path / "run", replace(settings, **changes))
    assert not (tmp_path / "run").exists()


def test_a_missing_model_leaves_no_run_behind(settings, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such model folder"):
        run_loop(tmp_path / "run", replace(settings, model=str(tmp_path / "none")), progress=False)
    assert not (tmp_path / "run").exists()


def test_run_names_and_folders_that_cannot_be(settings, tmp_path):
    for name in ("a/b", "../x", "", ".", "..", ".hidden", "a b", "a\nb", "-x"):
        with pytest.raises(ValueError, match="run name"):
            run_folder(name)
    assert run_folder("demo-1.x", tmp_path) == tmp_path / "demo-1.x"
    with pytest.raises(ValueError, match="run name 'a b'"):
        Run(tmp_path / "a b", settings)
    (tmp_path / "file").write_text("not a folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=f"cannot write to the run folder {folder}"):
            Run(folder, settings)
    assert (tmp_path / "file").read_text() == "not a folder"


def test_two_processes_can_try_a_folder_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "write_text", lambda *_: None)  # the other has removed the file
    files.try_to_write(tmp_path / "new")
    assert (tmp_path / "new").is_dir()


def test_the_loss_and_other_options_reach_the_training(settings, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        work.distillation,
        "distill",
        lambda policy, states, texts, config, **options: (
            seen.update(options, texts=texts, **asdict(config)) or []
        ),
    )
    run = by_hand(
        start(
            tmp_path / "run",
            replace(settings, loss="sft", top_k=5, retention=0.25, lr=0.5, temperature=0.9),
        )
    )
    run.distill(1)
    assert {
        k: seen[k]
        for k in ("loss", "top_k", "retention", "lr", "temperature", "steps", "batch_size")
    } == {
        "loss": "sft",
        "top_k": 5,
        "retention": 0.25,
        "lr": 0.5,
        "temperature": 0.9,
        "steps": 2,
        "batch_size": 4,
    }
    assert len(seen["texts"]) == 2 and math.isclose(seen["seed"], 1)


def test_a_model_that_was_replaced_does_not_continue_a_run(tiny_model, settings, tmp_path):
    """Without an adapter yet, nothing else would tell: half of the games would be another's."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    settings = replace(settings, model=str(model))
    Run(tmp_path / "run", settings, progress=False).rollout(1)
    other = make_model(tmp_path / "other", seed=1)
    shutil.copy(other / "model.safetensors", model)
    with pytest.raises(ValueError, match="weights of .* are other ones than when this run began"):
        Run.open(tmp_path / "run")

"""The scripts behind the recorded results run on the embedded model with few games, and draw their
records.
"""

import sys
from itertools import combinations
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace

import gymnasium as gym
import matplotlib
import matplotlib.pyplot as plt
import pytest
from helpers import assert_whole, make_metrics, rate, short_prompts, with_short_probe, words

from oelkit import Run, Settings, load_policy
from oelkit.envs.frozen_lake import FrozenLakeEnv
from oelkit.records import read_jsonl
from oelkit.runs import work
from oelkit.stats import wilson_interval

matplotlib.use("Agg")
MICRO = Path(__file__).parents[1] / "examples" / "micro"
RESULTS = MICRO.parents[1] / "data/results"
sys.path.append(str(MICRO))
import study_plots  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def experiments():
    return run_path(str(MICRO / "claims.py"))


@pytest.fixture
def lake_of_two_turns():
    """Register a world whose games end after two turns. Return its id."""
    for split, name in (("train", "Lake2-v0"), ("unseen", "Lake2Unseen-v0")):
        kwargs = {"size": 3, "holes": (1, 2), "max_turns": 2, "split": split}
        gym.register(f"tests/{name}", FrozenLakeEnv, kwargs=kwargs)
    yield "tests/Lake2-v0"
    for name in ("Lake2-v0", "Lake2Unseen-v0"):
        del gym.registry[f"tests/{name}"]


def test_every_experiment_runs_and_is_drawn(experiments, tmp_path, lake_of_two_turns):
    model = with_short_probe(study_plots.LAKES.model, tmp_path / "model", every=48)
    policy, rows = load_policy(model), []
    experiments["STEPS"] = experiments["steps"].__globals__["STEPS"] = (1, 2)
    less = {"extract_games": 4, "state_games": 2, "num_draws": 2, "eval_maps": 2}
    less["env"] = lake_of_two_turns
    less["prompt_set"] = short_prompts(tmp_path)  # the arms take no max_new_tokens
    settings = Settings(**less, steps=2, batch_size=2, gate="off")
    for name, experiment in experiments["EXPERIMENTS"].items():
        run = Run(tmp_path / name, settings, policy, progress=False)
        found = list(experiment(run))
        assert found and all(
            len(row["passed"]["passes"]) == row["passed"]["n"] == 2 for row in found
        )
        assert max(row.get("tokens", 0) for row in found) <= experiments["BUDGET"]
        rows += [{"experiment": name, "env": run.eval_env, "seed": 0, **row} for row in found]
    arms = {(row["arm"], row.get("how")) for row in rows if row["experiment"] == "texts"}
    assert {("nothing", "base"), ("own items", "in_context"), ("raw games", "consolidated")} <= arms
    by_step = [(row["arm"], row["step"]) for row in rows if row["experiment"] == "steps"]
    assert by_step == [
        (arm, step) for arm in ("reverse_kl", "forward_kl", "sft") for step in (0, 1, 2)
    ]
    starts = [row["passed"] for row in rows if row.get("step") == 0]
    assert starts[0] == starts[1] == starts[2]
    assert set(experiments["figures"](rows)) == set(experiments["EXPERIMENTS"])
    for name in experiments["EXPERIMENTS"]:
        assert all(
            str(found).endswith(".")
            for found in experiments["verdicts"]([r for r in rows if r["experiment"] == name])
        )
    assert all(
        row["arm"].split(": ")[-1].replace("_", " ") in experiments["table"](rows) for row in rows
    )


def passed(passes):
    return {"passes": passes, "pass_rate": passes.count("1") / len(passes), "n": len(passes)}


def test_what_rows_show_and_what_did_not_come_out(experiments):
    def said(name, rows):
        found = experiments["verdicts"](
            [{"experiment": name, "seed": seed, **row} for row in rows for seed in (0, 1)]
        )
        return [not one.came_out for one in found], [one.text for one in found]

    own, as_good, worse = (passed(bits * 8) for bits in ("1110", "1101", "0100"))
    arms = {
        "own items": own,
        "raw games": worse,
        **dict.fromkeys(experiments["RIVALS"]["own items"][1:], as_good),
    }
    missed, found = said(
        "texts", [{"arm": arm, "how": "in_context", "passed": p} for arm, p in arms.items()]
    )
    assert missed == [False, True, True, True, True]
    assert found[0].startswith(
        "own items 75.0% against raw games 25.0%, in context: +50.0 points ["
    )
    assert found[0].endswith("], n = 64.")
    rows = [
        {"arm": arm, "how": how, "passed": own}
        for arm, how in (
            ("own items", "in_context"),
            ("own items", "consolidated"),
            ("raw games", "in_context"),
        )
    ]
    assert len(said("texts", rows)[1]) == 1  # arms without items were not trained
    kept = {"reverse_kl": 0.96, "forward_kl": 0.6, "sft": 0.95}
    rows = [
        {"arm": arm, "step": step, "passed": own, "ood": {"all": all_, "n": 100}}
        for arm, all_ in kept.items()
        for step in (0, 40)
    ]
    missed, found = said("steps", rows)
    assert missed == [True, False, True, True] and "after 40 steps" in found[0]
    assert "OOD 96.0% [92.3%, 98.0%] against 60.0%" in found[1]
    for last_but_one, late in ((own, False), (as_good, False), (worse, True)):
        by_games = [
            {"arm": "curated", "games": n, "draw": 0, "passed": p}
            for n, p in ((1, worse), (2, last_but_one), (4, own))
        ]
        missed, found = said("saturation", by_games)
        assert missed == [False, late] and "1: 25.0% (25.0% to 25.0%), 2: " in found[0]
    rows = [
        {"arm": arm, "passed": p}
        for arm, p in (("all items", own), ("a", as_good), ("b", worse), ("no items", worse))
    ]
    assert [line.split(":")[0] for line in said("leave_one_out", rows)[1]] == [
        "Without `b`",
        "Without `a`",
    ]


def test_pairing_is_by_map(experiments):
    rows = [
        {"arm": arm, "seed": seed, "passed": {"passes": passes}}
        for arm, seed, passes in (
            ("all items", 1, "11"),
            ("all items", 0, "01"),
            ("without", 0, "00"),
            ("without", 1, "01"),
        )
    ]
    (row,) = experiments["paired"](rows)
    assert row["arm"] == "without" and row["difference"][0] == -0.5


def test_the_script_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    out = tmp_path / "rows.jsonl"
    out.write_text((RESULTS / "experiments.jsonl").read_text())
    before = out.read_bytes()
    monkeypatch.setattr(
        sys, "argv", ["claims.py", "--out", str(out), "--seeds", "0:1", "--only", "texts"]
    )
    run_path(str(MICRO / "claims.py"), run_name="__main__")  # seed 0 is complete
    assert out.read_bytes() == before and capsys.readouterr().out == ""


def test_what_the_study_makes_of_the_texts():
    edited = run_path(str(MICRO / "rounds.py"))["edited"]
    texts = ["H is a hole.\nG is the goal."] * 10
    wrong = [
        sum("H is the goal" in text for text in edited(name, k, texts))
        for name, k in (
            ("default", 1),
            ("3 of 10 texts wrong", 1),
            ("5 of 10 texts wrong", 3),
            ("all wrong from round 2", 1),
            ("all wrong from round 2", 2),
            ("wrong goal from round 2, forward KL", 3),
        )
    ]
    assert wrong == [0, 3, 5, 0, 10, 10]
    assert edited("only the hole from round 2", 1, texts) == texts
    assert set(edited("only the hole from round 2", 2, texts)) == {"H is a hole."}


def test_an_adapter_made_anew_knows_nothing_of_the_rounds_before(
    micro_folder, tmp_path, monkeypatch
):
    anew = run_path(str(MICRO / "rounds.py"))["Anew"]
    less = {"extract_games": 4, "state_games": 2, "num_draws": 2, "max_new_tokens": 16}
    settings = Settings(**less, steps=1, batch_size=4, eval_maps=2, run_ablations=False)
    policy = load_policy(micro_folder)
    untrained, at_start = policy.trainable()[1].clone(), []
    distill = work.distillation.distill
    monkeypatch.setattr(
        work.distillation,
        "distill",
        lambda policy, *args, **options: (
            at_start.append(policy.trainable()[1].clone()),
            distill(policy, *args, **options),
        )[1],
    )
    run = anew(tmp_path / "run", settings, policy, progress=False)
    run.distill(1)
    run.distill(2)  # collects its own states, with the weights of round 1
    assert len(at_start) == 2 and all(weights.equal(untrained) for weights in at_start)
    run.load(2)
    assert not policy.trainable()[1].equal(untrained)


def test_a_run_of_the_study_that_stopped_is_not_recorded(tmp_path):
    measure, out = run_path(str(MICRO / "rounds.py"))["measure"], tmp_path / "rows.jsonl"
    row = {"items": 1, "kept": 1, "ood": {"base": 0, "consolidated": 0}, "seconds": {}}
    row["pass_rate"] = {"base": {"pass_rate": 0}}

    def run(_, settings, *__, **___):
        measured = iter([row] * 3)
        none = dict.fromkeys(("curate", "write_experience", "distill"), lambda *_: [])
        return SimpleNamespace(settings=settings, evaluate=lambda _: next(measured), **none)

    measure.__globals__["Run"] = run
    with pytest.raises(StopIteration):
        measure(None, "default", 0, out)  # five rounds
    assert not out.exists()
    measure(None, "SFT", 0, out)
    assert [row["round"] for row in read_jsonl(out)] == [1, 2, 3]


def test_no_two_variants_of_the_study_have_the_same_outcome():
    outcomes = {}
    for row in read_jsonl(RESULTS / "rounds_study.jsonl"):
        last = outcomes.setdefault(row["variant"], {})
        last[row["seed"], row["round"]] = (
            row["in_context"]["pass_rate"],
            row["consolidated"]["pass_rate"],
            row["ood"]["all"],
        )
    for (name, one), (other, two) in combinations(outcomes.items(), 2):
        shared = {at for at in one.keys() & two.keys() if at[1] == 3}
        assert not shared or any(one[at] != two[at] for at in shared), (
            f"{other!r} changed nothing against {name!r}"
        )


def test_the_recorded_figures_can_be_drawn(experiments):
    rows = read_jsonl(RESULTS / "experiments.jsonl")
    figures = experiments["figures"](rows)
    assert set(figures) == {row["experiment"] for row in rows} <= set(experiments["EXPERIMENTS"])
    heads = {name: experiments["headline"](name, of) for name, of in by_experiment(rows).items()}
    assert heads["texts"] == "Consolidated: own items 98%, raw games 0%"
    assert heads["curation"] == "Consolidated: curated by a person 98%, as extracted 0%"
    assert heads["leave_one_out"] == "Without G is a hole.: +57.0 points [+52.1, +62.0]"
    assert heads["steps"].startswith("OOD after 40 steps: on-policy (reverse KL) 84%, off-policy")
    assert heads["saturation"] == "Games read: 10% after 1, 98% after 64"
    some = [row for row in rows if row["experiment"] == "texts" and row["arm"] != "raw games"]
    assert experiments["headline"]("texts", some).endswith("raw games -")  # no items to train on
    for name, figure in figures.items():
        assert figure.get_suptitle().replace("\n", " ").startswith(heads[name])
        assert_whole(figure)
    study = run_path(str(MICRO / "rounds.py"))
    rows = read_jsonl(RESULTS / "rounds_study.jsonl")
    drawn = study["figures"](rows)
    known = {row["variant"] for row in rows}
    shown = {
        f"rounds_{cause}"
        for cause, names in study["CAUSES"].items()
        if len(known.intersection(names)) > 1
    }
    assert set(drawn) == {"pass_rates"} | shown and "rounds_retention" in shown


def by_experiment(rows):
    names = dict.fromkeys(row["experiment"] for row in rows)
    return {name: [row for row in rows if row["experiment"] == name] for name in names}


def make_arms(seeds=2):
    arms = (
        ("nothing", "base", 8, 180),
        ("own items", "in_context", 120, None),
        ("own items", "consolidated", 110, 170),
        ("raw games of a rather long name", "in_context", 9, None),
    )
    return [
        {
            "arm": arm,
            "how": how,
            "seed": s,
            "passed": rate(passes - 4 * s),
            "ood": right and {"all": right / 192, "n": 192},
        }
        for arm, how, passes, right in arms
        for s in range(seeds)
    ]


def test_bars_pool_the_seeds_and_show_each():
    figure = study_plots.bars(make_arms(), make_metrics()["bounds"], "Own items win")
    left, right = figure.axes
    shown = [bar.get_width() for bar in left.patches if bar.get_width()]
    assert shown == pytest.approx([6 / 128, 118 / 128, 108 / 128, 7 / 128])
    assert [bar.get_width() for bar in right.patches] == pytest.approx([180 / 192, 170 / 192])
    (whiskers,) = [c.errorbar for c in left.containers if hasattr(c, "errorbar")][1].lines[2]
    assert sorted(whiskers.get_segments()[0][:, 0]) == pytest.approx(wilson_interval(236, 256))
    assert figure.get_suptitle() == "Own items win"
    assert left.get_xlabel().startswith("n = 256 per arm, 95 % intervals")
    assert right.get_xlabel() == "n = 384"
    assert (
        sorted(line.get_xdata()[0] for line in left.lines if line.get_marker() == "o")[-1]
        == 120 / 128
    )
    assert "random policy 3.1%" in words(figure) and "experience in context" in words(figure)
    assert_whole(figure)
    alone = study_plots.bars(
        [{**row, "ood": None} for row in make_arms(1)], make_metrics()["bounds"], "Pass rate"
    )
    assert "no OOD probe" in words(alone) and len(alone.axes) == 1
    assert_whole(alone)


def test_curves_show_mean_and_range_or_the_interval_of_one():
    rows = [
        {"arm": arm, "step": step, "passed": rate(passes + 10 * s), "ood": {"all": 0.9, "n": 192}}
        for arm, passes in (("reverse_kl", 100), ("something", 50))
        for step in (0, 20)
        for s in (0, 1)
    ]
    panels = {"passed": "Pass rate", "ood": "OOD"}
    figure = study_plots.curves(rows, "step", panels, "Two seeds", make_metrics()["bounds"])
    left, right = figure.axes
    lines = {line.get_label(): line for line in left.lines}
    assert list(lines["on-policy (reverse KL)"].get_ydata()) == [105 / 128] * 2
    assert list(lines["something"].get_xdata()) == [0, 20]
    band = left.collections[0].get_paths()[0].vertices[:, 1]
    assert {band.min(), band.max()} == {100 / 128, 110 / 128}
    assert [len(line.get_ydata()) for line in right.lines] == [2, 4, 2, 4] and len(
        left.lines
    ) == 4 + 3  # floors
    assert_whole(figure)
    one = study_plots.curves(rows[:1] + rows[2:3], "step", {"passed": "Pass rate"}, "One seed")
    band = one.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx(wilson_interval(100, 128))
    assert_whole(one)


def test_differences_are_ranked():
    rows = [
        {"arm": "harmless " * 9, "difference": (0.01, -0.02, 0.04)},
        {"arm": "G", "difference": (-0.6, -0.7, -0.5)},
    ]
    axis = study_plots.differences(rows, "G does the work", "n = 64").axes[0]
    assert axis.figure.get_suptitle() == "G does the work" and "n = 64" in axis.get_xlabel()
    assert [bar.get_width() for bar in axis.patches] == [-0.6, 0.01]
    assert axis.get_yticklabels()[0].get_text() == "G"
    (whiskers,) = axis.containers[0].lines[2]
    assert sorted(whiskers.get_segments()[0][:, 0]) == pytest.approx([-0.7, -0.5])
    assert_whole(axis.figure)
    assert plt.get_fignums() == []

"""Estimates contain every stage, leave nothing behind, and have the right number of tokens."""

from dataclasses import replace

import pytest
import torch
from helpers import by_hand

from oelkit import __main__ as cli
from oelkit.records import Trajectory, read_jsonl
from oelkit.runs.run import Run

pytestmark = pytest.mark.slow


def test_an_estimate_names_every_stage_and_leaves_nothing_behind(settings, tmp_path):
    run = Run(tmp_path / "run", replace(settings, rounds=1, run_ablations=True), progress=False)
    before = [p.clone() for p in run.policy.trainable()]
    said = run.estimate(price_per_hour=6.0)
    assert all(torch.equal(a, b) for a, b in zip(before, run.policy.trainable(), strict=True))
    assert sorted(path.name for path in run.folder.iterdir()) == ["run.json"]
    metrics = by_hand(run).run_all()
    stages = {*metrics["rounds"][0]["seconds"], "base", "other arms", "trial"}
    assert stages <= {*said.seconds, "curate"} and all(s >= 0 for s in said.seconds.values())
    assert said.minutes == pytest.approx(
        sum(s for stage, s in said.seconds.items() if stage != "trial") / 60
    )
    assert said.price == pytest.approx(said.minutes / 10)
    assert f"price        {said.price:.2f}" in str(said) and "whole run" in str(said)
    assert said.memory.peak > 0 and "above the loaded model" in str(said)


def test_the_tokens_are_those_that_the_run_samples(settings, tmp_path):
    """This model's replies have at most 4 tokens, so the games bound the sum."""
    small = replace(settings, rounds=1, run_ablations=False, gate="off", eval_maps=8)
    run = Run(tmp_path / "run", small, progress=False)
    said = run.estimate()
    assert said.price is None and "price" not in str(said)
    metrics = by_hand(run).run_all()["rounds"][0]
    games = read_jsonl(run.folder / "round_1/trajectories.jsonl", Trajectory)
    turns = sum(len(game.turns) for game in games) / len(games)
    played = (small.extract_games + small.state_games + 3 * small.eval_maps) * turns
    sampled = played * metrics["reply_tokens"]["consolidated"]
    sampled += sum(
        row["replies"] * row["reply_tokens"] for row in read_jsonl(run.folder / "metrics.jsonl")
    )
    assert 0.6 * sampled < said.sampled_tokens < 1.6 * sampled


def test_more_of_everything_takes_longer(settings, tmp_path):
    run = Run(tmp_path / "run", settings, progress=False)
    little = run.estimate()
    run.settings = replace(settings, rounds=20, eval_maps=2000, steps=400, extract_games=400)
    much = run.estimate()
    assert much.minutes > 5 * little.minutes
    assert much.sampled_tokens > 20 * little.sampled_tokens


def test_the_command(settings, capsys):
    flags = [
        f"--{name.replace('_', '-')}={getattr(settings, name)}"
        for name in (
            "model",
            "env",
            "num_draws",
            "steps",
            "batch_size",
            "eval_maps",
            "prompt_set",
            "max_new_tokens",
            "rounds",
            "extract_games",
            "state_games",
        )
    ]
    assert cli.main(["estimate", *flags, "--no-run-ablations", "--price-per-hour", "2"]) == 0
    out = capsys.readouterr().out
    for said in ("distill", "evaluate", "whole run", "memory", "price"):
        assert said in out

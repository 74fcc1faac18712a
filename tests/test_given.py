"""Every step reports a wrong type in a sentence, before anything is played, read or trained."""

import json

import numpy as np
import pytest
from helpers import ROOT, make_game

from oelkit import (
    Curation,
    Run,
    Settings,
    auto_curate,
    distill,
    evaluate,
    export,
    extract,
    ifeval,
    load_policy,
    memory_plan,
    parse_items,
    probe,
    rollout,
    summary,
)
from oelkit.__main__ import main
from oelkit.records import ExperienceItem, State
from oelkit.stats import draw_spread, episodes_needed, paired_bootstrap
from oelkit.steps.agreement import agreement
from oelkit.steps.compare import compare_answers
from oelkit.steps.evaluation import report_of
from oelkit.steps.rollouts import states

LAKE = "oelkit/FrozenLake-v0"
PAPER = ROOT / "oelkit/prompts/paper.toml"
STATE = State("s", "t", 0, [{"role": "user", "content": "?"}])
GAME = make_game(moves=["[left]"])
ITEM = ExperienceItem("i", "H is a hole.", (), "m", 1, 0)


@pytest.mark.parametrize(
    "wrong, told",
    [
        (lambda p: distill(p, "one text", "notes"), "states: expected a list of State records"),
        (lambda p: distill(p, [STATE, {"prompt": []}], "notes"), "number 1 is the dict"),
        (lambda p: distill(p, STATE, "notes"), "states: .* got the State"),
        (lambda p: distill(p, [STATE], [ITEM]), "experiences: .* number 0 is the ExperienceItem"),
        (lambda p: distill(p, [STATE], None), "experiences: .* got the NoneType 'None'"),
        (lambda p: rollout(p, LAKE, "123"), "seeds: .* whole numbers, got the str '123'"),
        (lambda p: rollout(p, LAKE, 3), "seeds: .* got the int '3'"),
        (lambda p: rollout(p, LAKE, ["1"]), "seeds: .* number 0 is the str '1'"),
        (lambda p: rollout(p, LAKE, [1], {0: "notes"}), "experience: .* got the dict"),
        (lambda p: evaluate(p, LAKE, "12"), "seeds: .* got the str '12'"),
        (lambda p: evaluate(p, LAKE, [1], sampling_seeds="01"), "sampling_seeds: .* got the str"),
        (lambda p: evaluate(p, LAKE, [1], [ITEM]), "experience: .* number 0"),
        (lambda p: evaluate(p, LAKE, [0.5]), "seeds: .* number 0 is the float '0.5'"),
        (lambda p: extract(p, "a game"), "trajectories: .* got the str 'a game'"),
        (lambda p: extract(p, [STATE]), "trajectories: .* number 0 is the State"),
        (lambda p: agreement(p, [STATE], [ITEM]), "experience: .* got the list"),
        (lambda p: states("games"), "trajectories: .* got the str"),
        (lambda p: report_of([STATE]), "trajectories: .* number 0"),
        (lambda p: Curation("items.jsonl"), "items: .* got the str 'items.jsonl'"),
        (lambda p: Curation(["H is a hole."]), "items: .* number 0 is the str"),
        (
            lambda p: rollout("micro", LAKE, [1]),
            "policy: .* the str 'micro'; use oelkit.load_policy",
        ),
        (lambda p: distill("micro", [STATE], "notes"), "policy: expected a loaded model"),
        (lambda p: distill(p, [State("s", "t", 0, None)], "notes"), "state 's', prompt: .* None"),
        (lambda p: distill(p, [STATE], "notes", steps="3"), "steps: expected int, got the str"),
        (lambda p: distill(p, [STATE], "notes", {"steps": 3}), "config: expected a DistillConfig"),
        (lambda p: distill(p, [STATE], "notes", seed="0"), "seed: expected a whole number"),
        (lambda p: distill(p, [STATE], "notes", step=1), r"'step' \(did you mean steps\?\)"),
        (
            lambda p: rollout(p, LAKE, [1], sampling={"top_k": 1}),
            "sampling: expected a Sampling or its fields as keywords, got the dict",
        ),
        (lambda p: rollout(p, LAKE, [1], temperature="0"), "temperature: expected float, got"),
        (lambda p: rollout(p, LAKE, [1], env_kwargs="x"), "env_kwargs: expected a dict"),
        (lambda p: evaluate(p, LAKE, [1], seed=3), r"seed: use sampling_seeds=\(0,\)"),
        (lambda p: rollout(p, Run, [1]), "env_id: expected a str, the id of a registered world"),
        (lambda p: extract(p, [GAME], num_draws="2"), "num_draws: expected a whole number"),
        (lambda p: extract(p, [GAME], writer=lambda asked: None), "what writer gives: .* None"),
        (lambda p: extract(p, [GAME], writer="gpt"), "writer: expected a function, got the str"),
        (lambda p: extract(p, [GAME], on_step=3), "on_step: expected a function, got the int"),
        (lambda p: distill(p, [STATE], "notes", on_step=3), "on_step: expected a function"),
        (lambda p: distill(p, [STATE], "notes", checkpoint=3), "checkpoint: expected a path"),
        (lambda p: rollout(p, LAKE, [1], round="1"), "round: expected a whole number"),
        (lambda p: extract(p, [GAME], round="1"), "round: expected a whole number"),
        (lambda p: agreement(p, [STATE], "notes", max_new_tokens="9"), "max_new_tokens: .* '9'"),
        (lambda p: probe("micro", "probe.jsonl"), "policy: expected a loaded model"),
        (lambda p: probe(p, None), "path: expected a path"),
        (lambda p: ifeval("micro"), "policy: expected a loaded model"),
        (lambda p: ifeval(p, 5), "dataset: expected a path"),
        (lambda p: ifeval(p, limit="5"), "limit: expected a whole number"),
        (lambda p: ifeval(p, max_new_tokens="5"), "max_new_tokens: .* got the str '5'"),
        (lambda p: ifeval(p, max_token=5), r"'max_token' \(did you mean max_new_tokens\?\)"),
        (lambda p: ifeval(p, sampling={"top_k": 1}), "sampling: expected a Sampling"),
        (lambda p: p.load_adapter(3), "folder: expected a path, got the int '3'"),
        (lambda p: p.save_adapter(3), "folder: expected a path, got the int '3'"),
        (lambda p: Curation([ITEM]).accept(3), "ids: expected a list of .* got the int '3'"),
        (lambda p: auto_curate(Curation([ITEM]), known=[5]), "known: .* number 0 is the int"),
        (lambda p: auto_curate([ITEM]), "curation: expected a Curation, got the list"),
        (lambda p: Curation([ITEM], 5), "log_path: expected a path, got the int"),
        (lambda p: Run("run", "tiny"), r'settings: .* Settings.of\("tiny"\)'),
        (lambda p: Run("run", Settings(), "micro"), "policy: expected a loaded model"),
        (lambda p: Run("run", Settings(steps="3"), p), "steps: expected int, got the str '3'"),
        (lambda p: export(5), "run: expected a path, got the int"),
        (lambda p: load_policy(None), "name_or_path: expected a path"),
        (lambda p: load_policy("micro", lora="r=8"), "lora: expected a dict such as"),
        (lambda p: parse_items(None), "text: expected a str"),
        (lambda p: summary({}), "metrics: expected the result of Run.run_all"),
        (lambda p: memory_plan(p, float("nan")), "experience_tokens: expected a whole number"),
        (lambda p: memory_plan(p, retention="half"), "retention: expected float"),
        (lambda p: paired_bootstrap("01", "10"), r"stats.outcomes\(passes, maps\)"),
        (lambda p: paired_bootstrap(["01"], ["10"]), r"stats.outcomes\(passes, maps\)"),
    ],
)
def test_a_wrong_type_is_told_in_a_sentence(tiny, tmp_path, monkeypatch, wrong, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match=told):
        wrong(tiny)
    assert not [*tmp_path.iterdir()]  # no unreadable run is left behind


@pytest.mark.parametrize(
    "wrong, told",
    [
        (lambda p: memory_plan(p, -1), "experience_tokens=-1: need 0 or more"),
        (lambda p: memory_plan(p, reply_tokens=0), "reply_tokens=0: need 1 or more"),
        (lambda p: memory_plan(p, texts=0), "texts=0: need 1"),
        (lambda p: distill(p, [STATE], "notes", top_k=-1), "top_k=-1: need 0 or more"),
        (lambda p: distill(p, [STATE], "notes", max_new_tokens=0), "max_new_tokens=0: need 1"),
        (lambda p: distill(p, [STATE], "notes", batch_tokens=-1), "batch_tokens=-1: need 1"),
        (lambda p: distill(p, [STATE], "notes", clip=0.0), "clip=0.0: need a number above 0"),
        (lambda p: agreement(p, [STATE], "notes", max_new_tokens=0), "max_new_tokens=0"),
        (lambda p: p.encode(3), "a message has no role"),
        (lambda p: compare_answers(p, None, "notes"), "a message has no role"),
        (lambda p: evaluate(p, LAKE, [1], sampling_seeds=[0, 0]), "the same games twice"),
        (lambda p: paired_bootstrap([0, np.nan], [1, 1]), "not finite"),
        (lambda p: draw_spread([0.1, 2], 9), "numbers from 0 to 1"),
        (lambda p: episodes_needed(0.5, power=1), "power=1, alpha=0.05: need numbers between"),
        (lambda p: Curation([ITEM, ITEM]), "num_draws"),
    ],
)
def test_a_wrong_number_is_told_in_a_sentence(tiny, wrong, told):
    with pytest.raises(ValueError, match=told):
        wrong(tiny)


def test_what_is_meant_is_taken(tiny):
    """Ranges and arrays are accepted, and one text for all."""
    for seeds in (range(2), np.arange(2), (np.int64(0), 1)):
        games = rollout(tiny, LAKE, seeds, "notes", max_new_tokens=2, prompt_set="brief")
        assert [game.seed for game in games] == [0, 1]
    assert len(states(tuple(games))) >= 2


def test_numbers_of_numpy_and_paths_are_taken(tiny, tmp_path):
    how = {"steps": np.int64(1), "batch_size": np.int64(1), "lr": np.float32(1e-4)}
    rows = []
    for seed in (np.int64(3), 3):
        tiny.reset()
        rows += distill(tiny, [STATE], "notes", seed=seed, max_new_tokens=2, **how)
    assert rows[0]["loss"] == rows[1]["loss"]
    prompts = tmp_path / "own.toml"
    prompts.write_text(PAPER.read_text("utf-8"), "utf-8")
    settings = Settings(seed=np.int64(1), lr=np.float64(1e-4), prompt_set=prompts)
    Run(tmp_path / "run", settings, tiny, progress=False)
    assert Run.open(tmp_path / "run", tiny).settings.prompt_set == str(prompts)


def test_a_file_in_place_of_its_text_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").write_text("H is a hole.", "utf-8")
    for given in ("notes", tmp_path / "notes", "run/experience.md", "run/items.jsonl"):
        read = "Curation.open" if str(given).endswith("l") else r"Path\(.*\).read_text\(\)"
        for ask in (
            lambda: distill(tiny, [STATE], given),
            lambda: distill(tiny, [STATE], ["text", given]),
            lambda: evaluate(tiny, LAKE, range(1), experience=given),
        ):
            with pytest.raises(TypeError, match=f"is the name of a file; pass its text: {read}"):
                ask()
    for given in ("notes", "run/experience.md"):
        for ask in (agreement, compare_answers):
            with pytest.raises(TypeError, match="is the name of a file"):
                ask(tiny, [STATE] if ask is agreement else STATE.prompt, given)


def test_a_text_that_is_known_is_not_read_by_its_letters():
    other = ExperienceItem("j", "H is the goal.", (), "m", 1, 0)
    (item,) = auto_curate(Curation([other]), known="H is a hole.").items
    assert item.status == "rejected"


def test_errors_on_the_command_line_are_in_its_words(tmp_path, monkeypatch, capsys):
    """Not in Python's terms. A misspelt short name does not query the hub."""
    monkeypatch.chdir(tmp_path)
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "chats.jsonl").write_text(json.dumps(good) + "\n{\n")
    (tmp_path / "items.jsonl").write_text('{"schema": 1}\n' * 2)
    for line, end in (
        ("import chats.jsonl", "Fix the lines, or leave them out with --bad skip"),
        ("extract --trajectories items.jsonl --out y", "(1 more bad line). Fix or delete the line"),
        ("play --model mirco --out y", "mirco (did you mean micro?): no such model folder"),
    ):
        assert main(line.split()) == 1
        assert capsys.readouterr().err.endswith(f"{end}\n")

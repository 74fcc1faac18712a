"""The embedded model and that of its first phase: their recipe, what they never saw, and that they
learn in the loop without shortcuts.
"""

import json
import random
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import load_script
from safetensors.torch import load_file

from oelkit import Run, Settings, envs, evaluate, load_policy, probe
from oelkit.records import Outcome, read_jsonl

pytestmark = pytest.mark.slow

DATA = Path(__file__).parents[1] / "data"
MICRO, LAKES = DATA / "micro", DATA / "micro_lakes"
SEEDS = range(900_000_000, 900_000_128)
NOTES = "- EXPERIENCE ITEM: H is a hole.\n- EXPERIENCE ITEM: G is the goal."


@pytest.fixture(scope="module")
def make():
    return load_script("data/micro/make.py")


@pytest.fixture(scope="module")
def micro():
    return load_policy("micro")


@pytest.fixture(scope="module")
def lakes():
    return load_policy(LAKES)


@pytest.mark.parametrize("folder", [MICRO, LAKES], ids=lambda folder: folder.name)
def test_the_folder_is_a_plain_small_transformers_model(folder):
    micro = load_policy(folder)
    assert (folder / "model.safetensors").stat().st_size < 15_000_000
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"] and micro.default_prompt_set == "brief"
    for text in ("H", "G", " a3", " d4", "[down]", "- EXPERIENCE ITEM: ", "\n"):
        ids = micro.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(ids) == 1 and micro.tokenizer.decode(ids) == text


def test_what_pre_training_never_shows(make):
    rng = random.Random(5)
    for _ in range(3000):
        layout, symbols = make.draw_world(rng)
        assert {symbols["hole"], symbols["goal"]} != {"H", "G"} and not layout.unseen
    assert not any(
        {"H", "G"} & set(row["messages"][0]["content"].split()) for row in make.probe(1, n=20)
    )


def test_the_games_of_pre_training_are_those_of_the_world(make):
    """The recipe writes its own games, for speed. The same moves in the real world must give the
    same words and endings.
    """
    rng, endings = random.Random(3), set()
    for _ in range(300):
        layout, symbols = make.draw_world(rng)
        game = make.stroll(rng, layout, symbols)
        env = envs.make(
            "oelkit/FrozenLake4x4-v0", size=layout.size, board="labelled", symbols=symbols
        )
        observation, _ = env.reset(seed=0, options={"layout": layout})
        assert observation == game.turns[0].observation
        for turn in game.turns:
            *_, info = env.step(f"[{turn.action}]")
            if (
                info["outcome"] is Outcome.INVALID
            ):  # the recipe's player can hit walls twice and play on
                break
            assert info["feedback"] == turn.feedback
        else:
            assert info["outcome"] is game.outcome
            endings.add(game.outcome)
    assert endings == {Outcome.SUCCESS, Outcome.FAILURE, Outcome.TURN_LIMIT}


def test_the_recipe_runs_and_gives_the_same_weights_for_the_same_seed(make, tmp_path, monkeypatch):
    whole = vars(make).copy()
    for name in ("a", "b"):
        options = [
            "--out",
            str(tmp_path / name),
            "--scale",
            "0.0004",
            "--width",
            "32",
            "--layers",
            "1",
            "--batch-tokens",
            "2048",
        ]
        monkeypatch.setattr("sys.argv", ["make.py", *options])
        # fewer samples than the model's own: drawing them took most of the time
        for part, fewer in (("batches", {"pool": 250}), ("make_tokenizer", {"samples": 2000})):
            monkeypatch.setattr(make, part, partial(whole[part], **fewer))
        monkeypatch.setattr(
            make, "scores", lambda *_: {"act": 0.0}
        )  # scoring would take longer than this training
        make.main()
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    for folder in ("a", "a_lakes"):
        assert load_policy(tmp_path / folder).default_prompt_set == "brief"
        assert read_jsonl(tmp_path / folder / "probe.jsonl")
    first = load_file(tmp_path / "a_lakes" / "model.safetensors")
    assert not any(torch.equal(a[k], first[k]) for k in a)


def test_the_base_is_no_better_than_a_player_who_guesses(lakes):
    """On every lake: also with letters in swapped roles, with one hole and two decoys, and with two
    goals.
    """
    seeds = SEEDS[:32]
    worlds = [
        ("oelkit/FrozenLake4x4Unseen-v0", {}),
        ("oelkit/FrozenLake3x3Unseen-v0", {}),
        ("oelkit/FrozenLake4x4Unseen-v0", {"symbols": {"hole": "G", "goal": "H"}}),
        ("oelkit/FrozenLake4x4Unseen-v0", {"holes": 1, "decoys": 2}),
    ]
    for env_id, env_kwargs in worlds:
        report = evaluate(lakes, env_id, seeds, adapter=None, env_kwargs=env_kwargs)
        told = evaluate(
            lakes,
            env_id,
            seeds,
            NOTES if "symbols" not in env_kwargs else SWAPPED,
            adapter=None,
            env_kwargs=env_kwargs,
        )
        bounds = envs.bounds(env_id, seeds, **env_kwargs)
        assert report.low <= max(bounds["random"], bounds["fixed_plan"]), (
            env_id,
            env_kwargs,
            report.summary(),
            bounds,
        )
        assert told.low > report.high, (env_id, env_kwargs, told.summary(), report.summary())


SWAPPED = NOTES.replace("H is a hole", "H is the goal").replace("G is the goal", "G is a hole")


@pytest.fixture(scope="module")
def learned(lakes, tmp_path_factory):
    """Run one round of the loop on this model, with a seed not used in any record."""
    run = Run(
        tmp_path_factory.mktemp("runs") / "learned",
        Settings(lr=1e-3, rounds=1, run_ablations=False, seed=77, gate="off"),
        lakes,
        progress=False,
    )
    return run, run.run_all()


def test_one_round_learns(learned):
    first = learned[1]["rounds"][0]["pass_rate"]
    base, context, weights = (first[arm] for arm in ("base", "in_context", "consolidated"))
    assert base["n"] == 128 and base["high"] < context["low"] and base["high"] < weights["low"]
    assert weights["pass_rate"] >= 0.8 * context["pass_rate"]


def test_what_it_learned_is_the_letters_not_a_shortcut(learned, lakes):
    """With letters in swapped roles, the student must now lose. With one hole and two decoys, it
    must still win.
    """
    learned[0].load(1)
    world = "oelkit/FrozenLake4x4Unseen-v0"
    swapped = evaluate(lakes, world, SEEDS, env_kwargs={"symbols": {"hole": "G", "goal": "H"}})
    assert swapped.high < envs.bounds(world, SEEDS)["random"] + 0.05
    decoys = evaluate(lakes, world, SEEDS, env_kwargs={"holes": 1, "decoys": 2})
    base = evaluate(lakes, world, SEEDS, adapter=None, env_kwargs={"holes": 1, "decoys": 2})
    assert decoys.low > base.high


def test_another_seed_of_the_loop_agrees_with_the_record(learned):
    """The recorded spread over seeds (data/results, made by examples/micro/rounds.py) holds for a
    seed that is not in it.
    """
    rows = read_jsonl(DATA / "results" / "rounds_study.jsonl")
    known = [row for row in rows if row["variant"] == "default" and row["round"] == 1]
    assert len({row["seed"] for row in known} - {77}) >= 5
    first = learned[1]["rounds"][0]["pass_rate"]
    for arm in ("base", "in_context", "consolidated"):
        rates = [row[arm]["pass_rate"] for row in known]
        assert min(rates) - 0.15 <= first[arm]["pass_rate"] <= max(rates) + 0.15, (arm, rates)


def notes(letters: str) -> str:
    """Return items about the letters of a board: hole, key, goal, hole."""
    roles = zip(letters, ("a hole", "the key", "the goal", "a hole"), strict=True)
    return "\n".join(f"- EXPERIENCE ITEM: {x} is {role}." for x, role in roles)


def test_on_descent_it_reads_notes_and_has_no_shortcut(micro):
    """Without notes it guesses. With notes on one board it passes that board and guesses on the
    next. If the world's letters are swapped, it follows the notes into the hole.
    """
    world, first, second = "oelkit/DescentUnseen-v0", "TMRB", "FCWL"
    assert list(envs.make(world).roles(1)) == list(first)

    def rate(text: str, levels: int, maps=64, **kwargs):
        kwargs |= {"levels": levels}
        return evaluate(micro, world, SEEDS[:maps], text, adapter=None, env_kwargs=kwargs)

    guess = 1 / 12
    base, one = rate("", 1), rate(notes(first), 1, maps=32)
    assert base.low <= guess and one.low > 0.8
    half, two = rate(notes(first), 2), rate(f"{notes(first)}\n{notes(second)}", 2, maps=32)
    assert half.low <= guess and two.low > 0.7
    assert rate(notes(first), 1, letters="RMTB").high < guess


@pytest.mark.parametrize("folder, questions", [(MICRO, 256), (LAKES, 192)], ids=["micro", "lakes"])
def test_the_probe_is_passed_by_the_base(folder, questions):
    result = probe(load_policy(folder), folder / "probe.jsonl", adapter=None)
    assert result["n"] == questions and result["all"] > 0.7

"""The waiter world and its script, tried on the embedded model."""

import json
import sys
from pathlib import Path
from runpy import run_path

import matplotlib
import pytest

from oelkit import Run, envs, load_policy, load_prompt_set
from oelkit.prompts import act_messages
from oelkit.records import Evidence, ExperienceItem, read_jsonl, write_jsonl
from oelkit.runs.run import HELD_OUT
from oelkit.runs.stages import status

pytestmark = pytest.mark.slow

matplotlib.use("Agg")
FOLDER = Path(__file__).parents[1] / "examples" / "waiter"
WORLD = "waiter:waiter/Waiter-v0"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def learn():
    return run_path(str(FOLDER / "learn.py"))


def test_held_out_guests_are_never_seen_in_training():
    train = envs.make(WORLD)
    assert envs.held_out(WORLD) == "waiter:waiter/WaiterUnseen-v0"
    unseen = envs.make(envs.held_out(WORLD))
    seen = {train.reset(seed=seed)[0].split(" sits")[0] for seed in range(400)}
    new = [unseen.reset(seed=HELD_OUT + seed)[0] for seed in range(128)]
    assert not seen & {guest.split(" sits")[0] for guest in new}
    assert {guest.split()[-2] for guest in new} == {
        "red",
        "green",
        "blue",
        "white",
        "black",
        "yellow",
    }
    assert train.reset(seed=3)[0] == train.reset(seed=3)[0]


@pytest.mark.parametrize(
    ("reply", "wins"),
    [
        ("They want {}.", True),
        ("{}, please, no: {}", True),
        ("Tea, coffee, milk, juice, soup or water.", False),
        ("The guests want a dog.", False),
        ("", False),
    ],
)
def test_the_right_drink_alone_wins(reply, wins):
    world = envs.make(WORLD)
    guest, _ = world.reset(seed=1)
    tables = __import__("waiter").TABLES
    drink = tables[guest.split()[-2]]
    told, reward, ended, _, info = world.step(reply.replace("{}", drink.capitalize()))
    assert (info["outcome"] == "success", bool(reward), ended) == (wins, wins, True)
    assert (
        told.endswith(f'"At the {guest.split()[-2]} table we drink {drink}."')
        and info["feedback"] == told
    )


def test_prompts_ask_about_the_guest():
    prompt_set = load_prompt_set(FOLDER / "waiter.toml")
    (message,) = act_messages(prompt_set, "A guest sits down.", moves=())
    assert message["content"].startswith("A guest sits down.") and message["content"].endswith(
        "one short sentence."
    )


def test_the_curated_arm_differs_in_what_its_writer_reads_of_a_turn(learn):
    settings = (learn["settings_of"](arm, learn["SETTINGS"]) for arm in ("own", "curated"))
    own, curated = (load_prompt_set(one.prompt_set) for one in settings)
    assert own.turn.replace("You brought: {action}", "You said: {reply}") == curated.turn
    replace = learn["replace"]
    assert replace(curated, turn=own.turn, name=own.name) == own != curated


def test_what_is_true(learn):
    right = ("Guests at the red table want tea.", "At the BLUE table they want to drink milk")
    wrong = (
        "Guests at the red table want milk.",
        "Guests at the red table want tea or milk.",
        "Guests want tea.",
        "At the red table tea, at the blue table milk.",
        "Guests at the red table want a dog.",
    )
    assert all(map(learn["is_true"], right)) and not any(map(learn["is_true"], wrong))


@pytest.fixture
def small(learn, micro_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return learn["replace"](
        learn["SETTINGS"],
        model=str(micro_folder),
        dtype="auto",
        rounds=1,
        extract_games=2,
        state_games=2,
        num_draws=2,
        steps=1,
        batch_size=2,
        eval_maps=4,
        max_new_tokens=8,  # truncates the base model's replies
    )


def test_an_arm_runs_is_curated_and_drawn(learn, small, tmp_path):
    mine = learn["settings_of"]("curated", small)
    run = Run("runs/waiter_curated", mine, load_policy(small.model), progress=False)
    texts = (
        "Guests at the red table want tea.",
        "Guests at the red table want a dog.",
        "At the red table: tea",
    )
    write_jsonl(
        run.round_folder(1) / "items.jsonl",
        [
            ExperienceItem(f"i{n}", text, (Evidence(game.id, 0),), "micro", 1, n % 2)
            for n, (text, game) in enumerate(zip(texts, [*run.rollout(1)] * 2))
        ],
    )
    out = tmp_path / "waiter.jsonl"
    learn["learn"]("curated", run.settings, out)
    learn["learn"]("curated", run.settings, out)  # resumed: the row is replaced
    (row,) = read_jsonl(out)
    assert {s.state for s in status(run.folder) if s.round == 1} == {"done"}
    assert row["texts"] == ["- EXPERIENCE ITEM: Guests at the red table want tea."] * 2
    assert (row["items"], row["true"], row["consolidated"]["n"], row["as_written"]["n"]) == (
        3,
        2,
        4,
        4,
    )
    for how in ("in_context", "consolidated"):
        tables = row["by_table"][how]
        right, n = (sum(int(cell.split(" of ")[i]) for cell in tables.values()) for i in (0, 1))
        assert (right, n) == (round(4 * row[how]["pass_rate"]), 4) and set(tables) <= set(
            learn["TABLES"]
        )
    assert learn["figure"]([row]).axes
    assert "| curated, round 1 | 0 | " in learn["table"](
        [row]
    ) and "| uncurated items | 0 | | " in learn["table"]([row])


def test_own_games_stand_beside_own_items_and_another_models_items_are_an_arm(
    learn, small, tmp_path
):
    for name, text in (
        ("own", "Guests at the red table want tea."),
        ("own_items_of_micro_writer", "Tea!"),
    ):
        run = Run(f"runs/waiter_{name}", small, load_policy(small.model), progress=False)
        item = ExperienceItem("i", text, (Evidence(run.rollout(1)[0].id, 0),), "micro", 1, 0)
        write_jsonl(
            run.round_folder(1) / "items.jsonl", [item, learn["replace"](item, id="j", draw=1)]
        )
    games = learn["as_played"](run, 1)
    assert len(games) == 2 and all(game.count("The guest ") == 2 for game in games)
    out = tmp_path / "waiter.jsonl"
    learn["learn"]("own", small, out)
    learn["learn"]("own", small, out, writer=small.model)
    own, other = read_jsonl(out)
    assert (own["arm"], own["true"], own["as_played"]["n"]) == ("own", 2, 4)
    assert (other["arm"], other["true"], other["texts"]) == (
        "own, items of micro",
        0,
        ["- EXPERIENCE ITEM: Tea!"] * 2,
    )
    assert other["consolidated"]["n"] == 4 and "as_played" not in other
    names = [
        label.get_text().replace("\n", " ")
        for label in learn["figure"]([own, other]).axes[0].get_yticklabels()
    ]
    assert "its games, no items, round 1" in names and len(names) == 4


def test_a_trial_takes_over_games_and_items_and_learns_with_another_rank(learn, small, tmp_path):
    first = Run("runs/first", small, load_policy(small.model), progress=False)
    item = ExperienceItem(
        "i",
        "Guests at the red table want tea.",
        (Evidence(first.rollout(1)[0].id, 0),),
        "micro",
        1,
        0,
    )
    write_jsonl(first.round_folder(1) / "items.jsonl", [item])
    first.curate(1), first.collect(1)
    out = tmp_path / "waiter.jsonl"
    for changes, settings, same in (
        (["rank=4"], learn["replace"](small, lora_rank=4), True),
        (["collect=3"], learn["replace"](small, state_games=3), False),
    ):
        learn["learn"]("own", settings, out, changes, like=first.folder)
        folder = Path(f"runs/waiter_own_{changes[0].replace('=', '_')}/round_1")
        for name, kept in (("items", True), ("trajectories", True), ("states", same)):
            assert (
                (folder / f"{name}.jsonl").read_bytes()
                == (first.round_folder(1) / f"{name}.jsonl").read_bytes()
            ) == kept
        assert json.loads((folder / "adapter/adapter_config.json").read_text())["r"] == (
            4 if same else 16
        )
    assert [row["arm"] for row in read_jsonl(out)] == ["own, rank=4", "own, collect=3"]
    assert len(read_jsonl(folder / "states.jsonl")) == 3


def test_the_recorded_rows_are_drawn_arms_and_trials_apart(learn):
    rows, kept = (
        read_jsonl(FOLDER.parents[1] / "data/results" / f"{name}.jsonl")
        for name in ("waiter", "waiter_ifeval")
    )
    drawn = learn["figures"](rows, kept)
    names = {
        name: [label.get_text().replace("\n", " ") for label in figure.axes[0].get_yticklabels()]
        for name, figure in drawn.items()
    }
    assert set(names) == {"waiter", "waiter_trials"} and "curated, round 1" in names["waiter"]
    assert "own, round 1" in set(names["waiter"]) & set(names["waiter_trials"])
    for figure in drawn.values():
        measured = [
            line
            for line in kept
            if line["adapter"] is None
            or any(
                learn["run_of"](row["arm"], row["seed"]).lower()
                == line["adapter"].lower().split("/round_")[0]
                for row in rows
            )
        ]
        assert len(measured) == len(kept), "a line of IF-Eval belongs to no arm"
        assert figure.axes[1].get_title("left").startswith("OOD: IF-Eval, strict") and 1 < len(
            figure.axes[1].containers
        ) <= 2 * len(kept)
        figure.draw_without_rendering()
        titles = [axis._left_title.get_window_extent() for axis in figure.axes]
        assert not titles[0].overlaps(titles[1])
    assert (
        not any("T 0.7" in name for name in names["waiter"])
        and "T 0.7, 16 steps, round 2" in names["waiter_trials"]
    )


def test_a_model_is_needed(learn, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["learn.py"])
    with pytest.raises(SystemExit):
        learn["main"]()
    assert "--model" in capsys.readouterr().err

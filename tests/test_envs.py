"""The worlds: reply protocol, splits, boards read back, floors and ceilings, pictures."""

import itertools
import json
import random
import warnings
from collections import deque
from dataclasses import replace
from functools import cache

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from helpers import Doors
from hypothesis import given, settings
from hypothesis import strategies as st

from oelkit import Run, Settings
from oelkit.envs import (
    ACTIONS,
    BOARDS,
    WORLDS,
    DescentEnv,
    FrozenLakeEnv,
    Layout,
    Room,
    bounds,
    check,
    describe,
    held_out,
    make,
    parse_action,
    parse_board,
    render_board,
)
from oelkit.envs.board import neighbours
from oelkit.envs.frozen_lake import paper_layout
from oelkit.prompts import act_messages, load_prompt_set
from oelkit.records import ExperienceItem, Outcome, write_jsonl

# a held-out world is the same class with other layouts, which tests of their own look at
PLAIN = [world for world in WORLDS if "Unseen" not in world]
# start top left, a hole on its right, the goal at the bottom right
LAKE = Layout(3, 0, (8,), (1,))
# wall-lined 3x3 floor: player, box and target in the middle row
ROOM = Room(5, frozenset(range(25)) - {6, 7, 8, 11, 12, 13, 16, 17, 18}, (13,), (12,), 11)


def play(replies, layout=LAKE, world="oelkit/FrozenLake-v0", **kwargs):
    env = make(world, **kwargs)
    env.reset(seed=0, options={"layout": layout})
    return [env.step(reply) for reply in replies], env


@pytest.mark.parametrize(
    "world, layout",
    [
        ("FrozenLake", "x"),
        ("FrozenLake", ROOM),
        ("FrozenLake", ()),
        ("FrozenLake", replace(LAKE, start=-1)),
        ("FrozenLake", replace(LAKE, goals=(9,))),
        ("FrozenLake", replace(LAKE, holes=(0,))),
        ("Sokoban", LAKE),
        ("Sokoban", replace(ROOM, player=0)),
        ("Sokoban", replace(ROOM, player=12)),
        ("Sokoban", replace(ROOM, boxes=())),
        ("Sokoban", replace(ROOM, walls=ROOM.walls - {0})),
    ],
)
def test_a_layout_that_no_game_can_begin_with_is_refused(world, layout):
    with pytest.raises(ValueError, match="must be a |on different cells|walls all around"):
        make(f"oelkit/{world}-v0").reset(options={"layout": layout})


def of(steps, key):
    """Return what the infos of steps have under a key."""
    return [info[key] for *_, info in steps]


@pytest.mark.parametrize(
    "reply, action",
    [
        ("[left]", "left"),
        ("not [left] but [right]", "right"),
        ("[right] is it, not [jump]", "right"),
        ("[ UP ]", "up"),
        ("[w] [a] [S]", "down"),
        ("[d]", "right"),
        ("left", None),
        ("(left) [x] []", None),
        ("", None),
    ],
)
def test_the_last_bracketed_action_counts(reply, action):
    assert parse_action(reply) == action


WEST = {"left": "west", "down": "South", "right": "east", "up": "north"}


def test_renamed_moves_are_the_only_ones_and_are_told():
    steps, env = play(["[south]", "[down]", "[ SOUTH ] [s]", "[east]", "[East]"], moves=WEST)
    assert of(steps, "action") == ["South", None, "South", "east", "east"]
    moved, unknown, *_ = of(steps, "feedback")
    assert moved == "You moved South to row 2, column 1."
    assert "answer with one of [west] [South] [east] [north]." in unknown
    assert of(steps, "outcome")[-1] is Outcome.SUCCESS
    asked = act_messages(load_prompt_set("paper"), "B", [], 5, env.moves)[0]["content"]
    assert "exactly one move in brackets: [west], [South], [east] or [north]." in asked
    assert env.position == 8 and "[left]" not in asked
    swapped = {"left": "right", "right": "left", "up": "down", "down": "up"}
    steps, _ = play(["[up]", "[s]", "[left]"], moves=swapped)
    # down, nothing (letters are no longer moves), right
    assert of(steps, "action") == ["up", None, "left"]
    assert "to row 2, column 2" in of(steps, "feedback")[2]
    room, _ = play(["[east]"], ROOM, "oelkit/Sokoban-v0", moves=WEST)
    assert of(room, "feedback")[0].startswith("You moved east to row 3, column 3 and pushed")
    assert parse_action("[left] [WEST]", list(WEST.values())) == "left"


def test_a_game_that_is_won():
    steps, env = play(["[down]", "[s]", "I go [right]", "[right]"])
    assert of(steps, "action") == ["down", "down", "right", "right"]
    assert [s[1:4] for s in steps] == [(0.0, False, False)] * 3 + [(1.0, True, False)]
    assert of(steps, "outcome") == [None] * 3 + [Outcome.SUCCESS]
    first, *_, last = of(steps, "feedback")
    assert first == "You moved down to row 2, column 1."
    assert last == "You moved right to row 3, column 3 and reached the goal. You won."
    with pytest.raises(RuntimeError, match="reset"):
        env.step("[left]")


def test_a_hole_loses():
    steps, _ = play(["[right]"], board="labelled")
    assert steps[0][1:4] == (0.0, True, False) and of(steps, "outcome") == [Outcome.FAILURE]
    assert of(steps, "feedback") == ["You moved right to a2 and fell into a hole. You lost."]


def test_the_first_invalid_reply_warns_and_the_second_in_a_row_ends_the_game():
    steps, _ = play(["[up]", "no idea"])
    assert of(steps, "action") == ["up", None] and of(steps, "outcome") == [None, Outcome.INVALID]
    assert steps[1][2] and of(steps, "feedback") == [
        "You hit a wall. Warning: a second invalid move in a row loses.",
        "No move found: answer with one of [left] [down] [right] [up]. "
        "Second invalid move in a row: you lost.",
    ]


def test_a_valid_move_takes_the_warning_back_and_every_reply_uses_a_turn():
    steps, _ = play(["[up]", "[down]", "?", "[up]", "[up]"])
    assert of(steps, "outcome") == [None] * 4 + [Outcome.TURN_LIMIT]
    assert steps[-1][2:4] == (False, True)
    end = "Warning: a second invalid move in a row loses. No turns left: you lost."
    assert of(steps, "feedback")[-1].endswith(end)


def test_winning_on_the_last_turn_is_winning():
    steps, _ = play(["?", "[down]", "[down]", "[right]", "[right]"])
    assert of(steps, "outcome")[-1] is Outcome.SUCCESS


def test_any_unicode_is_a_reply():
    steps, _ = play(["ｄ → \ud800\x00 [down] 😀"])
    assert of(steps, "action") == ["down"]


def test_sokoban_pushes_blocks_and_wins():
    world = "oelkit/Sokoban-v0"
    steps, _ = play(["[right]"], ROOM, world, board="labelled")
    assert steps[0][1] == 1.0 and of(steps, "outcome") == [Outcome.SUCCESS]
    won = "You moved right to c3 and pushed a box to c4, onto a target. You won."
    assert of(steps, "feedback") == [won]
    assert {"P c3", "√ c4"} <= set(steps[0][0].split("\n"))
    blocked = Room(5, ROOM.walls, (7,), (13,), 12)
    steps, _ = play(["[right]", "[up]", "[right]"], blocked, world)
    told = "The box is blocked. Warning: a second invalid move in a row loses."
    assert of(steps, "feedback")[0] == told
    assert parse_board(steps[1][0])[1][2] == "S"  # the player on the target
    steps, _ = play(["[left]", "[left]"], blocked, world)
    moved, wall = of(steps, "feedback")
    assert moved == "You moved left to row 3, column 2."
    assert wall.startswith("You hit a wall. Warning")
    two = Room(5, ROOM.walls, (6, 7), (12, 13), 11)  # one box behind the other
    assert two.move((11, (12, 13)), "right") is None
    assert two.move((17, (12, 13)), "up") == (12, (7, 13))


def solution(room):
    """Return the moves of a shortest solution of a Sokoban room, or None."""
    start = (room.player, room.boxes)
    queue, paths = deque([start]), {start: []}
    while queue:
        position = queue.popleft()
        if position[1] == room.targets:
            return paths[position]
        for action in ACTIONS:
            to = room.move(position, action)
            if to is not None and to not in paths:
                paths[to] = [*paths[position], action]
                queue.append(to)
    return None


def test_every_room_can_be_solved():
    env = make("oelkit/Sokoban-v0", max_turns=40)
    for seed in range(60):
        env.reset(seed=seed)
        moves = solution(env.layout)
        outcomes = of([env.step(f"[{move}]") for move in moves], "outcome")
        assert outcomes == [None] * (len(moves) - 1) + [Outcome.SUCCESS]


@pytest.mark.parametrize("boxes", [2, 3])
def test_rooms_with_more_boxes_are_solvable_and_begin_unsolved(boxes):
    train, unseen = (
        set(layouts(f"oelkit/Sokoban{x}-v0", range(20), boxes=boxes)) for x in ("", "Unseen")
    )
    assert not train & unseen and len(train) == len(unseen) == 20
    env = make("oelkit/Sokoban-v0", boxes=boxes)
    for seed in range(8):
        env.reset(seed=seed)
        room = env.layout
        assert len(room.boxes) == len(room.targets) == boxes
        assert not set(room.boxes) & set(room.targets)
        assert room.player not in room.boxes + room.targets
        assert solution(room) is not None


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("world", PLAIN)
def test_gymnasium_checker_passes(world, board):
    with warnings.catch_warnings(action="error"):
        check_env(make(world, board=board))


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("world", PLAIN)
def test_boards_there_and_back_and_in_the_observation_space(world, board):
    env, policy = make(world, board=board), random.Random(0)
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        over = False
        while not over:
            cells = parse_board(observation)
            assert cells == env._cells() and len(cells) == env.size
            assert observation in env.observation_space
            assert render_board(cells, board) == observation
            said = f"You are here.\n{observation.strip()}\nMove?\n{observation}"
            assert parse_board(said) == cells
            observation, _, lost, out, _ = env.step(f"[{policy.choice(env.moves)}]")
            over = lost or out
    assert parse_board("no board here, a1 or b2") == []
    assert parse_board("| one | two |\n| six |") == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from("HGPX.#O√S7?"), min_size=2, max_size=12), min_size=1, max_size=12
    ),
    st.sampled_from(BOARDS),
)
def test_any_board_survives_rendering(cells, board):
    cells = [(row + ["."] * 12)[: len(cells[0])] for row in cells]
    assert parse_board(render_board(cells, board)) == cells


@pytest.mark.parametrize("world", PLAIN)
def test_a_seed_gives_one_game_and_the_global_generators_are_left_alone(world):
    random.seed(5), np.random.seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist()
    games = []
    for _ in range(2):
        env = make(world)
        games.append([env.reset(seed=s)[0] for s in range(30)])
    assert games[0] == games[1] and len(set(games[0])) > 5
    assert env.reset(seed=7)[0] == games[0][7]
    assert len({env.reset()[0] for _ in range(20)}) > 1  # without a seed, games keep differing
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def layouts(world, seeds, **kwargs):
    env = make(world, **kwargs)
    for seed in seeds:
        env.reset(seed=seed)
        yield env.layout


def test_the_papers_world_has_19_solvable_layouts():
    found = {tuple(sorted(layout.holes)) for layout in layouts("oelkit/FrozenLake-v0", range(600))}
    assert len(found) == 19


def test_more_than_1000_layouts_and_a_held_out_split():
    train = list(layouts("oelkit/FrozenLake4x4-v0", range(2000)))
    assert len(set(train)) >= 1000 and all(3 <= len(x.shortest_path()) <= 5 for x in train)
    assert {len(x.holes) for x in train} == {1, 2, 3, 4} and len({x.goals for x in train}) == 16
    unseen = list(layouts("oelkit/FrozenLake4x4Unseen-v0", range(128)))
    assert len(set(unseen)) >= 125 and not set(unseen) & set(train)


@pytest.mark.parametrize("world", [world for world in PLAIN if world != "oelkit/FrozenLake-v0"])
def test_train_and_unseen_layouts_are_disjoint(world):
    train = set(layouts(world, range(40)))
    unseen = set(layouts(held_out(world), range(40)))
    assert not any(x.unseen for x in train) and all(x.unseen for x in unseen) and not train & unseen


@pytest.mark.parametrize("world", ["FrozenLake4x4", "Sokoban"])
def test_an_unseen_world_shares_no_sign_and_no_word_with_the_plain_one(world):
    plain, other = make(f"oelkit/{world}-v0"), make(f"oelkit/{world}OtherUnseen-v0")
    # a free cell is blank
    assert set(plain.symbols.values()) & set(other.symbols.values()) == {"."}
    assert not set(plain.moves) & set(other.moves)
    seen = [
        {cell for s in range(30) for row in parse_board(env.reset(seed=s)[0]) for cell in row}
        - {"."}
        for env in (plain, other)
    ]
    assert seen[0] and seen[1] and not seen[0] & seen[1]
    steps = [other.step(f"[{action}]")[4]["action"] for action in ("left", "west")]
    assert steps[0] is None and steps[1] == "west"
    # the rules are the same: a layout plays alike
    for seed in range(20):
        other.reset(seed=seed)
        plain.reset(options={"layout": other.layout})
        for i in random.Random(seed).choices(range(4), k=5):
            ends = [env.step(f"[{env.moves[i]}]") for env in (plain, other)]
            assert ends[0][1:4] == ends[1][1:4] and ends[0][4]["outcome"] == ends[1][4]["outcome"]
            if ends[0][4]["outcome"]:
                break


def test_random_corners():
    found = list(layouts("oelkit/FrozenLake4x4-v0", range(200), corners="random", max_turns=6))
    assert {(x.start, x.goals) for x in found} == {(0, (15,)), (15, (0,)), (3, (12,)), (12, (3,))}
    assert all(len(x.shortest_path()) == 6 for x in found)
    assert {len(x.holes) for x in found} == {1, 2, 3, 4}
    world = "oelkit/FrozenLake4x4Unseen-v0"
    assert not set(found) & set(layouts(world, range(100), corners="random", max_turns=6))


SLIPPERY = {"slippery": True, "max_turns": 12}


def test_slippery_ice_is_gymnasiums_and_a_seed_gives_the_same_game_again():
    from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv

    kinds, games = set(), []
    for _ in range(2):
        env, told = make("oelkit/FrozenLake4x4-v0", **SLIPPERY), []
        for seed in range(60):
            env.reset(seed=seed)
            rows = env.layout.cells(
                {"hole": "H", "goal": "G", "decoy": "F", "player": "S", "free": "F"}
            )
            theirs = FrozenLakeEnv(desc=["".join(row) for row in rows], is_slippery=True)
            theirs.reset()
            theirs.np_random = np.random.default_rng()
            theirs.np_random.bit_generator.state = env.np_random.bit_generator.state
            outcome = None
            while outcome is None:
                i = random.Random(f"{seed}{env.turn}").randrange(4)
                cell, reward, ended, *_ = theirs.step(i)
                _, ours, _, _, info = env.step(f"[{ACTIONS[i]}]")
                outcome = info["outcome"]
                assert env.position == cell and ours == reward
                assert ended == (outcome in ("success", "failure"))
                told.append(info["feedback"])
                kinds |= {word for word in ("moved", "stayed at", "slid to") if word in told[-1]}
        games.append(told)
    assert games[0] == games[1] and kinds == {"moved", "stayed at", "slid to"}
    assert {"Warning" in text for text in told} == {False}  # walls only stop the player


def test_bounds_of_slippery_ice_are_exact():
    env = make("oelkit/FrozenLake3x3-v0", slippery=True, max_turns=6)
    found = bounds(env, range(5))
    assert found["fixed_plan"] is found["plan"] is None
    assert 0 < found["random"] < found["ceiling"] < 1
    best = mean = 0
    for seed in range(5):
        env.reset(seed=seed)
        chances = env._lake.P

        @cache
        def value(cell, left, pick):
            if not left:
                return 0
            after = [
                [p * (reward if ended else value(to, left - 1, pick)) for p, to, reward, ended in x]
                for x in chances[cell].values()
            ]
            return pick([sum(x) for x in after])

        best += value(env.layout.start, 6, max) / 5
        mean += value(env.layout.start, 6, np.mean) / 5
    assert found["ceiling"] == pytest.approx(best) and found["random"] == pytest.approx(mean)
    policy, wins = random.Random(2), 0
    for game in range(4000):  # and games agree with it
        env.reset(seed=game % 5)
        env.np_random.bit_generator.state = np.random.default_rng(game).bit_generator.state
        outcome = None
        while outcome is None:
            outcome = env.step(f"[{policy.choice(ACTIONS)}]")[4]["outcome"]
        wins += outcome is Outcome.SUCCESS
    assert wins / 4000 == pytest.approx(found["random"], abs=0.03)


@pytest.mark.parametrize("world", ["oelkit/FrozenLake3x3-v0", "oelkit/Sokoban-v0"])
def test_the_random_player_is_the_mean_over_all_plans(world):
    env, wins = make(world, max_turns=4), []
    for seed, plan in itertools.product(range(3), itertools.product(ACTIONS, repeat=4)):
        env.reset(seed=seed)
        outcomes = iter(plan)
        outcome = None
        while outcome is None:
            outcome = env.step(f"[{next(outcomes)}]")[4]["outcome"]
        wins.append(outcome is Outcome.SUCCESS)
    assert bounds(world, range(3), max_turns=4)["random"] == pytest.approx(np.mean(wins))


def test_decoys_goals_and_renamed_symbols():
    renamed = {"hole": "G", "goal": "H"}
    env = make(
        "oelkit/FrozenLake4x4-v0", holes=1, decoys=2, goals=2, symbols=renamed, board="labelled"
    )
    for seed in range(20):
        cells = sum(parse_board(env.reset(seed=seed)[0]), [])
        assert sorted(x for x in cells if x != ".") == ["G", "H", "H", "P", "X", "X"]
        assert env.layout.holes == (cells.index("G"),)
        action = next(
            (a for a, to in neighbours(env.size, env.layout.start).items() if cells[to] == "X"),
            None,
        )
        if action:  # a decoy is ice
            assert env.step(f"[{action}]")[4]["outcome"] is None
    plain = make("oelkit/FrozenLake4x4-v0")
    swapped, swap = make("oelkit/FrozenLake4x4-v0", symbols=renamed), str.maketrans("HG", "GH")
    for seed in range(20):
        assert plain.reset(seed=seed)[0].translate(swap) == swapped.reset(seed=seed)[0]


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(board="round"), "board must be"),
        (dict(split="test"), "split must be"),
        (dict(max_turns=0), "max_turns"),
        (dict(symbols={"hill": "M"}), "unknown symbols"),
        (dict(symbols={"hole": "G"}), "must differ"),
        (dict(symbols={"hole": "HH"}), "one printable character"),
        (dict(holes=16), "do not fit"),
        (dict(holes=(3, 1)), "holes must be a number or a range"),
        (dict(holes=(1, 2, 3)), "holes must be a number or a range"),
        (dict(decoys=0.5), "decoys: expected a whole number"),
        (dict(min_moves="3"), "min_moves: expected a whole number"),
        (dict(goals=0), "goals must be"),
        (dict(size=1), "size must be 2 to 26"),
        (dict(corners=True), "corners"),
        (dict(corners="left"), "corners must be"),
        (dict(corners="random", goals=2, max_turns=9), "corners='random'"),
        (dict(corners="random"), "max_turns=6 or more"),
        (dict(moves={"jump": "hop"}), "unknown moves"),
        (dict(moves={"left": "Right"}), "moves must be four different"),
        (dict(moves={"left": "go west"}), "moves must be four different"),
    ],
)
def test_bad_arguments_are_one_clear_error(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make("oelkit/FrozenLake4x4-v0", **kwargs)
    with pytest.raises(ValueError, match="boxes: expected a whole number"):
        make("oelkit/Sokoban-v0", boxes=1.0)


def test_too_many_holes_between_the_corners_are_told():
    env = make("oelkit/FrozenLake-v0", holes=7)
    with pytest.raises(ValueError, match="no solvable 3x3 layout with 7 holes: ask for fewer"):
        env.reset(seed=0)


def test_numbers_can_be_numpys():
    env, two = make("oelkit/FrozenLake4x4-v0", holes=np.int64(2)), (np.int64(2), 2)
    again = make("oelkit/FrozenLake4x4-v0", holes=two)
    assert env.reset(seed=1)[0] == again.reset(seed=1)[0] and len(env.layout.holes) == 2


def test_a_world_without_layouts_says_so():
    env = make("oelkit/FrozenLake4x4-v0", min_moves=6)
    with pytest.raises(ValueError, match="no layout found.*min_moves or more max_turns"):
        env.reset(seed=0)
    with pytest.raises(ValueError, match="no solvable 3x3 layout with 7 holes"):
        paper_layout(0, holes=7)
    with pytest.raises(ValueError, match="boxes"):
        make("oelkit/Sokoban-v0", boxes=4)
    with pytest.raises(ValueError, match="only 'layout'"):
        make("oelkit/Sokoban-v0").reset(options={"seed": 1})
    with pytest.raises(RuntimeError, match="reset"):
        make("oelkit/Sokoban-v0").step("[up]")


@pytest.mark.parametrize(
    "world", ["oelkit/Lake-v0", "Lake9-v0", "oelkit/Sokoban-v7", "nowhere/Sokoban-v0", "a b", ""]
)
def test_an_unknown_world_is_an_error_that_names_the_one_that_was_meant_or_some(world):
    named = "unknown environment.*oelkit/(Sokoban|FrozenLake)"
    with pytest.raises(ValueError, match=named) as told:
        make(world)
    assert len(str(told.value)) < 200


def test_a_world_that_is_not_text_is_an_error():
    with pytest.raises(ValueError, match="not a text world"):
        make("CartPole-v1")
    with pytest.raises(ValueError, match="'nowhere:Game-v0': No module named 'nowhere', neither"):
        make("nowhere:Game-v0")
    assert "oelkit/Sokoban-v0" in gym.registry


def test_bounds_of_the_papers_world():
    found = bounds("oelkit/FrozenLake-v0", range(2000))
    # for 128 seeds: 1.7 % and 41.4 %; over all 19 layouts, a fixed plan can pass 6 of 19
    assert found["random"] == pytest.approx(0.0157, abs=0.001) and found["ceiling"] == 1.0
    assert found["fixed_plan"] == pytest.approx(6 / 19, abs=0.03)
    found = bounds("oelkit/FrozenLake-v0", range(71, 71 + 128))
    assert found["fixed_plan"] == pytest.approx(53 / 128)


def test_bounds_of_the_other_worlds():
    lake = bounds("oelkit/FrozenLake4x4Unseen-v0", range(256))
    assert lake["random"] < 0.06 and lake["fixed_plan"] < 0.2 and lake["ceiling"] == 1.0
    sokoban = bounds("oelkit/Sokoban-v0", range(600))  # the paper's world: 16.0 % and 88.3 %
    assert sokoban["random"] == pytest.approx(0.15, abs=0.03)
    assert sokoban["ceiling"] == pytest.approx(0.86, abs=0.04)


@pytest.mark.parametrize("world", ["oelkit/FrozenLake3x3-v0", "oelkit/Sokoban-v0"])
def test_bounds_agree_with_games_that_are_played(world):
    seeds, env, policy = range(40), make(world), random.Random(1)
    found = bounds(world, seeds)

    def won(seed, plan):
        env.reset(seed=seed)
        for action in plan:
            *_, lost, out, info = env.step(f"[{action}]")
            if lost or out:
                break
        return info["outcome"] is Outcome.SUCCESS

    assert sum(won(s, found["plan"]) for s in seeds) / 40 == found["fixed_plan"]
    games = [won(s, policy.choices(ACTIONS, k=5)) for s in seeds for _ in range(50)]
    assert np.mean(games) == pytest.approx(found["random"], abs=0.03)
    shortest = solution if world == "oelkit/Sokoban-v0" else Layout.shortest_path
    lengths = [len(shortest(env.layout)) for s in seeds if env.reset(seed=s)]
    assert sum(length <= 5 for length in lengths) / 40 == found["ceiling"]


def test_bounds_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match="at least one seed"):
        bounds("oelkit/FrozenLake-v0", [])
    with pytest.raises(TypeError, match="seeds: expected a list or range"):
        bounds("oelkit/FrozenLake-v0", 5)
    assert bounds("oelkit/FrozenLake-v0", np.arange(2)) == bounds("oelkit/FrozenLake-v0", [0, 1])
    long = bounds("oelkit/FrozenLake-v0", range(3), max_turns=20)  # too many plans to play all
    assert long["fixed_plan"] is long["plan"] is None and 0 < long["random"] < long["ceiling"] == 1
    assert describe(long) == f"random policy {long['random']:.1%}, ceiling 100.0%"


@pytest.mark.parametrize("world", PLAIN)
def test_pictures(world):
    env = make(world, render_mode="rgb_array")
    env.reset(seed=0)
    before, start = env.render(), env.position
    assert before.shape == (64 * env.size, 64 * env.size, 3) and before.dtype == np.uint8
    while env.position == start:  # on slippery ice, a step can lead nowhere
        env.step(next(f"[{env.word(a)}]" for a in ACTIONS if looks_free(env, a)))
    assert (env.render() != before).any()
    text = make(world, render_mode="ansi", board="labelled")
    assert text.reset(seed=0)[0] == text.render()


def looks_free(env, action):
    if isinstance(env.layout, Room):
        return env.layout.move(env.position, action) is not None
    cell = env.cell if isinstance(env, DescentEnv) else env.position
    return action in neighbours(env.size, cell)


def test_a_picture_tells_every_symbol_apart_and_takes_unknown_letters():
    from oelkit.envs.picture import board_image

    for symbols, wall in ((".HGXPQZ", "."), (".OX√PS", "#")):
        pictures = {board_image([[wall, x]])[:, 64:].tobytes() for x in symbols}
        assert len(pictures) == len(symbols)
    # a renamed hole has the picture of a hole, with its own letter
    hole, renamed = board_image([["H"]]), board_image([["G"]], {"G": "hole"})
    assert (hole == renamed).mean() > 0.9 and (hole != renamed).any()
    assert board_image([["\ud83d"]]).any()  # half an emoji of a broken world
    with pytest.raises(ValueError, match="rows of symbols"):
        board_image([])


@pytest.fixture
def registry(monkeypatch):
    """Forget the worlds that a test registers."""
    registry = dict(gym.registry)
    monkeypatch.setattr(gym.envs.registration, "registry", registry)
    monkeypatch.setattr(gym, "registry", registry)


@pytest.fixture
def doors(registry):
    gym.register("test/Doors-v0", entry_point=Doors, max_episode_steps=2)
    return "test/Doors-v0"


def test_a_bare_world_says_all_that_a_game_needs(doors):
    env = make(doors, board="grid")
    assert (env.max_turns, env.moves) == (2, ())
    seed = next(s for s in range(9) if "red" in env.reset(seed=s)[0])
    *step, info = env.step("so [ left ]")
    assert step[1:] == [0.0, False, False]
    assert info == {"action": "left", "feedback": "red: shut", "outcome": None}
    *_, cut, info = env.step("no idea")
    assert cut and info == {"action": None, "feedback": "red: shut", "outcome": Outcome.TURN_LIMIT}
    env.reset(seed=seed)
    assert env.step("[up]")[4]["outcome"] is Outcome.SUCCESS
    env.unwrapped.bounds = (0, 1)  # its own, and none of ours
    assert bounds(env, range(3)) == (found := bounds(doors, range(3)))
    nothing = dict.fromkeys(("random", "fixed_plan", "ceiling", "plan"))
    assert found == {**nothing, "n": 3} and not describe(found)

    class Own(Doors):
        moves = ("up", "down")

        def step(self, reply):
            info = {"action": "pull", "feedback": "told", "outcome": "invalid"}
            return "seen", 0.0, True, False, info

    gym.register("test/Own-v0", entry_point=Own, max_episode_steps=2)
    env = make("test/Own-v0")
    env.reset(seed=0)
    assert env.step("x")[4] == {"action": "pull", "feedback": "told", "outcome": Outcome.INVALID}
    assert env.moves == ("up", "down")
    gym.register("test/Endless-v0", entry_point=Own)
    with pytest.raises(ValueError, match="max_episode_steps"):
        make("test/Endless-v0")


def test_moves_that_are_no_list_of_words_are_told(doors, monkeypatch):
    for moves in (0, "up", [1]):  # 0: a world's own count of moves
        monkeypatch.setattr(Doors, "moves", moves, raising=False)
        with pytest.raises(TypeError, match="the world's moves: expected a list of str"):
            make(doors)


def test_a_limit_of_turns_that_a_board_would_ignore_is_told(registry):
    for turns in (5, 8):
        gym.register(f"test/Lake{turns}-v0", FrozenLakeEnv, max_episode_steps=turns)
    assert make("test/Lake5-v0").max_turns == make("oelkit/Descent1-v0", turns=5).max_turns == 5
    with pytest.raises(ValueError, match="limit of its own, 5 turns: .* not max_episode_steps=8"):
        make("test/Lake8-v0")
    with pytest.raises(ValueError, match="not max_episode_steps=3"):
        make("oelkit/Sokoban-v0", max_episode_steps=3)


def test_a_world_that_is_made_to_be_looked_at_is_closed(doors, monkeypatch):
    closed = []
    monkeypatch.setattr(Doors, "close", lambda self: closed.append(self) or 1 / 0)
    check(doors)
    assert bounds(doors, [1])["n"] == 1 and len(closed) == 2
    gym.register("test/NoEnd-v0", entry_point=Doors)
    with pytest.raises(ValueError, match="max_episode_steps"):
        make("test/NoEnd-v0")
    assert len(closed) == 3


@pytest.mark.parametrize("name", ["my-village-v0", "my-village/Game-v0", "oelkit/v-v-v12"])
def test_only_the_version_at_the_end_names_the_held_out_world(name, registry):
    stem, version = name.rsplit("-v", 1)
    for env_id in (name, f"{stem}Unseen-v{version}"):
        gym.register(env_id, entry_point=Doors, max_episode_steps=5)
    assert held_out(name) == f"{stem}Unseen-v{version}"
    assert held_out(f"some.module:{name}") == f"some.module:{stem}Unseen-v{version}"
    assert held_out(held_out(name)) == held_out(name)  # none of its own
    assert held_out("oelkit/FrozenLake-v0") == "oelkit/FrozenLake-v0"
    assert held_out(stem) == f"{stem}Unseen-v{version}"  # the latest
    assert held_out("oelkit/FrozenLake4x4") == "oelkit/FrozenLake4x4Unseen-v0"
    assert held_out("oelkit/FrozenLake") == "oelkit/FrozenLake"


@pytest.mark.parametrize("near", ["test/NearUnseen-v1", "test/NearUnseen", "test/Near-unseen-v2"])
def test_a_world_that_is_called_nearly_as_the_held_out_one_is_told(near, registry):
    for env_id in ("test/Near-v2", near):
        gym.register(env_id, entry_point=Doors, max_episode_steps=5)
    with pytest.warns(UserWarning, match=f"called test/NearUnseen-v2, not {near}"):
        assert held_out("test/Near-v2") == "test/Near-v2"
    with pytest.raises(TypeError, match="env_id: expected a str"):
        held_out(None)


def test_a_held_out_world_that_is_no_world_of_text_is_told_before_anything_is_played(
    tiny, tmp_path, registry
):
    gym.register("test/Half-v0", entry_point=Doors, max_episode_steps=5)
    gym.register("test/HalfUnseen-v0", entry_point=Doors)
    with pytest.raises(ValueError, match="'test/HalfUnseen-v0' has no limit of turns"):
        Run(tmp_path / "run", Settings(env="test/Half-v0"), tiny)
    assert not [*tmp_path.iterdir()]


def test_the_module_of_a_world_is_loaded_to_find_its_held_out_one(tmp_path, registry, monkeypatch):
    lines = (
        f"gym.register('In{x}-v0', 'helpers:Doors', max_episode_steps=2)" for x in ("", "Unseen")
    )
    (tmp_path / "world_of_mine.py").write_text("\n".join(["import gymnasium as gym", *lines]))
    monkeypatch.syspath_prepend(tmp_path)
    assert held_out("world_of_mine:In-v0") == "world_of_mine:InUnseen-v0"
    worlds = {"broken_world": "x = (", "ended_world": "raise SystemExit('no display')"}
    told = "cannot be made: (SyntaxError: |SystemExit: no display)"
    for name, code in worlds.items():
        (tmp_path / f"{name}.py").write_text(code)
        assert held_out(f"{name}:Odd-v0") == f"{name}:Odd-v0"
        with pytest.raises(ValueError, match=told):
            Run(tmp_path / "run", Settings(env=f"{name}:Odd-v0"))


def test_a_module_that_registers_a_world_is_imported(tmp_path, monkeypatch):
    (tmp_path / "my_doors.py").write_text(
        "import gymnasium\nfrom helpers import Doors\n"
        "gymnasium.register('test/Mine-v0', entry_point=Doors, max_episode_steps=3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert make("my_doors:test/Mine-v0").max_turns == 3


class Bare(gym.Env):
    def reset(self, *, seed=None, options=None):
        return "x", {}

    def step(self, reply):
        return "x", 0.0, False, False, {}


class Text(Bare):
    action_space = observation_space = gym.spaces.Text(9)


class NoStep(Text):
    step = gym.Env.step


class NoReset(Text):
    reset = gym.Env.reset


class NotMade(Text):
    def __init__(self):
        raise KeyError("k")


@pytest.mark.parametrize(
    "world, turns, told",
    [
        (Bare, 2, "not a text world: it has no observation_space; set observation_space = "),
        (NoStep, 2, r"has no step\(\)"),
        (NoReset, 2, r"has no reset\(\)"),
        (NotMade, 2, "'test/Odd-v0' cannot be made: KeyError: 'k'"),
        (Text, None, "has no limit of turns"),
        (Text, 0, "`max_episode_steps` to be positive"),
        (dict, 2, "cannot be made: TypeError: .* must inherit from"),
    ],
)
def test_a_world_that_lacks_something_is_told_in_a_sentence(world, turns, told, registry):
    gym.register("test/Odd-v0", entry_point=world, max_episode_steps=turns)
    with pytest.raises(ValueError, match=told):
        make("test/Odd-v0")


def test_a_reset_in_another_form_is_told(registry, monkeypatch):
    monkeypatch.setattr(Text, "reset", lambda self, **_: "ab")  # this would unpack
    gym.register("test/Odd-v0", entry_point=Text, max_episode_steps=2)
    with pytest.raises(TypeError, match="must return a pair: the observation and info"):
        make("test/Odd-v0").reset(seed=1)


@pytest.mark.slow
def test_a_bare_world_goes_through_every_step(doors, micro_folder, tmp_path):
    from oelkit import load_policy, rollout, run_loop, summary
    from oelkit.views.findings import findings
    from oelkit.views.report import write_report
    from oelkit.views.widgets import trajectory_viewer

    policy = load_policy(micro_folder)
    games = rollout(policy, doors, range(6), temperature=1.0)
    assert all(game.outcome in ("success", "turn_limit") and game.turns for game in games)
    shown = {game.turns[0].observation for game in games}
    assert shown == {"The light is red.", "The light is green."}
    assert all(turn.feedback.endswith(("open", "shut")) for game in games for turn in game.turns)
    assert "The light" in trajectory_viewer(games)._game(games[0])["turns"][0]["observation"]

    folder = tmp_path / "run"
    (folder / "round_1").mkdir(parents=True)
    item = ExperienceItem("i", "- EXPERIENCE ITEM: up is the way.", (), "micro", 1, 0)
    write_jsonl(folder / "round_1" / "items.jsonl", [item])
    small = Settings(
        env=doors,
        rounds=1,
        extract_games=2,
        state_games=2,
        num_draws=1,
        steps=1,
        batch_size=2,
        eval_maps=2,
        run_ablations=False,
        max_new_tokens=16,
    )
    metrics = run_loop(folder, small, policy, progress=False)
    assert metrics["bounds"]["ceiling"] is None
    assert "of test/Doors-v0; held-out by their seeds only" in summary(metrics)
    page = write_report(folder).read_text("utf-8")
    assert "of 2 maps." in findings(metrics)[0].text and "held-out maps" not in page
    assert "held out by their seeds only" in page
    assert json.loads((folder / "metrics.json").read_text())["bounds"] == metrics["bounds"]

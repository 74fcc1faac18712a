"""The worlds: reply protocol, splits, boards there and back, floors and ceilings, pictures."""

import random
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from oelkit.envs import ACTIONS, BOARDS, WORLDS, Layout, Room, bounds, make, parse_action, parse_board, render_board
from oelkit.envs.frozen_lake import paper_layout
from oelkit.records import Outcome

# start top left, a hole on its right, the goal at the bottom right
LAKE = Layout(3, 0, (8,), (1,))
# wall-lined 3x3 floor: player, box and target in the middle row
ROOM = Room(5, frozenset(range(25)) - {6, 7, 8, 11, 12, 13, 16, 17, 18}, (13,), (12,), 11)


def play(replies, layout=LAKE, world="oelkit/FrozenLake-v0", **kwargs):
    env = make(world, **kwargs)
    env.reset(seed=0, options={"layout": layout})
    return [env.step(reply) for reply in replies], env


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


def test_a_game_that_is_won():
    steps, env = play(["[down]", "[s]", "I go [right]", "[right]"])
    assert [s[4]["action"] for s in steps] == ["down", "down", "right", "right"]
    assert [s[1:4] for s in steps] == [(0.0, False, False)] * 3 + [(1.0, True, False)]
    assert steps[-1][4]["outcome"] is Outcome.SUCCESS and steps[0][4]["outcome"] is None
    assert steps[0][4]["feedback"] == "You moved down to row 2, column 1."
    assert steps[-1][4]["feedback"] == "You moved right to row 3, column 3 and reached the goal. You won."
    with pytest.raises(RuntimeError, match="reset"):
        env.step("[left]")


def test_a_hole_loses():
    steps, _ = play(["[right]"], board="labelled")
    assert steps[0][1:4] == (0.0, True, False) and steps[0][4]["outcome"] is Outcome.FAILURE
    assert steps[0][4]["feedback"] == "You moved right to a2 and fell into a hole. You lost."


def test_the_first_invalid_reply_warns_and_the_second_in_a_row_ends_the_game():
    steps, _ = play(["[up]", "no idea"])
    assert steps[0][4]["feedback"] == "You hit a wall. Warning: a second invalid move in a row loses."
    assert steps[0][4] | {"feedback": ""} == {"action": "up", "feedback": "", "outcome": None}
    assert steps[1][4]["outcome"] is Outcome.INVALID and steps[1][4]["action"] is None and steps[1][2]
    assert steps[1][4]["feedback"] == (
        "No move found: answer with one of [left] [down] [right] [up]. Second invalid move in a row: you lost."
    )


def test_a_valid_move_takes_the_warning_back_and_every_reply_uses_a_turn():
    steps, _ = play(["[up]", "[down]", "?", "[up]", "[up]"])
    assert [s[4]["outcome"] for s in steps] == [None] * 4 + [Outcome.TURN_LIMIT]
    assert steps[-1][2:4] == (False, True)
    assert steps[-1][4]["feedback"].endswith("Warning: a second invalid move in a row loses. No turns left: you lost.")


def test_winning_on_the_last_turn_is_winning():
    steps, _ = play(["?", "[down]", "[down]", "[right]", "[right]"])
    assert steps[-1][4]["outcome"] is Outcome.SUCCESS


def test_any_unicode_is_a_reply():
    steps, _ = play(["ｄ → \ud800\x00 [down] 😀"])
    assert steps[0][4]["action"] == "down"


def test_sokoban_pushes_blocks_and_wins():
    world = "oelkit/Sokoban-v0"
    steps, env = play(["[right]"], ROOM, world, board="labelled")
    assert steps[0][1] == 1.0 and steps[0][4]["outcome"] is Outcome.SUCCESS
    assert steps[0][4]["feedback"] == "You moved right to c3 and pushed a box to c4, onto a target. You won."
    assert {"P c3", "√ c4"} <= set(steps[0][0].split("\n"))
    blocked = Room(5, ROOM.walls, (7,), (13,), 12)
    steps, _ = play(["[right]", "[up]", "[right]"], blocked, world)
    assert steps[0][4]["feedback"] == "The box is blocked. Warning: a second invalid move in a row loses."
    assert parse_board(steps[1][0])[1][2] == "S"  # the player on the target
    steps, _ = play(["[left]", "[left]"], blocked, world)
    assert steps[0][4]["feedback"] == "You moved left to row 3, column 2."
    assert steps[1][4]["feedback"].startswith("You hit a wall. Warning")
    two = Room(5, ROOM.walls, (6, 7), (12, 13), 11)  # one box behind the other
    assert two.move((11, (12, 13)), "right") is None and two.move((17, (12, 13)), "up") == (12, (7, 13))


def test_a_room_is_solved_by_the_shortest_solution():
    env = make("oelkit/Sokoban-v0", max_turns=40)
    for seed in range(60):
        env.reset(seed=seed)
        solution = env.layout.solution()
        assert env.layout.solution(limit=len(solution) - 1) is None
        outcomes = [env.step(f"[{action}]")[4]["outcome"] for action in solution]
        assert outcomes == [None] * (len(solution) - 1) + [Outcome.SUCCESS]


@pytest.mark.parametrize("boxes", [2, 3])
def test_rooms_with_more_boxes_are_solvable_and_begin_unsolved(boxes):
    env = make("oelkit/Sokoban-v0", boxes=boxes)
    for seed in range(8):
        env.reset(seed=seed)
        room = env.layout
        assert len(room.boxes) == len(room.targets) == boxes
        assert not set(room.boxes) & set(room.targets) and room.player not in room.boxes + room.targets
        assert room.solution() is not None


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("world", WORLDS)
def test_gymnasium_checker_passes(world, board):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(world, board=board))


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("world", WORLDS)
def test_boards_there_and_back_and_in_the_observation_space(world, board):
    env, policy = make(world, board=board), random.Random(0)
    for seed in range(20):
        observation, info = env.reset(seed=seed)
        over = False
        while not over:
            cells = parse_board(observation)
            assert cells == env._cells() and len(cells) == env.size and observation in env.observation_space
            assert render_board(cells, board) == observation
            assert parse_board(f"You are here.\n{observation.strip()}\nMove?\n{observation}") == cells
            observation, _, lost, out, info = env.step(f"[{policy.choice(ACTIONS)}]")
            over = lost or out
    assert parse_board("no board here, a1 or b2") == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("HGPX.#O√S7?"), min_size=2, max_size=12), min_size=1, max_size=12),
    st.sampled_from(BOARDS),
)
def test_any_board_survives_rendering(cells, board):
    cells = [(row + ["."] * 12)[: len(cells[0])] for row in cells]
    assert parse_board(render_board(cells, board)) == cells


@pytest.mark.parametrize("world", WORLDS)
def test_a_seed_gives_one_game_and_the_global_generators_are_left_alone(world):
    random.seed(5), np.random.seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist()
    games = []
    for _ in range(2):
        env = make(world)
        games.append([env.reset(seed=s)[0] for s in range(30)])
    assert games[0] == games[1] and len(set(games[0])) > 5
    assert env.reset(seed=7)[0] == games[0][7]
    assert len({env.reset()[0] for _ in range(20)}) > 1  # without a seed the games go on differing
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


@pytest.mark.parametrize("world", ["FrozenLake3x3", "FrozenLake4x4", "Sokoban"])
def test_train_and_unseen_layouts_are_disjoint(world):
    train = set(layouts(f"oelkit/{world}-v0", range(500)))
    unseen = set(layouts(f"oelkit/{world}Unseen-v0", range(500)))
    assert not any(x.unseen for x in train) and all(x.unseen for x in unseen) and not train & unseen


def test_decoys_goals_and_renamed_symbols():
    renamed = {"hole": "G", "goal": "H"}
    env = make("oelkit/FrozenLake4x4-v0", holes=1, decoys=2, goals=2, symbols=renamed, board="labelled")
    for seed in range(20):
        cells = sum(parse_board(env.reset(seed=seed)[0]), [])
        assert sorted(x for x in cells if x != ".") == ["G", "H", "H", "P", "X", "X"]
        assert env.layout.holes == (cells.index("G"),)
        action = next((a for a, to in env.layout.neighbours(env.layout.start).items() if cells[to] == "X"), None)
        if action:  # a decoy is ice
            assert env.step(f"[{action}]")[4]["outcome"] is None
    plain, swapped = make("oelkit/FrozenLake4x4-v0"), make("oelkit/FrozenLake4x4-v0", symbols=renamed)
    swap = str.maketrans("HG", "GH")
    assert all(plain.reset(seed=s)[0].translate(swap) == swapped.reset(seed=s)[0] for s in range(20))


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
        (dict(corners=True), "corners"),
    ],
)
def test_bad_arguments_are_one_clear_error(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make("oelkit/FrozenLake4x4-v0", **kwargs)


def test_a_world_without_layouts_says_so():
    env = make("oelkit/FrozenLake4x4-v0", min_moves=6)
    with pytest.raises(ValueError, match="no layout found"):
        env.reset(seed=0)
    with pytest.raises(ValueError, match="fit"):
        paper_layout(0, holes=7)
    with pytest.raises(ValueError, match="boxes"):
        make("oelkit/Sokoban-v0", boxes=4)
    with pytest.raises(ValueError, match="only 'layout'"):
        make("oelkit/Sokoban-v0").reset(options={"seed": 1})
    with pytest.raises(RuntimeError, match="reset"):
        make("oelkit/Sokoban-v0").step("[up]")


@pytest.mark.parametrize("world", ["oelkit/Lake-v0", "Lake9-v0", "oelkit/Sokoban-v7", "nowhere/Sokoban-v0", "a b", ""])
def test_an_unknown_world_is_an_error_that_lists_the_known(world):
    with pytest.raises(ValueError, match="unknown environment.*oelkit/Sokoban-v0"):
        make(world)


def test_a_world_that_is_not_text_is_an_error():
    with pytest.raises(ValueError, match="not a text world"):
        make("CartPole-v1")
    assert "oelkit/Sokoban-v0" in gym.registry


def test_bounds_of_the_papers_world():
    found = bounds("oelkit/FrozenLake-v0", range(2000))
    # known for 128 seeds: 1.7 % and 41.4 %; over all 19 layouts a fixed plan can pass 6 of 19
    assert found["random"] == pytest.approx(0.0157, abs=0.001) and found["solvable"] == 1.0
    assert found["fixed_plan"] == pytest.approx(6 / 19, abs=0.03)
    assert bounds("oelkit/FrozenLake-v0", range(71, 71 + 128))["fixed_plan"] == pytest.approx(53 / 128)


def test_bounds_of_the_other_worlds():
    lake = bounds("oelkit/FrozenLake4x4Unseen-v0", range(256))
    assert lake["random"] < 0.06 and lake["fixed_plan"] < 0.2 and lake["solvable"] == 1.0
    sokoban = bounds("oelkit/Sokoban-v0", range(600))  # the paper's world: 16.0 % and 88.3 %
    assert sokoban["random"] == pytest.approx(0.15, abs=0.03) and sokoban["solvable"] == pytest.approx(0.86, abs=0.04)


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
    solutions = {s: env.layout.solution(5) if world == "oelkit/Sokoban-v0" else env.layout.shortest_path()
                 for s in seeds if env.reset(seed=s)}
    assert sum(x is not None for x in solutions.values()) / 40 == found["solvable"]


def test_bounds_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match="at least one seed"):
        bounds("oelkit/FrozenLake-v0", [])
    with pytest.raises(ValueError, match="max_turns <= 10"):
        bounds("oelkit/FrozenLake-v0", [0], max_turns=20)


@pytest.mark.parametrize("world", WORLDS)
def test_pictures(world):
    env = make(world, render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    assert before.shape == (64 * env.size, 64 * env.size, 3) and before.dtype == np.uint8
    env.step(next(f"[{a}]" for a in ACTIONS if looks_free(env, a)))
    assert (env.render() != before).any()
    text = make(world, render_mode="ansi", board="labelled")
    assert text.reset(seed=0)[0] == text.render()


def looks_free(env, action):
    if isinstance(env.layout, Room):
        return env.layout.move(env.position, action) is not None
    return action in env.layout.neighbours(env.position)


def test_a_picture_tells_every_symbol_apart_and_takes_unknown_letters():
    from oelkit.envs.picture import board_image

    for symbols, wall in ((".HGXPQZ", "."), (".OX√PS", "#")):
        pictures = {board_image([[wall, x]])[:, 64:].tobytes() for x in symbols}
        assert len(pictures) == len(symbols)
    # the picture of a renamed hole is that of a hole, with its own letter
    hole, renamed = board_image([["H"]]), board_image([["G"]], {"G": "hole"})
    assert (hole == renamed).mean() > 0.9 and (hole != renamed).any()
    with pytest.raises(ValueError, match="rows of symbols"):
        board_image([])

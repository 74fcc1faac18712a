"""Descent: what a board shows and hides, levels in records, and the pass rates of knowledge."""

import random
from collections import Counter
from dataclasses import replace
from itertools import permutations

import pytest
from helpers import load_script, make_metrics

from oelkit import envs, summary
from oelkit.envs import DescentBoard, DescentLayout, knowledge_bounds, make, parse_board
from oelkit.envs.board import symbol_kinds
from oelkit.prompts import game_text, load_prompt_set
from oelkit.records import Outcome, Trajectory, Turn
from oelkit.runs import measures
from oelkit.steps.evaluation import report_of

# start b2; hole a4, key d2, goal d4, second hole c1
BOARD = DescentBoard(4, 5, (3, 13, 15, 8))
TWO = DescentLayout((BOARD, DescentBoard(4, 5, (3, 13, 15, 8))))


@pytest.fixture(scope="module")
def player():
    return load_script("examples/micro/arithmetic.py")


def play(moves, layout=TWO, **kwargs):
    env = make("oelkit/Descent-v0", levels=len(layout.boards), board="labelled", **kwargs)
    env.reset(seed=0, options={"layout": layout})
    return [env.step(f"[{move}]") for move in moves.split()], env


def test_the_key_opens_the_goal_and_the_goal_the_next_board():
    assert BOARD.fits(9)
    way = " ".join([*BOARD.way(5, 13), *BOARD.way(13, 15, (13,))])
    steps, _ = play(f"{way} {way}")
    said = [info["feedback"] for *_, info in steps]
    half = len(said) // 2
    assert said[1] == "You moved down to d2 and took M, the key."
    assert said[half - 1].endswith("and reached R, the goal. Next level.")
    assert said[-1].endswith("and reached W, the goal. You won.") and "took C, the key" in said[-3]
    assert [info["level"] for *_, info in steps] == [1] * (half - 1) + [2] * (half + 1)
    assert steps[-1][1:4] == (1.0, True, False) and steps[-1][4]["outcome"] is Outcome.SUCCESS
    symbols = {x for row in parse_board(steps[1][0]) for x in row}
    assert "M" not in symbols and "@" not in symbols and "P" in symbols  # now carrying the key


@pytest.mark.parametrize(
    "to, feedback", [(3, "fell into T, a hole. You lost."), (15, "R, the goal, without the key.")]
)
def test_a_hole_and_the_goal_without_the_key_end_the_game(to, feedback):
    steps, _ = play(" ".join(BOARD.way(5, to)))
    assert feedback in steps[-1][4]["feedback"] and steps[-1][4]["outcome"] is Outcome.FAILURE


def test_each_board_has_turns_of_its_own():
    way = " ".join([*BOARD.way(5, 13), *BOARD.way(13, 15, (13,))])
    to_and_fro = "right left " * 4 + "right"
    steps, env = play(f"{way} {to_and_fro}")
    assert steps[-1][4]["outcome"] is Outcome.TURN_LIMIT and env.level == 1
    assert len(steps) == len(way.split()) + env.turns
    # a reply without a move counts as a turn
    steps, env = play("jump right jump left jump right jump left jump")
    assert steps[-1][4]["outcome"] is Outcome.TURN_LIMIT


def test_no_place_no_number_and_no_order_tells_a_role():
    """A board is equally valid and equally likely with its roles in any other order."""
    env = make("oelkit/Descent-v0", levels=1, board="labelled")
    far, first = Counter(), Counter()
    for seed in range(600):
        observation, _ = env.reset(seed=seed)
        board = env.layout.boards[0]
        for cells in permutations(board.letters):
            dealt = DescentBoard(board.size, board.start, cells)
            assert dealt.fits(env.turns - 1) and dealt.unseen == board.unseen
        far.update({i: len(board.way(board.start, c)) for i, c in enumerate(board.letters)})
        letters = [line[0] for line in observation.splitlines()[1:] if line[0] != "@"]
        assert sorted(letters) == sorted("TMRB")  # each on one cell
        first[letters[0]] += 1
    assert max(first.values()) < 200 and min(first.values()) > 105  # 150 each, +-45 is 4.2 sd
    assert max(far.values()) < 1.05 * min(far.values())  # 600 ways to each role


def test_splits_are_disjoint_on_every_level():
    boards = {}
    for name in ("Descent", "DescentUnseen"):
        env = make(f"oelkit/{name}-v0")
        boards[name] = [[], [], [], []]
        for seed in range(150):
            env.reset(seed=seed)
            for level, board in enumerate(env.layout.boards):
                boards[name][level].append(tuple(sorted(board.letters)))
    seen = {cells for level in boards["Descent"] for cells in level}
    for level in boards["DescentUnseen"]:
        assert not seen & set(level) and len(set(level)) > 50


def test_bounds_are_a_staircase_of_one_in_twelve():
    steps = knowledge_bounds("oelkit/Descent3Unseen-v0", range(10))
    assert steps == pytest.approx([12**-3, 12**-2, 1 / 12, 1.0])
    assert envs.bounds("oelkit/Descent3Unseen-v0", range(3))["ceiling"] == 1.0
    with pytest.raises(ValueError, match="a Descent and at least one seed"):
        knowledge_bounds("oelkit/FrozenLake4x4-v0", range(3))


@pytest.mark.parametrize("known", [1, 2])
def test_who_knows_some_levels_guesses_on_the_next(player, known):
    """A scripted player passes the boards that it knows, and the next one once in twelve games."""
    env = make("oelkit/DescentUnseen-v0", levels=known + 1)
    notes = {x: role for level in range(1, known + 1) for x, role in env.roles(level).items()}
    rng = random.Random(known)
    games = [player.play(env, seed, notes, rng) for seed in range(300)]
    reached = sum(level > known for _, level, _ in games)
    won = sum(win for win, _, _ in games)
    assert reached > 0.85**known * 300
    assert won / reached < 1 / 12 + 3 * (11 / 144 / reached) ** 0.5


def test_kinds_of_the_letters_are_known_on_each_level():
    env = make("oelkit/Descent-v0", render_mode="rgb_array")
    env.reset(seed=3)
    for level in range(4):
        env.position = level, env.layout.boards[level].start, False, 0
        kinds = symbol_kinds(env._cells())
        assert {x: kinds[x] for x in env.roles(level + 1)} == env.roles(level + 1)
        assert kinds["@"] == "player" and env.render().shape == (256, 256, 3)
    lake = symbol_kinds([["H", "G"], ["P", "."]])
    assert (lake["H"], lake["G"], lake["P"]) == ("hole", "goal", "player")


def test_a_run_says_which_boards_were_passed():
    """The pass rate of the first board rises before that of whole games."""
    first, second = (Turn("", [], "", "up", "", 0, 0, False, {"level": n}) for n in (1, 2))
    ends = [((first,), Outcome.FAILURE), ((first, second), Outcome.FAILURE)]
    ends += [((first, second), Outcome.SUCCESS), ((), Outcome.INVALID)]
    games = [Trajectory("g", "e", i, "m", 1, *end, "") for i, end in enumerate(ends)]
    row = measures._row(report_of(games))
    assert row["levels"] == [0.5, 0.25]
    for other in (7, 10**9, -1):  # a world of one's own can mean something else by a level
        turn = replace(first, extra={"level": other})
        assert "levels" not in measures._row(report_of([replace(games[0], turns=(turn,))]))
    metrics = make_metrics((1,))
    assert "passed board" not in summary(metrics)
    metrics["rounds"][0]["pass_rate"]["consolidated"] |= row
    assert "passed board 1, 2, ...: round 1 50.0%, 25.0%" in summary(metrics)


def test_a_game_as_text_shows_the_board_of_each_level_once():
    turns = [
        Turn(f"board {level}", [], "", "up", f"said {i}", 0, 0, False, {"level": level})
        for i, level in enumerate((1, 1, 2, 2, 3))
    ]
    game = Trajectory("g", "e", 0, "m", 1, tuple(turns), Outcome.FAILURE, "said 4")
    text = game_text(load_prompt_set("brief"), game)
    assert [line for line in text.splitlines() if "board" in line] == [
        "board 1",
        "board 2",
        "board 3",
    ]


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"levels": 0}, "levels must be at least 1, got 0"),
        ({"levels": 7}, "levels=7 needs 28 letters, but there are 24: use at most 6 levels"),
        ({"turns": 0}, "turns must be at least 1"),
        ({"levels": 2.0}, "levels: expected a whole number, got the float '2.0'"),
        ({"size": 4.0}, "size: expected a whole number"),
        ({"size": 2}, "size must be 3 to 26"),
        ({"max_turns": 5}, "use turns=, not max_turns="),
        ({"letters": "AABCDEFGHIJKLMNO"}, "must differ"),
        ({"letters": "ABCP" * 4, "levels": 1}, "must differ"),
        ({"symbols": {"hole": "X"}}, "unknown symbols"),
    ],
)
def test_bad_arguments_are_one_clear_error(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make("oelkit/Descent-v0", **kwargs)


@pytest.mark.parametrize(
    "layout, message",
    [
        (DescentLayout((BOARD,)), "the layout has 1 boards, but this world 2 levels"),
        ("TMRB", "must be a DescentLayout of DescentBoards, not"),
        ((), "must be a DescentLayout of DescentBoards, not"),
        (DescentLayout((BOARD, None)), "must be a DescentLayout of DescentBoards, not"),
        (DescentLayout((BOARD, DescentBoard(3, 0, (2, 4, 6, 8)))), "level 2 must be 4x4"),
        (DescentLayout((DescentBoard(4, 5, (5, 13, 15, 8)), BOARD)), "level 1 must be 4x4"),
        (DescentLayout((DescentBoard(4, 16, BOARD.letters), BOARD)), "level 1 must be 4x4"),
        (DescentLayout((BOARD, DescentBoard(4, 0, (1, 4, 15, 8)))), "level 2 has a letter"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(layout, message):
    with pytest.raises(ValueError, match=message):
        make("oelkit/Descent-v0", levels=2).reset(options={"layout": layout})


def test_too_few_turns_for_any_board_says_so(monkeypatch):
    monkeypatch.setattr(envs.DescentEnv, "_near", lambda *_: False)
    with pytest.raises(ValueError, match="ask for more turns"):
        make("oelkit/Descent-v0").reset(seed=0)

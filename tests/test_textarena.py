"""TextArena 0.7.4 as an oracle, with 200 random games in lockstep in each world, and its games as
worlds.
"""

import os
import random
import re
import sys

import numpy as np
import pytest

from oelkit.envs import ACTIONS, WORLDS, Room, bounds, from_textarena, make, parse_board
from oelkit.envs.sokoban import SokobanEnv
from oelkit.records import Outcome

if os.environ.get("CI") != "true":  # in CI, a missing package is an error
    pytest.importorskip("textarena", reason="needs the extra: pip install -e '.[textarena]'")
from textarena.envs.FrozenLake.env import FrozenLakeEnv as TheirLake
from textarena.envs.Sokoban.env import SokobanEnv as TheirSokoban
from textarena.envs.Sokoban.utils import generate_room

CODES = {
    "#": 0,
    ".": 1,
    "O": 2,
    "√": 3,
    "X": 4,
    "P": 5,
    "S": 5,
}  # TextArena never shows a player on a target
REPLIES = [f"[{a}]" for a in ACTIONS] * 5 + [
    "[w]",
    "[A]",
    "I go [ s ]",
    "let us see: [d]",
    "nothing",
    "[jump]",
]


@pytest.fixture(autouse=True)
def keep_the_global_generator():
    state = random.getstate()
    yield
    random.setstate(state)


def their_lake(env, seed):
    theirs = TheirLake(size=env.size, num_holes=2)
    theirs.reset(num_players=1, seed=seed)
    layout = env.layout
    if not env.corners:  # their generator has no such worlds: give them our board
        cells = [[" " if x in ".P" else x for x in row] for row in layout.cells()]
        start, goal = divmod(layout.start, env.size), divmod(layout.goals[0], env.size)
        theirs.player_pos = start
        theirs.state.game_state |= {"grid": cells, "player_pos": start, "goal_pos": goal}
    return theirs


def their_sokoban(env, seed):
    theirs = TheirSokoban(dim_room=(6, 6), max_turns=100, num_boxes=1)
    theirs.reset(num_players=1, seed=seed)
    theirs.room_state = np.array([[CODES[x] for x in row] for row in env._cells()])
    fixed = [
        CODES["O" if i in env.layout.targets else "#" if i in env.layout.walls else "."]
        for i in range(36)
    ]
    theirs.room_fixed = np.array(fixed).reshape(6, 6)
    theirs.box_mapping = {
        divmod(t, 6): divmod(b, 6)
        for t, b in zip(env.layout.targets, env.layout.boxes, strict=True)
    }
    theirs.player_position = np.argwhere(theirs.room_state == 5)[0]
    return theirs


def their_board(theirs):
    if isinstance(theirs, TheirSokoban):
        return [
            row.split()
            for row in theirs.create_board_str(theirs.room_state).replace("_", ".").splitlines()
        ]
    # on the goal they show both
    return parse_board(theirs._render_board().replace("P/G", " P "))


def our_board(observation):
    return [["P" if x == "S" else x for x in row] for row in parse_board(observation)]


# with 5 turns as in the paper, and with enough that every game ends by itself (they count turns
# differently: an invalid move uses none)
@pytest.mark.parametrize("max_turns", [5, 99])
# theirs has one set of signs, no slippery ice, no Descent and no held-out layouts
@pytest.mark.parametrize(
    "world", [world for world in WORLDS if not re.search("Other|Slippery|Descent|Unseen", world)]
)
def test_200_random_games_in_lock_step(world, max_turns):
    # the layouts of the 5-turn world, as `max_turns` also bounds drawn Frozen Lake layouts
    env, env_5, policy = make(world, max_turns=max_turns), make(world), random.Random(world)
    endings = {}
    for seed in range(200):
        env_5.reset(seed=seed)
        observation, _ = env.reset(seed=seed, options={"layout": env_5.layout})
        theirs = (their_sokoban if isinstance(env, SokobanEnv) else their_lake)(env, seed)
        outcome = None
        while outcome is None:
            assert our_board(observation) == their_board(theirs)
            reply = policy.choice(REPLIES)
            if isinstance(env, SokobanEnv):
                reply = reply.replace("[ s ]", "[s]")  # they allow spaces only in Frozen Lake
            done, _ = theirs.step(reply)
            observation, reward, *_, info = env.step(reply)
            outcome = info["outcome"]
            assert done == (outcome not in (None, Outcome.TURN_LIMIT)), (seed, reply, info)
        assert our_board(observation) == their_board(theirs)
        rewards, game = theirs.close()
        if done:
            assert (rewards[0] == 1.0) == (reward == 1.0) == (outcome is Outcome.SUCCESS)
            assert game[0]["invalid_move"] == (outcome is Outcome.INVALID)
        endings[outcome] = endings.get(outcome, 0) + 1
    kinds = {Outcome.SUCCESS, Outcome.INVALID} | ({Outcome.FAILURE} if "Lake" in world else set())
    assert kinds <= set(endings), endings  # a test without wins shows nothing


def test_the_papers_boards_are_theirs_for_a_seed():
    env = make("oelkit/FrozenLake-v0")
    for seed in range(200):
        theirs = TheirLake(size=3, num_holes=2)
        theirs.reset(num_players=1, seed=seed)
        assert parse_board(env.reset(seed=seed)[0]) == their_board(theirs)


def test_our_rooms_are_as_hard_as_theirs():
    def cells(mask):
        return tuple(int(i) for i in np.flatnonzero(mask))

    def their_room(seed):
        while True:
            try:
                fixed, state, _ = generate_room((6, 6), num_steps=20, num_boxes=1, seed=seed)
            except (RuntimeError, RuntimeWarning):
                seed += 1
                continue
            boxes = cells((state == 4) | (state == 3))
            return Room(
                6, frozenset(cells(fixed == 0)), cells(fixed == 2), boxes, cells(state == 5)[0]
            )

    class Theirs(SokobanEnv):
        def _draw(self, seed):
            return their_room(0 if seed is None else seed)

    theirs, ours = bounds(Theirs(), range(300)), bounds("oelkit/Sokoban-v0", range(300))
    assert ours["random"] == pytest.approx(theirs["random"], abs=0.04)
    assert ours["ceiling"] == pytest.approx(theirs["ceiling"], abs=0.06)


def test_their_games_are_worlds_of_ours():
    name = from_textarena("Mastermind-v0", max_turns=4)
    assert name == "TextArena/Mastermind-v0" == from_textarena("Mastermind-v0", max_turns=4)
    before = random.getstate(), np.random.get_state()[1].tolist()
    one, two = make(name, board="grid", duplicate_numbers=True), make(name)
    told = one.reset(seed=7)[0], two.reset(seed=7)[0]
    assert "Mastermind" in told[0] and one.max_turns == 4
    assert two.reset(seed=7)[0] == told[1]
    _, reward, ended, cut, info = two.step("I try [1 2 3 4]")
    assert (reward, ended, cut, info["action"], info["outcome"]) == (
        0,
        False,
        False,
        "1 2 3 4",
        None,
    )
    assert "black" in info["feedback"]
    code = two.unwrapped._env.state.game_state["secret_code"]
    _, reward, ended, _, info = two.step(f"[{' '.join(map(str, code))}]")
    assert reward == 1 and ended and info["outcome"] is Outcome.SUCCESS
    assert "cracked" in info["feedback"]
    one.step("?")
    _, reward, ended, _, info = one.step("?")
    assert reward == 0 and ended and info["outcome"] is Outcome.INVALID
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_their_chance_is_each_games_own():
    """Cards are drawn during a game; another game in between must not change them."""
    name = from_textarena("Blackjack-v0")
    alone, beside, other = make(name), make(name), make(name)
    games = []
    for env in (alone, beside):
        told = [env.reset(seed=5)[0]]
        for _ in range(4):
            if env is beside:
                other.reset(seed=8), other.step("[hit]"), random.random()
            told.append(env.step("[stand]")[4]["feedback"])
        games.append(told)
    assert games[0] == games[1] and len(set(games[0])) == 5


@pytest.mark.parametrize(
    "game, message",
    [
        ("Chopsticks-v0", "Chopsticks-v0 cannot be played by one player here"),
        ("PublicGoodsGame-v0", "not a game for one player"),
        ("Nothing-v0", "no game 'Nothing-v0'"),
        ("TwentyQuestions-v0", "needs an online model"),
    ],
)
def test_games_that_cannot_be_brought_say_why(game, message):
    with pytest.raises(ValueError, match=message):
        from_textarena(game)


def test_word_lists_are_not_fetched(monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(nltk, "download", lambda *args, **options: pytest.fail("fetched"))
    with pytest.raises(ValueError, match="needs NLTK data that is not on this machine"):
        from_textarena("Hangman-v0")


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "textarena", None)
    with pytest.raises(ImportError, match="pip install textarena==0.7.4"):
        from_textarena("Mastermind-v0")

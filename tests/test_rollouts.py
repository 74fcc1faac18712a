"""Playing: one model call per turn, and the contents of the records."""

import importlib
import sys
import time
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from helpers import TEMPLATE, spy_on_generate

from oelkit import envs, load_policy
from oelkit.config import Sampling
from oelkit.model.sampling import Reply
from oelkit.prompts import act_messages, load_prompt_set, with_experience
from oelkit.records import Outcome, Trajectory, read_jsonl, write_jsonl
from oelkit.steps.rollouts import raw_games_text, rollout, states

module = importlib.import_module("oelkit.steps.rollouts")  # `oelkit.rollout` is the function
LAKE = "oelkit/FrozenLake3x3-v0"


@pytest.fixture
def calls(monkeypatch):
    return spy_on_generate(monkeypatch, module)


def play(policy, seeds=(3, 4, 5), *args, **options):
    options = {"prompt_set": "brief", "max_new_tokens": 6, **options}
    return rollout(policy, LAKE, seeds, *args, **options)


@pytest.fixture
def player(monkeypatch):
    """Return a scripted player that makes these moves, turn by turn, in every game."""

    def install(*moves):
        left = list(moves)

        def say(policy, prompts, **options):
            text = left.pop(0)
            return [Reply([1, 2, 3], text, len(prompts) > 1) for _ in prompts]

        monkeypatch.setattr(module, "generate", say)

    return install


def test_all_live_games_of_a_turn_are_one_call(tiny, calls):
    games = play(tiny, range(6))
    assert len(games) == 6 and len(calls) <= 5
    for turn, (prompts, _, _) in enumerate(calls):
        assert len(prompts) == sum(len(game.turns) > turn for game in games)
    # a random model says no move: warned, then lost
    assert len(calls) == 2 and {game.outcome for game in games} == {Outcome.INVALID}
    assert len({options["seed"] for _, options, _ in calls}) == len(calls)


def test_the_records_say_what_was_asked_and_answered(tiny, calls, tmp_path):
    games = play(tiny, (3, 4), seed=7, round=2)
    prompt_set = load_prompt_set("brief")
    for g, game in enumerate(games):
        env = envs.make(LAKE, board="labelled")
        board = env.reset(seed=game.seed)[0]
        assert (game.seed, game.env_id, game.round, game.model) == ((3, 4)[g], LAKE, 2, tiny.name)
        for t, turn in enumerate(game.turns):
            ids, reply = calls[t][0][g], calls[t][2][g]
            assert turn.observation == board
            assert turn.prompt == act_messages(prompt_set, board, game.turns[:t])
            assert tiny.encode(turn.prompt) == ids and turn.prompt_tokens == len(ids)
            assert (turn.reply, turn.truncated) == (reply.text, reply.truncated)
            assert turn.reply_tokens == len(reply.ids)
            board, _, _, _, info = env.step(turn.reply)
            assert (turn.action, turn.feedback) == (info["action"], info["feedback"])
        assert (game.outcome, game.feedback) == (info["outcome"], game.turns[-1].feedback)
    assert len({game.id for game in games}) == 2
    write_jsonl(tmp_path / "t.jsonl", games)
    assert read_jsonl(tmp_path / "t.jsonl", Trajectory) == games


def test_won_lost_and_out_of_turns_with_games_that_end_apart(tiny, player):
    # find for one plan of moves maps on which it wins and others on which it does not
    moves = ["I go [down]", "[right]", "[down]", "then [right]", "[up]"]
    player(*moves)
    tiny.base_lm.config.max_position_embeddings = 4096  # room for the paper's replies
    seeds = range(40)
    games = rollout(tiny, "oelkit/FrozenLake-v0", seeds, prompt_set="paper")
    assert {Outcome.SUCCESS, Outcome.FAILURE} <= {game.outcome for game in games}
    for seed, game in zip(seeds, games):
        env, outcome = envs.make("oelkit/FrozenLake-v0", board="grid"), None
        env.reset(seed=seed)
        for _, reply in zip(game.turns, moves):
            assert outcome is None
            outcome = env.step(reply)[4]["outcome"]
        assert outcome is game.outcome
    assert {len(game.turns) for game in games} > {4}  # games end at different turns
    longest = max(games, key=lambda game: len(game.turns))
    assert longest.turns[3].prompt[0]["content"].count("You played [") == 3


def test_thoughts_are_not_the_answer(tiny, player):
    player("<think>[down] or [left]?</think> [right]", "<think>[down] and no end", "<think>[down]")
    game = rollout(tiny, LAKE, [1], prompt_set="brief")[0]
    assert [turn.action for turn in game.turns] == ["right", None, None]
    assert game.outcome is Outcome.INVALID
    assert game.turns[1].reply.startswith("<think>")


def test_a_thought_that_the_template_opens_is_not_the_answer(tiny_model, player):
    thinking = load_policy(tiny_model, enable_thinking=True)
    player("[down] or [left]? and no end", "maybe [down]</think>[right]", "[up]", "[up]")
    game = rollout(thinking, LAKE, [1], prompt_set="brief")[0]
    assert [turn.action for turn in game.turns] == [None, "right", None, None]
    assert game.extra == {"enable_thinking": True}


def test_games_of_other_arms_have_other_ids(tiny):
    plain = [game.id for game in play(tiny, (3, 4))]
    assert plain == ["FrozenLake3x3-v0-r0-m3-s0-0", "FrozenLake3x3-v0-r0-m4-s0-1"]  # as recorded
    arms = ({"experience": "A"}, {"experience": "B"}, {"adapter": None}, {"adapter": "teacher"})
    arms += ({"experience": "A", "adapter": "teacher"}, {"experience": ["A", ""]})
    ids = [[game.id for game in play(tiny, (3, 4), **arm)] for arm in arms]
    assert ids[0][0] == ids[5][0] and ids[5][1] == plain[1]  # the same text, and none
    assert len({*plain, *(name for arm in ids[:5] for name in arm)}) == 12
    assert ids[2][0] == f"{plain[0]}-base" and ids[0][0].startswith(f"{plain[0]}-")


def test_sampling_as_settings_or_as_keywords(tiny, calls):
    given = {"temperature": 0, "top_p": 0.5, "max_new_tokens": 2, "batch_tokens": 300}
    rollout(tiny, LAKE, [3], "", Sampling(**given), prompt_set="brief", top_k=3)
    rollout(tiny, LAKE, [3], prompt_set="brief", top_k=3, **given)
    rollout(tiny, LAKE, [3], prompt_set="brief")
    one, two, default = ({**calls[i][1]} for i in (0, 2, -1))  # a random model plays two turns
    for options in (one, two, default):
        del options["seed"], options["adapter"], options["kept"]
    assert one == two == given | {"top_k": 3}
    longest = load_prompt_set("brief").max_new_tokens
    assert default == {"temperature": 0.7, "top_p": 1.0, "top_k": 0, "max_new_tokens": longest}
    with pytest.raises(TypeError, match="temprature"):
        play(tiny, temprature=0)


def test_same_seed_same_games_and_another_seed_others(tiny):
    assert play(tiny, seed=1) == play(tiny, seed=1)
    assert [t.turns for t in play(tiny, seed=1)] != [t.turns for t in play(tiny, seed=2)]


def test_experience_for_all_and_for_each_game(tiny, calls):
    plain, prompt_set = play(tiny), load_prompt_set("brief")
    all_told = play(tiny, (3, 4, 5), "- EXPERIENCE ITEM: E")
    each = play(tiny, (3, 4, 5), ["- EXPERIENCE ITEM: one", "", "- EXPERIENCE ITEM: three"])
    for k, game in enumerate(plain):
        first = game.turns[0].prompt
        told = with_experience(prompt_set, first, "- EXPERIENCE ITEM: E")
        assert all_told[k].turns[0].prompt == told != first
    one, none, three = (game.turns[0].prompt for game in each)
    assert "one" in one[0]["content"] and "three" in three[0]["content"]
    assert none == plain[1].turns[0].prompt
    with pytest.raises(ValueError, match="2 experience texts for 3 games"):
        play(tiny, (3, 4, 5), ["a", "b"])


def test_prompt_set_chooses_board_and_reply_length_and_env_kwargs_win(tiny, calls):
    rollout(tiny, LAKE, [1], prompt_set="brief")
    assert calls[0][1]["max_new_tokens"] == load_prompt_set("brief").max_new_tokens
    for options, board in (({}, "labelled"), ({"env_kwargs": {"board": "grid"}}, "grid")):
        shown = envs.make(LAKE, board=board).reset(seed=1)[0]
        assert play(tiny, [1], **options)[0].turns[0].observation == shown
    counted = replace(load_prompt_set("brief"), act="turn {turn} of {max_turns}")
    turns = play(tiny, [1], prompt_set=counted, env_kwargs={"max_turns": 3})[0].turns
    for number, turn in enumerate(turns, 1):
        assert turn.prompt[0]["content"] == f"turn {number} of 3"
    assert calls[-1][1]["adapter"] == "student"
    options = {"adapter": None, "temperature": 0, "top_p": 0.5, "top_k": 3}
    play(tiny, [1], **options)
    assert calls[-1][1].items() >= options.items()


def test_states_are_the_prompts_of_all_turns(tiny):
    games = play(tiny)
    found = states(games)
    assert [s.prompt for s in found] == [t.prompt for g in games for t in g.turns]
    assert len({s.id for s in found}) == len(found)
    assert (found[1].trajectory_id, found[1].turn) == (games[0].id, 1)
    with pytest.raises(ValueError, match="no states"):
        states([])


def test_states_of_games_played_with_experience_are_without_it(tiny):
    texts = ["- EXPERIENCE ITEM: H is a hole.", ""]
    games = play(tiny, (3, 4), experience=texts)
    assert texts[0] in str(games[0].turns[0].prompt)
    found = states(games, texts)
    assert not any("EXPERIENCE ITEM" in str(state.prompt) for state in found)
    plain = states(play(tiny, (3, 4)))  # the first turns do not depend on the replies
    assert [s.prompt for s in found if not s.turn] == [s.prompt for s in plain if not s.turn]
    tiny.base_lm.config.max_position_embeddings = 4096  # room for the paper's prompts
    long = play(tiny, (3,), experience="Pits.", prompt_set="paper", max_new_tokens=2)
    assert "Pits." not in str(states(long, "Pits.")[0].prompt)
    with pytest.raises(ValueError, match="not where the prompt set .* puts it"):
        states(games, "- EXPERIENCE ITEM: another")
    with pytest.raises(ValueError, match="not where the prompt set paper puts it"):
        states(games, texts[0], "paper")
    with pytest.raises(ValueError, match="3 experience texts for 2 games"):
        states(games, [*texts, ""])


def test_raw_games_text(tiny):
    games = play(tiny, (3, 4))
    text = raw_games_text(games, load_prompt_set("brief"))
    for game in games:
        assert game.turns[0].observation.strip() in text and game.feedback in text


def test_errors(tiny, tmp_path):
    with pytest.raises(ValueError, match="unknown environment 'oelkit/Lake-v0'.*FrozenLake4x4-v0"):
        rollout(tiny, "oelkit/Lake-v0", [1])
    with pytest.raises(ValueError, match="seeds is empty"):
        play(tiny, [])
    with pytest.raises(ValueError, match="no prompt set 'none'"):
        play(tiny, prompt_set="none")
    with pytest.raises(ValueError, match="prompt 0 .* context of 512"):
        play(tiny, (3, 4), "word " * 300)


class Archive(gym.Env):
    """A world that holds a resource; the second step of its game on map 2 fails."""

    action_space = observation_space = gym.spaces.Text(100)
    open_ones: set[int] = set()

    def __init__(self, fault=""):
        self.fault = fault

    def reset(self, *, seed=None, options=None):
        self.seed, self.steps = seed, 0
        self.open_ones.add(id(self))
        if self.seed == 2 and self.fault == "reset":
            raise OSError("the shelf fell")
        return (None if self.seed == 2 and self.fault == "no text" else "A shelf."), {}

    def step(self, action):
        self.steps += 1
        answer = "Nothing.", 0.0, self.steps > 1, False, {}
        if (self.seed, self.steps) != (2, 2):
            return answer
        match self.fault:
            case "step":
                raise OSError("the shelf fell")
            case "exit":
                sys.exit("good bye")
            case "memory":
                raise MemoryError("too many shelves")
            case "no message":
                raise type("Silent", (OSError,), {"__str__": None})
            case "hang":
                while True:
                    try:
                        time.sleep(60)
                    except TimeoutError:  # as in careless code
                        self.fault = ""
                        raise
            case "three values":
                return answer[:3]
            case "own unpacking":
                _, _, _, _, _ = ["a", "b", "c"]
            case "six values":
                return (*answer, {})
            case "no outcome":
                return (*answer[:4], {"outcome": "won"})
            case "a number":
                return (17, *answer[1:])
            case "no info":
                return (*answer[:4], None)
            case "no feedback":
                return (*answer[:4], {"feedback": None})
        return answer

    def close(self):
        self.open_ones.discard(id(self))


@pytest.fixture
def archive(monkeypatch):
    spec = gym.envs.registration.EnvSpec("Archive-v0", entry_point=Archive, max_episode_steps=3)
    monkeypatch.setitem(gym.registry, "Archive-v0", spec)
    monkeypatch.setattr(module, "WORLD_SECONDS", 1)
    Archive.open_ones = opened = set()
    return opened


FAULTS = {
    "reset": "OSError: the shelf fell",
    "step": "OSError: the shelf fell",
    "exit": "SystemExit: good bye",
    "memory": "MemoryError: too many shelves",
    "no message": "Silent",
    "hang": "TimeoutError: it hung for 1 s",
    "three values": r"TypeError: its step\(\) must return five values",
    "own unpacking": "ValueError: not enough values to unpack",
    "six values": r"TypeError: its step\(\) must return five values",
    "no info": r"TypeError: its step\(\) must return five values.* info, a dict, not None",
    "no outcome": "ValueError: 'won' is not a valid Outcome",
    "a number": "TypeError: its observation is a int, not text",
    "no feedback": "TypeError: its feedback is a NoneType, not text",
    "no text": "TypeError: its observation is a NoneType, not text",
}


@pytest.mark.timeout(method="thread")  # the other method uses the signal that stops a world
@pytest.mark.parametrize("fault", FAULTS)
def test_a_world_that_fails_ends_its_own_game_and_no_other(tiny, archive, fault):
    maps, greedy = [1, 2, 3], {"max_new_tokens": 2, "temperature": 0}
    with pytest.warns(UserWarning, match=f"1 of 3 games ended in an error.*map 2: {FAULTS[fault]}"):
        games = rollout(tiny, "Archive-v0", maps, env_kwargs={"fault": fault}, **greedy)
    assert not archive, "all are closed"
    good = rollout(tiny, "Archive-v0", maps, **greedy)
    assert [games[0].turns, games[2].turns] == [good[0].turns, good[2].turns]
    failed = games[1]
    assert failed.outcome is Outcome.UNKNOWN and "Archive-v0, map 2" in failed.extra["error"]
    # the reply that it failed at is kept
    assert [t.reply for t in failed.turns] == [t.reply for t in good[1].turns][: len(failed.turns)]
    assert len(failed.turns) == (0 if fault in ("reset", "no text") else 2)
    assert all(state.trajectory_id != failed.id for state in states(games)) == (not failed.turns)


def test_a_world_that_fails_in_every_game_is_an_error(tiny, archive):
    with pytest.raises(RuntimeError, match="1 of 1 games .*map 2: OSError: the shelf fell"):
        rollout(tiny, "Archive-v0", [2], max_new_tokens=2, env_kwargs={"fault": "step"})
    assert not archive


def test_messages_that_the_template_rejects_end_their_own_game(tiny, capsys):
    refuse = "{{ raise_exception('no chess') if 'chess' in m.content }}"
    tiny.tokenizer.chat_template = TEMPLATE.replace("%}<|im_start|>", f"%}}{refuse}<|im_start|>", 1)
    told = "1 of 3 games ended in an error .* map 4: ValueError: .*its chat template.*no chess"
    with pytest.warns(UserWarning, match=told):
        games = play(tiny, (3, 4, 5), ["", "as in chess", ""], temperature=0, progress=True)
    assert capsys.readouterr().out.startswith("rollout: 3 games in ")
    good = play(tiny, (3, 4, 5), temperature=0)
    assert [games[0].turns, games[2].turns] == [good[0].turns, good[2].turns]
    assert games[1].outcome is Outcome.UNKNOWN and not games[1].turns
    with pytest.raises(RuntimeError, match="2 of 2 games .*map 3: ValueError: .*no chess"):
        play(tiny, (3, 4), "as in chess")


@pytest.mark.parametrize("fault", [OSError, GeneratorExit, SystemExit])
def test_a_world_that_cannot_be_closed_loses_no_game(tiny, archive, monkeypatch, fault):
    def close(self):
        raise fault("the door is stuck")

    monkeypatch.setattr(Archive, "close", close)
    told = f"map 1: its world could not be closed: {fault.__name__}: the door"
    with pytest.warns(UserWarning, match=told):
        (game,) = rollout(tiny, "Archive-v0", [1], max_new_tokens=2)
    assert game.outcome is Outcome.FAILURE and not game.extra


def test_half_an_emoji_in_the_experience_loses_no_game(tiny):
    (game,) = play(tiny, [1], "A sign \ud83d.", max_new_tokens=2)
    assert "A sign \ufffd." in tiny.decode(tiny.encode(game.turns[0].prompt))


def test_only_a_number_is_a_level():
    assert module._about({"level": "easy"}) == module._about({}) == {}
    level = module._about({"level": np.int64(2)})["level"]
    assert level == 2 and type(level) is int

"""A model behind a server plays and writes as it does locally: a real server, over HTTP."""

import pytest
from helpers import TOOLS, shake
from openai.types.chat import ChatCompletion
from serve_micro import serve

from oelkit import ServedModel, evaluate, extract, load_policy, rollout
from oelkit.config import Sampling
from oelkit.envs.sql import called_query

WORLD, GREEDY = "oelkit/FrozenLake3x3-v0", {"temperature": 0, "max_new_tokens": 24}


@pytest.fixture(scope="module")
def micro():
    return load_policy("micro")


def connect(server, **options):
    return ServedModel(server.url, "micro", "micro", **{"prompt_set": "brief", **options})


def replies(games):
    return [[turn.reply for turn in game.turns] for game in games]


def test_it_plays_evaluates_and_writes_what_the_model_itself_does(micro):
    with serve(micro) as server:
        served = connect(server, concurrency=4)
        mine = rollout(micro, WORLD, range(3), adapter=None, **GREEDY)
        games = rollout(served, WORLD, range(3), **GREEDY)
        assert replies(games) == replies(mine) and any(replies(mine)[0])
        assert [[t.prompt_tokens for t in g.turns] for g in games] == [
            [t.prompt_tokens for t in g.turns] for g in mine
        ]
        report = evaluate(served, WORLD, range(2), **GREEDY)
        assert report.passes_string == evaluate(micro, WORLD, range(2), **GREEDY).passes_string
        sent = len(server.seen)
        items = extract(served, games, num_draws=2, **GREEDY)
        assert len(server.seen) == sent + 6
        assert [i.text for i in items] == [
            i.text for i in extract(micro, mine, num_draws=2, **GREEDY)
        ]


def test_what_is_sent_is_the_sampling_and_each_request_has_a_seed_of_its_own(micro):
    with serve(micro) as server:
        served = connect(server, enable_thinking=False)
        tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
        asked = [{"role": "user", "content": "Move?"}]
        prompt = served.encode([{**asked[0], "tools": tools}])
        assert prompt.sent.pop("tools") == tools and prompt == micro.encode(asked)
        how = Sampling(temperature=0.5, top_p=0.9, top_k=7, max_new_tokens=3)
        first, _ = served.generate([prompt, prompt], how, seed=1)
        assert len(first.ids) <= 3 and not first.error
        a, b = server.seen[-2:]
        assert a["seed"] != b["seed"] and (a["temperature"], a["top_p"]) == (0.5, 0.9)
        assert (a["top_k"], a["max_tokens"], a["model"]) == (7, 3, "micro")
        assert (a["min_p"], a["repetition_penalty"]) == (0, 1)  # servers have their own defaults
        assert a["chat_template_kwargs"] == {"enable_thinking": False, "thinking": False}
        assert a["messages"] == asked


def test_a_server_that_takes_openai_fields_alone_is_asked_with_those(micro):
    with serve(micro, strict=True) as server:
        with pytest.warns(UserWarning, match="accepts no top_k, min_p"):
            served = connect(server)
        assert not served.generate(
            [served.encode([{"role": "user", "content": "?"}])], Sampling(max_new_tokens=2), seed=0
        )[0].error
        assert "top_k" not in server.seen[-1]


def test_a_busy_server_is_asked_again_and_a_request_that_fails_is_the_error_of_its_game(micro):
    with serve(micro, busy=2) as server:
        served = connect(server, concurrency=1, retries=3)
        games = rollout(served, WORLD, range(2), **GREEDY)
        assert replies(games) == replies(rollout(micro, WORLD, range(2), adapter=None, **GREEDY))
        texts = ["", "- EXPERIENCE ITEM: REFUSE ME", ""]
        with pytest.warns(UserWarning, match="refused") as warned:
            games = rollout(served, WORLD, range(3), texts, **GREEDY)
        assert any("1 of 3 requests failed" in str(w.message) for w in warned)
        assert [str(game.outcome) == "unknown" for game in games] == [False, True, False]
        assert "BadRequestError" in games[1].extra["error"] and "error" not in games[0].extra
        with (
            pytest.warns(UserWarning, match="2 of 2 requests"),
            pytest.raises(RuntimeError, match="2 of 2 games ended in an error"),
        ):
            rollout(served, WORLD, range(2), texts[1], **GREEDY)


def test_calls_of_tools_go_to_the_server_and_come_back_in_its_own_form(micro, monkeypatch):
    called = {"name": "query", "arguments": '{"sql": "SELECT 1"}'}
    answers = [{"content": None, "tool_calls": [{"id": "x", "function": called}]}]
    answers += [{"content": [{"type": "text", "text": "hi"}]}, None, "<html>"]

    def create(messages, **how):
        sent.append(messages)
        said = answers[len(sent) - 1]
        choice = {"index": 0, "finish_reason": "stop", "message": said}
        return said if isinstance(said, str) else ChatCompletion.construct(choices=[choice])

    with serve(micro) as server:
        served, sent = connect(server, concurrency=1), []
        monkeypatch.setattr(served.tokenizer, "chat_template", TOOLS)
        monkeypatch.setattr(served.client.chat.completions, "create", create)
        call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
        asked = [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [call] * 2}]
        asked += [{"role": "tool", "content": "a"}, {"role": "tool", "content": "b"}]
        with pytest.warns(UserWarning, match="2 of 4 requests failed.* holds no reply"):
            replies = served.generate([served.encode(asked)] * 4, Sampling(), seed=0)
    calls, *back = sent[0][1]["tool_calls"], *sent[0][2:]
    assert [c["function"]["arguments"] for c in calls] == ['{"x": 1}'] * 2
    assert [c["id"] for c in calls] == [m["tool_call_id"] for m in back] == ["call_1_0", "call_1_1"]
    assert called_query(replies[0].text) == "SELECT 1" and replies[1].text == "hi"
    assert [bool(r.error) for r in replies] == [False, False, True, True]


def test_an_adapter_is_handed_over_by_a_name(micro, tmp_path):
    own = load_policy("micro")
    shake(own, size=0.3)
    own.save_adapter(tmp_path / "adapter")
    with serve(load_policy("micro")) as server:
        served = connect(server)
        base = replies(rollout(served, WORLD, range(2), **GREEDY))
        with pytest.raises(
            ValueError, match="missing: the server did not load it .*no adapter there"
        ):
            served.use_adapter(tmp_path / "missing", "round-1")
        assert served.model == "micro"
        served.use_adapter(tmp_path / "adapter", "round-1")
        learned = replies(rollout(served, WORLD, range(2), **GREEDY))
        assert server.seen[-1]["model"] == "round-1"
        assert learned == replies(rollout(own, WORLD, range(2), **GREEDY)) != base
        served.model = "micro"
        assert replies(rollout(served, WORLD, range(2), **GREEDY)) == base


def test_no_server_and_no_such_model_are_said_at_once(micro):
    with serve(micro) as server:
        with pytest.raises(ValueError, match="as 'other': .*no such model"):
            ServedModel(server.url, "other", "micro")
        url = server.url
    with pytest.raises(ConnectionError, match="no server there"):
        ServedModel(url, "micro", "micro", retries=0)

"""The SQL world: questions, the colleague, and harmless handling of bad queries."""

import json
import re
import sqlite3
from dataclasses import replace
from pathlib import Path
from runpy import run_path

import pytest
from helpers import TOOLS, make_model

from oelkit import envs, load_policy, rollout, states
from oelkit.envs.sql import called_query, connect, query_of, questions, run_query
from oelkit.envs.sql_databases import clinic, shop
from oelkit.model.sampling import Reply
from oelkit.prompts import act_messages, load_prompt_set
from oelkit.records import ExperienceItem, Outcome, Trajectory, read_jsonl, write_jsonl
from oelkit.views.widgets import transcript

DATABASES = (shop, clinic)


def asked(query):
    return f"I think so.\n```sql\n{query}\n```"


@pytest.mark.parametrize("database", DATABASES)
def test_there_are_questions_enough_and_unseen_ones_combine_known_facts_anew(database):
    found = questions(database())
    assert len({q.text for q in found}) == len(found) >= 60
    train, forms, pairs = ([q for q in found if q.unseen == kind] for kind in ("", "form", "pair"))
    known = {f for q in train for f in q.facts}
    assert {f for q in forms + pairs for f in q.facts} <= known and min(
        len(forms), len(pairs)
    ) >= 20
    assert not {q.facts for q in pairs} & {q.facts for q in train}
    alone = [
        {(q.facts, q.ordered) for q in some if " and " not in q.text} for some in (train, forms)
    ]
    assert not alone[0] & alone[1]  # for a single condition, one phrasing is held out


def test_databases_share_no_name_and_are_the_same_each_time():
    facts = [{need for f in d().facts.values() for need in f.needs} for d in DATABASES]
    assert not facts[0] & facts[1]
    for database in DATABASES:
        assert database().tables == database().tables


@pytest.mark.parametrize("world", ["Sql", "SqlUnseen", "SqlOther", "SqlTools", "SqlManual"])
def test_who_knows_the_facts_wins_and_who_guesses_plain_names_does_not(world):
    found = envs.bounds(f"oelkit/{world}-v0", range(80))
    assert (found["random"], found["plain_names"], found["ceiling"]) == (None, 0.0, 1.0)


def test_held_out_questions_are_the_unseen_ones():
    assert envs.held_out("oelkit/Sql-v0") == "oelkit/SqlUnseen-v0"
    texts = [
        {envs.make(f"oelkit/{name}-v0").reset(seed=s)[0] for s in range(300)}
        for name in ("Sql", "SqlUnseen")
    ]
    assert not texts[0] & texts[1] and min(map(len, texts)) > 20
    world = envs.make("oelkit/SqlUnseen-v0")
    asked = [" and " in world.reset(seed=seed)[0] for seed in range(300)]
    assert 0.4 < sum(asked) / 300 < 0.6  # half of the games each


def test_a_game_of_a_wrong_a_better_and_the_right_query():
    env = envs.make("oelkit/SqlUnseen-v0")
    while "How many products cost more than 20 euros?" not in env.reset()[0]:
        pass
    _, reward, over, cut, info = env.step(asked("SELECT count(*) FROM products WHERE price > 20"))
    assert (reward, over, cut, info["outcome"]) == (0.0, False, False, None)
    assert "no such table: products" in info["feedback"]
    assert "A colleague says: Products are in table ware" in info["feedback"]
    *_, info = env.step(asked("SELECT count(*) FROM ware WHERE weg = 0"))
    assert "1 rows: (" in info["feedback"] and "Prices are in cents" in info["feedback"]
    _, reward, over, _, info = env.step(
        asked("SELECT count(*) FROM ware WHERE weg = 0 AND preis_ct > 2000")
    )
    assert (reward, over, info["outcome"]) == (1.0, True, Outcome.SUCCESS)
    assert info["action"].startswith("SELECT") and "right" in info["feedback"]


def test_a_name_that_is_not_there_is_never_called_right():
    env = envs.make("oelkit/Sql-v0")
    while "Which are the first 5 customers, in the order" not in env.reset()[0]:
        pass
    said = [env.step(asked(f"SELECT {x} FROM kunde"))[-1]["feedback"] for x in ("vorname", "ort")]
    assert "no such column" in said[0] and said[0].endswith("All names that it needs are there.")
    assert said[1].endswith("The names are right.")


def test_three_tries_and_hints_alone_where_asked():
    env = envs.make("oelkit/Sql-v0", helper=None)
    env.reset(seed=1)
    for last in (False, False, True):
        *_, cut, info = env.step("no query")
        assert cut == last and "No query found" in info["feedback"]
    assert info["outcome"] is Outcome.TURN_LIMIT
    env.reset(seed=1)
    assert "colleague" not in env.step(asked("SELECT 1"))[-1]["feedback"]


def test_a_closed_world_has_closed_its_database():
    world = envs.make("oelkit/Sql-v0")
    world.close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        world.unwrapped.connection.execute("SELECT 1")


def test_order_counts_only_where_it_is_asked_for():
    env = envs.make("oelkit/Sql-v0").unwrapped
    for ordered, right in ((True, False), (False, True)):
        env.question = next(q for kind in env.questions for q in kind if q.ordered)
        rows = run_query(env.connection, env.question.gold)
        env.question = type(env.question)(*{**vars(env.question), "ordered": ordered}.values())
        assert len(rows) > 1 and env._right(rows[::-1]) == right and not env._right(rows * 2)


HARM = {
    "DROP TABLE ware": "not authorized",
    "DELETE FROM ware": "not authorized",
    "INSERT INTO ware VALUES (1)": "values were supplied|not authorized",
    "ATTACH 'x.db' AS x": "not authorized|too many attached",
    "PRAGMA query_only = OFF": "not authorized",
    "SELECT load_extension('x')": "not authorized",
    "SELECT readfile('/etc/passwd')": "no such function|not authorized",
    "SELECT zeroblob(1000000000)": "not authorized",
    "SELECT 1; SELECT 2": "one statement",
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c) SELECT max(x) FROM c": "auth",
    "SELECT count(*) FROM auftrag a, auftrag b, auftrag c, auftrag d": "takes too long",
    "SELECT a.auf_nr FROM auftrag a, auftrag b": "more than 1000 rows",
    "SELECT " + "(" * 500 + "1" + ")" * 500: "too large|too deep|overflow|parser",
    "SELECT '" + "x" * 10_000 + "'": "too big|too large|too long",
    # a gigabyte of columns and rows, and a pattern that no step interrupts
    "SELECT "
    + ", ".join(["'" + "x" * 50 + "' || a.bez"] * 60)
    + " FROM ware a": "too many columns",
    "SELECT a.bez FROM ware a WHERE a.bez LIKE '" + "%a_" * 20 + "'": "too complex",
    "SELECT group_concat(a.bez || b.bez) FROM ware a, ware b": "too big",
    "SELECT \x00": "null character|unrecognized token|syntax|incomplete",
    "SELECT '\ud800'": "surrogates",
}


@pytest.mark.parametrize("query", HARM)
def test_a_query_can_read_and_nothing_else(query):
    connection = connect(shop())
    with pytest.raises(ValueError, match=HARM[query]):
        run_query(connection, query)
    assert run_query(connection, "SELECT count(*) FROM ware") == [(60,)]


def test_the_query_is_the_last_fenced_block_or_all_that_is_said():
    assert query_of("```sql\nSELECT 1\n``` or\n```SELECT 2```") == "SELECT 2"
    for named in ("postgresql\n", "sqlite3 \r\n", "\n", "sql "):
        assert query_of(f"```{named}SELECT\n1\n```") == "SELECT\n1" == query_of("```SELECT\n1```")
    assert query_of(" select 1\nFROM ware\n") == "select 1\nFROM ware"
    assert query_of("I would SELECT 1") is None and query_of("Selected.") is None
    assert query_of("```sql\nSELECT 1") is None and query_of("SELECT 1 ```") is None
    assert query_of("```sql```") is None and query_of("``" * 500_000) is None


@pytest.mark.parametrize(
    "wrong", [{"database": "bank"}, {"split": "test"}], ids=["database", "split"]
)
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match="a database is one of shop, clinic"):
        envs.make("oelkit/Sql-v0", **wrong)


@pytest.fixture
def player(monkeypatch):
    """Return a player with these replies in every game; world, prompts and records are real."""

    def install(*replies):
        left = list(replies)
        say = lambda policy, prompts, **_: [Reply([1], left[0], False)] * len(prompts)  # noqa: E731
        monkeypatch.setattr(
            "oelkit.steps.rollouts.generate", lambda *a, **k: (say(*a, **k), left.pop(0))[0]
        )

    return install


def test_a_game_is_a_conversation(tiny, player):
    tiny.base_lm.config.max_position_embeddings = 4096
    player(asked("SELECT 1 FROM products"), asked("SELECT 2"), "I give up.")
    games = rollout(tiny, "oelkit/Sql-v0", [1, 2], prompt_set="rules", max_new_tokens=8)
    for game in games:
        assert len(game.turns) == 3
        question, query, back, *_ = game.turns[2].prompt
        assert question["content"] == game.turns[0].observation
        assert query == {"role": "assistant", "content": asked("SELECT 1 FROM products")}
        assert back == {"role": "user", "content": game.turns[0].feedback}
        assert "A colleague says" in back["content"]
        assert game.turns[2].prompt[:3] == game.turns[1].prompt
    (message,) = act_messages(load_prompt_set("rules"), "Q", moves=())
    assert message["content"] == "Q"


def called(query):
    call = {"name": "query", "arguments": {"sql": query}}
    return f"I look.\n<tool_call>\n{json.dumps(call)}\n</tool_call>"


def test_by_tool_states_replies_and_viewer_hold_calls_and_results(tmp_path, player):
    changes = {"chat_template": TOOLS, "max_position_embeddings": 4096}
    policy = load_policy(make_model(tmp_path, **changes))
    player(called("SELECT 1 FROM products"), "```sql\nSELECT 2\n```", called("SELECT 3"))
    (game,) = rollout(policy, "oelkit/SqlTools-v0", [1], prompt_set="rules", max_new_tokens=8)
    write_jsonl(tmp_path / "games.jsonl", [game])
    (game,) = read_jsonl(tmp_path / "games.jsonl", Trajectory)
    asked, call, result, text, back = states([game])[2].prompt
    assert [t["function"]["name"] for t in asked["tools"]] == ["query"]
    assert call["content"] == "I look." and call["tool_calls"][0]["function"] == {
        "name": "query",
        "arguments": {"sql": "SELECT 1 FROM products"},
    }
    assert result["role"] == "tool" and "no such table: products" in result["content"]
    assert text["content"].startswith("```") and back["role"] == "user"
    assert "call the tool query" in back["content"] and game.turns[2].action == "SELECT 3"
    prompt = policy.tokenizer.decode(policy.encode(states([game])[2].prompt))
    assert prompt.startswith("<tool>query</tool>") and '<call>{"sql": "SELECT 1' in prompt
    view = transcript.before_turns(game)
    assert [[m["role"] for m in turn] for turn in view] == [["user"], ["tool"], ["user"]]
    assert transcript.parts(game.turns[0].reply)[1][0][0] == "query"
    assert [transcript.after_turn(t, m) for t, m in zip(game.turns, view[1:])] == ["", ""]


@pytest.mark.parametrize(
    "reply",
    [
        '<tool_call>{"name": "query", "arguments": {"sql": ""}}</tool_call>',
        '<tool_call>{"name": "query", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "query"}</tool_call>',
        "<tool_call>{not json}</tool_call>",
        "<tool_call>{" * 100_000,
        "<tool_call>" * 100_000 + "}</tool_call>",
        "{" * 20_000,
    ],
)
def test_a_call_that_says_nothing_is_no_query(reply):
    assert called_query(reply) is None


def test_a_manual_answers_with_paragraphs_that_fit_the_question():
    env = envs.make("oelkit/SqlManual-v0")
    for seed in range(60):
        question, _ = env.reset(seed=seed)
        noun = re.search("products|customers|orders", question)[0]
        feedback = env.step(asked("SELECT 1"))[-1]["feedback"]
        said = feedback.partition("The manual says: ")[2]
        assert f"{noun.capitalize()}." in said and said.count("\n") == 0
        assert sum(f"{n}." in said for n in ("Products", "Customers", "Orders")) == 2
        facts = env.unwrapped.database.facts
        assert all(facts[name].says in feedback for name in env.unwrapped.question.facts)
    assert envs.held_out("oelkit/SqlManual-v0") == "oelkit/SqlManualUnseen-v0"


LEARN = Path(__file__).parents[1] / "examples/sql/learn.py"


@pytest.mark.slow
def test_the_script_learns_goes_on_and_shows_what_is_there(tmp_path, monkeypatch):
    learn, out, chats = run_path(str(LEARN)), tmp_path / "rows.jsonl", tmp_path / "chats.jsonl"
    monkeypatch.chdir(tmp_path)
    few = {"model": "micro", "dtype": "float32", "extract_games": 2, "state_games": 2}
    few |= {"steps": 1, "batch_size": 2, "eval_maps": 4, "rounds": 1, "max_new_tokens": 8}
    settings = replace(learn["SETTINGS"], **few)
    folder = tmp_path / "runs/sql_micro_0_steps_1/round_1"
    folder.mkdir(parents=True)
    said = ("Products are in table ware, their names in bez.", "Prices are high.")
    items = [ExperienceItem(str(n), text, (), "m", 1, 0) for n, text in enumerate(said)]
    write_jsonl(folder / "items.jsonl", items)
    learn["learn"](settings, out, chats)
    rows = read_jsonl(out)
    arms = ["base", "hand", "base", "own", "curated", "consolidated", "consolidated"]
    command = "python examples/sql/learn.py --model micro --seed 0 --steps 1 --rounds 1"
    assert {row["command"] for row in rows} == {f"{command} --dtype float32"}
    assert [row["arm"] for row in rows] == arms and len(chats.read_text().splitlines()) == 2
    # items without a fact are rejected
    assert rows[4]["experience"].endswith("ware, their names in bez.")
    assert all(sum(n for _, n in row["kinds"].values()) == row["n"] == 4 for row in rows)
    learn["learn"](settings, out, None)
    assert read_jsonl(out) == rows  # nothing is measured twice
    assert learn["table"](rows).count("| micro | 0 | 1 |") == 4


def test_what_says_a_fact():
    says = run_path(str(LEARN))["says"]
    assert says("The colleague said: Customers are in table kunde, their names in `name`.") == [
        "kunde"
    ]
    assert says("Customers are in table orders.") == []

"""Chat logs: how formats, bad lines and secrets are handled."""

import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from dataclasses import asdict
from datetime import datetime

import pytest
from IPython.lib.pretty import pretty

from oelkit import read_chats, states
from oelkit.__main__ import main, parser
from oelkit.logs import MAX_MESSAGES
from oelkit.messages import MAX_TEXT
from oelkit.records import (
    Outcome,
    RecordError,
    State,
    Trajectory,
    read_jsonl,
    write_jsonl,
    write_text,
)
from oelkit.redaction import redact
from oelkit.rows import write_rows
from oelkit.runs.files import locked

TOOL = {"type": "function", "function": {"name": "find_order", "parameters": {"type": "object"}}}
CHAT = {
    "id": "c1",
    "model": "agent-3",
    "rating": 2,
    "messages": [
        {"role": "system", "content": "You help."},
        {"role": "user", "content": [{"type": "text", "text": "Where is"}, {"text": " order 7?"}]},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "I look it up.",
            "tool_calls": [
                {
                    "id": "t1",
                    "type": "function",
                    "function": {"name": "find_order", "arguments": '{"order": 7}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "lost"},
        {"role": "assistant", "content": "It is lost."},
        {"role": "user", "content": "Then send it again."},
    ],
    "tools": [TOOL],
}
SHAREGPT = {
    "system": "You help.",
    "tools": json.dumps([TOOL["function"]]),
    "conversations": [
        {"from": "human", "value": "Where is order 7?"},
        {"from": "function_call", "value": '{"name": "find_order", "arguments": {"order": 7}}'},
        {"from": "observation", "value": "lost"},
        {"from": "gpt", "value": "It is lost."},
        {"from": "human", "value": "Then send it again."},
    ],
}
OLDER = {  # OpenAI's, before tools
    "functions": [TOOL["function"]],
    "messages": [
        *CHAT["messages"][:2],
        {
            "role": "assistant",
            "content": None,
            "function_call": {"name": "find_order", "arguments": '{"order": 7}'},
        },
        {"role": "function", "name": "find_order", "content": "lost"},
        *CHAT["messages"][4:],
    ],
}


def user(text):
    return {"role": "user", "content": text}


def answer(text):
    return {"role": "assistant", "content": text}


def chat(*texts):
    return {"messages": [(user, answer)[i % 2](text) for i, text in enumerate(texts)]}


def lines(folder, *rows, name="log.jsonl"):
    path = folder / name
    path.write_bytes(
        b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    )
    return path


@pytest.mark.parametrize("row", [CHAT, SHAREGPT, OLDER], ids=["messages", "sharegpt", "older"])
def test_each_reply_is_a_turn_and_what_came_back_is_its_feedback(tmp_path, row):
    (game,) = read_chats(lines(tmp_path, row))
    call, said = game.turns
    assert call.observation == "Where is order 7?" and call.feedback == "lost"
    assert json.loads(call.action) == {"name": "find_order", "arguments": {"order": 7}}
    assert call.action in call.reply
    assert said.observation == "lost" and said.reply == "It is lost." and said.action is None
    assert said.feedback == game.feedback == "Then send it again."
    assert game.outcome is Outcome.UNKNOWN
    first, second = states([game])
    assert [m["role"] for m in first.prompt] == ["system", "user"]
    assert [m["role"] for m in second.prompt] == ["system", "user", "assistant", "tool"]
    for state in (first, second):
        assert state.prompt[0]["tools"] == [TOOL]
    assert second.prompt[2]["tool_calls"][0]["function"]["arguments"] == {"order": 7}


def test_reasoning_ids_models_and_other_fields_are_kept(tmp_path):
    (game,) = read_chats(lines(tmp_path, CHAT))
    assert game.turns[0].reply.startswith("<think>\nI look it up.\n</think>\n")
    assert game.turns[1].prompt[2]["reasoning_content"] == "I look it up."
    assert (game.id, game.model, game.extra) == ("c1", "agent-3", {"log": {"rating": 2}})
    path = tmp_path / "records.jsonl"
    write_jsonl(path, [game])
    assert read_jsonl(path, Trajectory) == [game]
    again = read_chats(path)
    assert again == [game] and again.format == "records"


def test_feedback_of_the_line_belongs_to_the_last_reply(tmp_path):
    row = {**chat("Hi", "Hello", "?", "!"), "feedback": "thumbs down: too short"}
    (game,) = read_chats(lines(tmp_path, row))
    assert [t.feedback for t in game.turns] == ["?", "thumbs down: too short"]


def test_ids_are_unique(tmp_path):
    games = read_chats(
        lines(tmp_path, *({**chat("a", "b"), "id": name} for name in ("x", "x-log-3", "x")))
    )
    assert len({game.id for game in games}) == 3


def test_fields_that_are_not_read_are_kept():
    row = {"id": 7, "feedback": {"score": 1}, "model": ["m"], "system": "y", "conversations": []}
    system = {"role": "system", "content": "x"}
    (game,) = read_chats([row | {"messages": [system, user("a"), answer("b")]}])
    assert game.id == "7" and game.extra["log"] == {k: row[k] for k in row if k != "id"}


def test_forms_of_other_programs(tmp_path):
    calls = json.dumps([{"name": "f", "arguments": {}}, {"name": "g", "parameters": {"x": 1}}])
    said = [("Human", "a"), ("tool_call", calls), ("tool_response", "r"), ("chatgpt", "b")]
    (game,) = read_chats([{"conversations": [{"from": who, "value": x} for who, x in said]}])
    assert (
        '{"name": "g", "arguments": {"x": 1}}' in game.turns[0].action
        and game.turns[1].reply == "b"
    )
    refused = {"role": "assistant", "content": None, "refusal": "I cannot."}
    assert read_chats([{"messages": [user("a"), refused]}])[0].turns[0].reply == "I cannot."
    (tmp_path / "lists.jsonl").write_text('[1]\n{"messages": []}')
    with pytest.raises(RecordError, match=r"line 1: is a list, .* \(1 more bad line: 2\)"):
        read_chats(tmp_path / "lists.jsonl")


def test_rows_of_bytes_are_refused():
    with pytest.raises(RecordError, match="line 1: .*bytes"):
        read_chats([b'{"messages": [{"role": "user", "content": "x"}]}'])


def test_parquet_datasets_lists_and_rows_are_the_same(tmp_path):
    pytest.importorskip("datasets")
    from datasets import Dataset, DatasetDict

    rows = [{**chat("a", "b"), "tools": json.dumps([TOOL])}, chat("c", "d", "e", "f")]
    rows[0]["messages"][1]["tool_calls"] = None
    data = Dataset.from_list(rows)
    data.to_parquet(tmp_path / "log.parquet")
    data.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "log.json").write_text(json.dumps(rows))
    want = [
        [(t.prompt, t.reply, t.feedback) for t in game.turns]
        for game in read_chats(lines(tmp_path, *rows))
    ]
    assert want[0][0][0][0]["tools"] == [TOOL]
    for source in (tmp_path / "log.parquet", tmp_path / "saved", tmp_path / "log.json", data, rows):
        found = read_chats(source)
        assert [[(t.prompt, t.reply, t.feedback) for t in game.turns] for game in found] == want
    calls = [{"name": "f", "arguments": {name: 1}} for name in "xy"]
    rows = [{"messages": [user("q"), {"role": "assistant", "tool_calls": [c]}]} for c in calls]
    rows[0]["at"] = datetime(2026, 1, 2)
    rows[1]["messages"].append({"role": "tool", "content": None})
    data = Dataset.from_list(rows)
    data.to_parquet(tmp_path / "calls.parquet")
    for source in (tmp_path / "calls.parquet", data, rows):  # Arrow gives both calls x and y
        games = read_chats(source)
        assert [json.loads(g.turns[0].action)["arguments"] for g in games] == [{"x": 1}, {"y": 1}]
        assert games[0].extra == {"log": {"at": "2026-01-02 00:00:00"}}
    with pytest.raises(ValueError, match="split of the data set: train"):
        read_chats(DatasetDict({"train": data}))


def test_our_own_records_come_back_from_parquet_and_data_sets(tmp_path):
    pytest.importorskip("datasets")
    chats = read_chats([CHAT, {**chat("a", "b"), "note": "{no JSON"}, {**chat("c", "d"), "n": [1]}])
    for name in ("own.parquet", "own"):
        write_rows(tmp_path / name, chats)
        assert read_chats(tmp_path / name) == chats


BAD = {
    "unknown role": ({"messages": [{"role": "robot", "content": "x"}]}, "unknown role 'robot'"),
    "half an emoji": ({"\ud83d": []}, "has neither messages"),
    "empty": ({"messages": []}, "conversation is empty"),
    "assistant first": ({"messages": [answer("Hello"), user("Hi")]}, "begins with assistant"),
    "system only": ({"messages": [{"role": "system", "content": "x"}]}, "begins with no message"),
    "no reply": (chat("Hi"), "no reply of the assistant"),
    "huge": (chat("x" * 5_000_000, "y"), "5,000,000 characters"),
    "long": (chat(*"ab" * 8_000), "16,000 messages; the limit is 4,000, .*: split"),
    "number": ({"messages": [{"role": "user", "content": 7}]}, "message 1.* int"),
    "no list": ({"messages": "Hi"}, "messages is not a list"),
    "no object": ({"messages": ["Hi"]}, "message 1 is a str"),
    "picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "of the kind 'image_url'",
    ),
    "silent": ({"messages": [user("Hi"), answer("")]}, "has no content"),
    "call": (
        {"messages": [user("Hi"), {"role": "assistant", "tool_calls": [{"function": {}}]}]},
        "call has no name",
    ),
    "arguments": (
        {
            "messages": [
                user("Hi"),
                {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]},
            ]
        },
        "not JSON",
    ),
    "list of arguments": (
        {
            "messages": [
                user("Hi"),
                {"role": "assistant", "tool_calls": [{"name": "f", "arguments": [7]}]},
            ]
        },
        "not an object",
    ),
    "deep": ({**chat("a", "b"), "x": json.loads("[" * 300 + "]" * 300)}, "nested more than 100"),
    "mixed": (SHAREGPT, "in the format sharegpt, the others are messages"),
    "no fields": ({"prompt": "x"}, "neither messages, conversations nor turns: prompt"),
    "list": ([1], "is a list, not an object"),
    "UTF-8": (b'{"messages": "\xff"}', "not UTF-8: byte 14 is 0xff"),
    "JSON": (b'{"messages": [', "not JSON"),
    "string": (b'{"messages": "a', r"not JSON: Unterminated string starting at column 14[.:]"),
    "tools": ({**chat("a", "b"), "tools": "7"}, "tools is not a list"),
    "tools cut off": ({**chat("a", "b"), "tools": "[{"}, "the tools: not JSON: Expecting"),
    "call cut off": (
        {"messages": [user("Hi"), {"role": "function_call", "content": "{"}]},
        "message 2, a tool call: not JSON: Expecting",
    ),
    "other field": ({"messages": [{"role": "user", "text": "x"}]}, "neither content nor value: "),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_lines_are_named_counted_and_skipped_or_refused(tmp_path, bad):
    row, message = BAD[bad]
    path = lines(tmp_path, chat("a", "b"), b"", row, chat("c", "d"))
    with pytest.raises(RecordError, match=rf"log.jsonl, line 3: .*{message}") as error:
        read_chats(path)
    assert len(error.value.records) == 2 and [line for line, *_ in error.value.bad] == [3]
    assert len(str(error.value)) < 500
    with pytest.warns(UserWarning, match=rf"line 3: .*{message}"):
        chats = read_chats(path, on_bad="skip")
    assert len(chats) == 2 and [line for line, *_ in chats.bad] == [3]
    assert "left out: 1 line\n  line 3: " in str(chats) and str(chats).encode()
    assert pretty(chats) == str(chats)  # as a notebook shows it


def test_a_bad_line_does_not_set_the_format_of_the_others():
    for bad, good in (({"messages": []}, SHAREGPT), ({"conversations": {}}, CHAT)):
        with pytest.raises(RecordError, match="line 1: ") as error:
            read_chats([bad, good])
        assert len(error.value.records) == 1 and [line for line, *_ in error.value.bad] == [1]


def test_many_bad_lines_are_all_named(tmp_path):
    path = lines(tmp_path, *[{"messages": []}] * 2, chat("a", "b"))
    with pytest.raises(RecordError, match=r"line 1: .* \(1 more bad line: 2\)"):
        read_chats(path)
    path = lines(tmp_path, *[{"messages": []}] * 3, chat("a", "b"))
    with pytest.raises(RecordError, match=r"line 1: .* \(2 more bad lines: 2, 3\)"):
        read_chats(path)


def test_nothing_left_and_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no conversation in it"):
        read_chats(lines(tmp_path, b"", b" "))
    with pytest.raises(FileNotFoundError):
        read_chats(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="on_bad is raise or skip"):
        read_chats([], on_bad="ignore")
    named = read_chats([SHAREGPT], format="sharegpt")
    assert named.format == "sharegpt"
    with pytest.raises(RecordError, match="the rows, line 1: is in the format sharegpt"):
        read_chats([SHAREGPT], format="messages")


def test_a_message_may_be_as_long_as_the_limit():
    assert len(read_chats([chat("x" * MAX_TEXT, "y")])) == 1


def test_a_conversation_may_have_as_many_messages_as_the_limit():
    (game,) = read_chats([chat(*"ab" * (MAX_MESSAGES // 2))])
    assert len(game.turns) == MAX_MESSAGES // 2
    first, last = game.turns[0].prompt, game.turns[-1].prompt
    assert len(last) == MAX_MESSAGES - 1
    assert first[0] is last[0]  # turns share their messages: only the lists grow


SECRETS = {
    "e-mail": ["bob.x+y@mail.example.co.uk", "ü@bücher.example", "o'brien%40example.com"],
    "phone": [
        *["+49 30 1234567", "(555) 234-5678", "030 1234567", "+1-202-555-0143"],
        *["+49\u2011151\u201112345678", "(555)234-5678", "1-800-555-0199", "06 12 34 56 78"],
    ],
    "key": [
        "sk-proj-abcdEFGH12345678",
        "ghp_abcdefghijklmnopqrst1234",
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0.SflKxwRJSMeKKF2QT4",
        "-----BEGIN PRIVATE KEY-----\nMIIEvQ+/=\n-----END PRIVATE KEY-----",
        "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3f",
    ],
}
NO_SECRETS = (
    "On 2026-11-27 at 12:30 (01-02-2026), order 12345678: 1.234.567,00 EUR, version 1.2.3, "
)
NO_SECRETS += "FrozenLake4x4-v0-r1-m10000-s1-0/3, pk_column_name_in_table, pip install x@1.0.0."
NO_SECRETS_EITHER = [
    *["2026-11-27 12:30:00 12345 rows", "1 000 000 000 EUR", "+0.123456789", "+2026-11-27"],
    *["pk_customeraddresses", "basic implementations.", "token = lexer.get_token(x)"],
    'OpenAI(api_key=os.environ["API_KEY"])',
]


def test_what_looks_like_a_secret_is_replaced_and_nothing_else():
    for kind, texts in SECRETS.items():
        for text in texts:
            assert redact(f"It is {text} here.") == f"It is [{kind}] here.", text
    assert redact("api_key='0123456789ab' and password: a{b}cdef") == (
        "api_key='[key]' and password: [key]"
    )
    for label in ("DB_PASSWORD=", "client_secret: ", "accessToken='", "my password is "):
        assert redact(f"{label}hunter2222") == f"{label}[key]"
    assert redact("db://admin:s3cr3t@host:1/x") == "db://[key]@host:1/x"
    assert redact('{"secret": false}') == '{"secret": false}'
    assert redact(NO_SECRETS) == NO_SECRETS
    assert list(map(redact, NO_SECRETS_EITHER)) == NO_SECRETS_EITHER
    assert redact("Basic dXNlcjpwYXNzd29yZA==") == "Basic [key]"


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_behind_a_label_is_replaced_once(kind):
    for text in SECRETS[kind]:
        for form in ("token: {}", "password={}.", '{{"secret": "{}"}}', "({})"):
            told = redact(form.format(text))
            assert told == redact(told) and "]]" not in told and text not in told


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text", ["a", "1 ", "a-", "+1", "a.b@", "-----BEGIN PRIVATE KEY-----", "0 "]
)
def test_redaction_takes_no_time_that_grows_faster_than_the_text(text):
    redact(text * (5_000_000 // len(text)))


def test_every_text_goes_through_the_hook_and_what_it_replaced_is_counted(tmp_path):
    mail, seen = "bob@example.com", []
    row = json.loads(json.dumps(CHAT).replace("lost", mail).replace("order 7", mail))
    row["customer"] = {"mail": [mail]}
    row["messages"][2]["tool_calls"][0]["function"]["arguments"] = json.dumps(
        {"mail": f"To:\n{mail}\n+49 30 1234567", "password": "hunter2222"}
    )
    row["messages"][2]["reasoning_content"] = mail
    row["tools"][0]["function"]["description"] = mail
    chats = read_chats(lines(tmp_path, row))
    assert mail not in json.dumps(chats[0].extra) + str(chats[0])
    assert chats.replaced == {"e-mail": 7, "key": 1, "phone": 1}
    assert "replaced: 7 e-mail" in str(chats)
    called = json.loads(chats[0].turns[0].action)["arguments"]
    assert called == {"mail": "To:\n[e-mail]\n[phone]", "password": "[key]"}
    assert mail in str(asdict(read_chats([row], redact=None)[0]))
    own = read_chats([row], redact=lambda text: seen.append(text) or text.replace(mail, "X"))
    assert mail not in str(asdict(own[0])) and own.replaced == {"text": 7} and mail in seen
    assert "assistant" not in seen  # the format's field names are not text
    with pytest.raises(RecordError, match="hook returned a NoneType"):
        read_chats([row], redact=lambda text: None)


def test_a_field_that_a_tool_calls_from_is_text():
    key = f"ghp_{'a1B2' * 9}"
    call = {"name": "send", "arguments": {"from": "bob@example.com", "type": "a b@example.com"}}
    call["arguments"]["x"] = {"type": key}
    row = {"messages": [user("Hi"), {"role": "assistant", "tool_calls": [call]}]}
    reply = read_chats([row])[0].turns[0].reply
    assert "example.com" not in reply and key not in reply


def test_names_and_values_of_objects_are_redacted_too():
    by = {"bob@example.com": 1, "al@example.com": 2, f"ghp_{'a1B2' * 9}": 3}
    given = {"password": "hunter2222", "by": by}
    call = {"name": "send", "arguments": given}
    row = {"messages": [user("Hi"), {"role": "assistant", "tool_calls": [call]}]}
    chats = read_chats([row | {"log": given}])
    called = json.loads(chats[0].turns[0].action)["arguments"]
    assert called == chats[0].extra["log"]["log"]
    assert called["password"] == "[key]" and sorted(called["by"].values()) == [1, 2, 3]
    assert chats.replaced == {"key": 4, "e-mail": 4}
    assert not re.search("example.com|ghp_", str(asdict(chats[0])))


def test_what_is_shown_of_a_bad_line_is_redacted(tmp_path):
    with pytest.raises(RecordError) as error:
        read_chats([{"messages": [{"role": "bob@example.com", "content": "x"}]}])
    assert "bob@example.com" not in str(error.value)


def test_import_writes_trajectories_and_states_of_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = lines(tmp_path, CHAT, {"messages": []})
    assert main(["import", str(path), "--run", "mine"]) == 1
    assert "line 2: the conversation is empty" in capsys.readouterr().err
    folder = tmp_path / "runs/mine/round_1"
    assert not folder.exists()
    with warnings.catch_warnings(action="error"):  # the list says it
        assert main(["import", str(path), "--run", "mine", "--bad", "skip"]) == 0
    said = capsys.readouterr().out
    assert "1 conversation (messages) with 2 replies" in said and "line 2" in said
    then = shlex.split(said.split("continue with: oelkit ")[1])
    args = parser().parse_args(then)
    assert args.out == str(folder / "items.jsonl") and args.model != "micro"
    assert len(read_jsonl(folder / "trajectories.jsonl", Trajectory)) == 1
    assert len(read_jsonl(folder / "states.jsonl", State)) == 2
    (folder / "trajectories.jsonl").rename(tmp_path / "games")
    assert main(["import", str(path), "--run", "mine", "--bad", "skip"]) == 1
    assert "states.jsonl already exists" in capsys.readouterr().err
    (tmp_path / "games").rename(folder / "trajectories.jsonl")
    with locked(folder.parent):
        assert main(["import", str(path), "--run", "mine", "--bad", "skip", "--force"]) == 1
        assert "is being written by process" in capsys.readouterr().err
    assert main(["status", "mine"]) == 3
    told = "mine holds imported logs but no loop yet; continue with: oelkit "
    assert capsys.readouterr().out.endswith(f"{told}{shlex.join(then)}\n")
    for wrong, why in ((tmp_path, "is a folder, but no"), ("no.jsonl", "^no.jsonl: No such file$")):
        with pytest.raises((ValueError, FileNotFoundError), match=why):
            read_chats(wrong)
    reading, closed = os.pipe()
    os.close(reading)  # as `| head` does
    call = [sys.executable, "-m", "oelkit", "status", str(folder.parent)]
    done = subprocess.run(call, stdout=closed, stderr=subprocess.PIPE, check=False)
    os.close(closed)
    assert done.stderr == b""
    items = folder / "items.jsonl"
    for made, text, nearest in (
        (items, "", "extract --trajectories "),
        (items, "{}\n", f"curate {items}\n"),
        (folder / "curation.jsonl", "", f"distill --states {folder / 'states.jsonl'} --exp"),
        (folder / "mine/adapter_config.json", "{}", f"export {folder / 'mine'} --to merged\n"),
    ):
        write_text(made, text)
        assert main(["report", "mine"]) == 1
        assert told + nearest in capsys.readouterr().err

"""What an item is worth: measured on real games, stored and shown."""

import json

import pytest
from helpers import shake

from oelkit import Curation, evaluate, leave_one_out, load_policy
from oelkit.records import ExperienceItem, read_jsonl, write_jsonl
from oelkit.statements import read_worth
from oelkit.steps import worth
from oelkit.views.widgets import experience_editor

LAKE = "oelkit/FrozenLake4x4-v0"
ITEMS = ["H is a hole.", "H is the goal."]


@pytest.fixture(scope="module")
def lakes():
    return load_policy("data/micro_lakes")


@pytest.mark.slow
def test_it_is_what_the_pass_rate_loses(lakes, tmp_path):
    path, hole, goal = tmp_path / "worth.jsonl", "H is a hole.", "G is the goal."
    found = leave_one_out(lakes, LAKE, range(48), [hole, goal], path=path)
    assert list(found) == [hole, goal] and read_worth(path) == found
    texts = [f"- EXPERIENCE ITEM: {text}" for text in (hole, goal)]
    rates = [
        evaluate(lakes, LAKE, range(48), text).pass_rate for text in ("\n".join(texts), texts[0])
    ]
    middle, low, high = found[goal]
    assert middle == pytest.approx(rates[0] - rates[1]) and 0.4 < low <= middle <= high


def test_it_goes_on_where_it_stopped_and_begins_again_where_something_differs(
    tiny, tmp_path, monkeypatch
):
    path, options = tmp_path / "worth.jsonl", {"prompt_set": "brief", "max_new_tokens": 4}
    played, real = [], worth.evaluate

    def evaluate(policy, env, seeds, text, **more):
        played.append(text)
        if len(played) == 3:
            raise KeyboardInterrupt
        return real(policy, env, seeds, text, **more)

    monkeypatch.setattr(worth, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        leave_one_out(tiny, LAKE, [1, 2], ITEMS, path=path, **options)
    assert list(read_worth(path)) == ITEMS[:1]
    found = leave_one_out(tiny, LAKE, [1, 2], [*ITEMS, ITEMS[0]], path=path, **options)
    assert list(found) == ITEMS == list(read_worth(path))
    marked = [f"- EXPERIENCE ITEM: {text}" for text in ITEMS]
    assert played[3:] == ["\n".join(marked), marked[0]]  # all, and all without the second
    assert leave_one_out(tiny, LAKE, [1, 2], ITEMS, path=path, **options) == found
    assert len(played) == 5
    leave_one_out(tiny, LAKE, [1, 3], ITEMS, path=path, **options)
    assert len(played) == 8
    shake(tiny)
    leave_one_out(tiny, LAKE, [1, 3], ITEMS, path=path, **options)
    assert len(played) == 11


def test_another_kind_of_file_is_not_overwritten(tiny, tmp_path):
    path = tmp_path / "items.jsonl"
    write_jsonl(path, [ExperienceItem("i", "H is a hole.", (), "m", 1, 0)])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"items\.jsonl: it holds something else"):
        leave_one_out(tiny, LAKE, [1], ITEMS, path=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("items, seeds", [([], [1]), ([""], [1]), (["x"], [])])
def test_nothing_to_leave_out_is_an_error(tiny, items, seeds):
    with pytest.raises(ValueError, match="nothing to leave out"):
        leave_one_out(tiny, LAKE, seeds, items)


def test_what_comes_with_the_sample_is_of_its_items():
    there = {item.text for item in read_jsonl("data/sample/items.jsonl", ExperienceItem)}
    rows = read_jsonl("data/sample/worth.jsonl")
    assert {row["text"] for row in rows} == there and len({row["key"] for row in rows}) == 1
    assert all(row["low"] <= row["worth"] <= row["high"] and row["maps"] == 128 for row in rows)


@pytest.mark.parametrize("row", [{"text": "x"}, {"text": [], "worth": 1, "low": 0, "high": 1}])
def test_a_file_of_something_else_is_named(tmp_path, row):
    write_jsonl(tmp_path / "worth.jsonl", [row])
    with pytest.raises(ValueError, match="worth.jsonl: not a file of `leave_one_out`"):
        read_worth(tmp_path / "worth.jsonl")


def test_the_editor_shows_it_as_long_as_the_text_stands():
    items = [ExperienceItem(text, text, (), "m", 1, 0) for text in ITEMS]
    editor, sent = experience_editor(Curation(items), worth={ITEMS[0]: (0.12, 0.03, 0.21)}), []
    editor.send = lambda message, **_: sent.append(message)
    editor._receive({"op": "hello"})
    state = json.loads(sent[-1]["json"]) if "json" in sent[-1] else sent[-1]
    assert state["measured"] and [row["worth"] for row in state["rows"].values()] == [
        [0.12, 0.03, 0.21],
        None,
    ]
    editor._receive({"op": "edit", "ids": [ITEMS[0]], "texts": ["H is deep."]})
    state = json.loads(sent[-1]["json"]) if "json" in sent[-1] else sent[-1]
    assert state["rows"][ITEMS[0]]["worth"] is None

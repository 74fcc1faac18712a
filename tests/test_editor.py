"""The Python side of the experience editor: each message of the browser becomes an operation in the
log, and only changes are sent back. browser/test_editor.py tests what a person sees and presses."""

import json
import re
from unittest.mock import ANY

import nbformat
import pytest
from jinja2 import TemplateError

from oelkit.curation import Curation
from oelkit.records import (
    Evidence,
    ExperienceItem,
    Outcome,
    Trajectory,
    Turn,
    read_jsonl,
    write_jsonl,
)
from oelkit.views.widgets import experience_editor

EVIL = "<script>alert(1)</script>"
TEXTS = "H is a hole.", EVIL, "G is the goal."


@pytest.fixture
def files(tmp_path):
    write_jsonl(
        tmp_path / "items.jsonl",
        [
            ExperienceItem(f"i{n}", text, (Evidence("t0", n),), "m", 1, 0)
            for n, text in enumerate(TEXTS)
        ],
    )
    return tmp_path / "items.jsonl", tmp_path / "curation.jsonl"


class Browser:
    """Keeps the browser's state after each message."""

    def __init__(self, curation, **options):
        self.view = experience_editor(curation, **options)
        self.view.send = self.hear
        self.rows, self.state, self.heard = {}, {}, []
        self.do("hello")

    def hear(self, content):
        self.heard.append(json.loads(content["json"]))
        self.rows.update(self.heard[-1]["rows"])
        self.state.update(self.heard[-1])

    def do(self, op, **more):
        self.view._handle_custom_msg({"op": op, **more}, [])
        return self.heard[-1]

    def shown(self):
        return [self.rows[id]["text"] for id in self.state["order"]]


def test_every_message_is_an_operation_and_the_view_follows(files):
    curation = Curation.open(*files, author="ann")
    browser = Browser(curation)
    assert browser.state["can"] == [False, False] and browser.state["reads"] == []
    browser.do("accept", ids=["i0", "i2"])
    browser.do("explain", reason="seen")
    browser.do("reject", ids=["i1"])
    browser.do("skip", ids=["i1"])
    browser.do("restore", ids=["i1"])
    browser.do("edit", ids=["i2"], texts=["G is where to go."])
    assert browser.state["saved"]
    browser.do("move", ids=["i2"], texts=["i0"], to=0)
    merged = browser.do("merge", ids=["i2", "i0"], texts=["both"])["at"]
    parts = browser.do("split", ids=[merged], texts=["one", "two"])["at"], "split-9.2"
    own = browser.do("add", texts=["mine"])["at"]
    assert [op["op"] for op in read_jsonl(files[1])] == [
        "accept",
        "explain",
        "reject",
        "skip",
        "restore",
        "edit",
        "move",
        "merge",
        "split",
        "add",
    ]
    assert curation.history("i0")[0].reason == "seen"
    assert curation.log[0].ids == ("i0", "i2") and curation.log[0].author == "ann"
    assert browser.state["order"] == [*parts, "i1", own] == [i.id for i in curation.items]
    assert browser.shown() == ["one", "two", EVIL, "mine"]
    assert browser.state["reads"] == [
        f"- EXPERIENCE ITEM: {text}" for text in ("one", "two", "mine")
    ]
    assert [browser.do("undo")["at"] for _ in range(3)] == [
        None,
        merged,
        "i2",
    ]  # rows that come back
    assert browser.do("redo")["at"] == merged and browser.state["can"] == [True, True]
    other = Browser(Curation.open(*files))  # another window, later
    assert (other.rows, other.state["order"]) == (
        {id: browser.rows[id] for id in browser.state["order"]},
        browser.state["order"],
    )


def test_only_what_changed_is_sent(files):
    curation = Curation.open(*files)
    browser = Browser(curation)
    news = browser.do("reject", ids=["i1"])
    assert list(news["rows"]) == ["i1"] and set(news) == {"rows", "can", "log"}
    assert browser.do("refresh") == {"rows": {}}
    curation.accept("i0")  # in another cell
    assert browser.do("refresh")["rows"]["i0"]["status"] == "accepted"
    curation.accept("i2")
    browser.view.refresh()
    assert browser.rows["i2"]["status"] == "accepted"
    assert len(browser.do("hello")["rows"]) == 3  # a reloaded page has no state


def test_refusals_are_told_and_change_nothing(files):
    curation = Curation.open(*files)
    browser = Browser(curation)
    assert "text is empty" in browser.do("edit", ids=["i0"], texts=["  "], said="Edited")["error"]
    assert "notice" not in browser.state
    assert not browser.state["saved"]
    assert "no operation 'log'" in browser.do("log")["error"]
    assert "gone" in browser.do("move", ids=["i0"], texts=["gone"], to=0)["error"]
    assert not files[1].exists()
    Curation.open(*files).accept("i1")  # somebody else, in another window
    assert "changed by somebody else" in browser.do("reject", ids=["i0"])["error"]
    assert (
        browser.rows["i0"]["status"] == "pending" == browser.rows["i1"]["status"]
        and len(read_jsonl(files[1])) == 1
    )
    browser.do("reload")
    browser.do("reject", ids=["i0"])
    assert [browser.rows[i]["status"] for i in ("i0", "i1")] == ["rejected", "accepted"]


@pytest.mark.parametrize(
    "message, told",
    [
        ({}, "'message.op': is missing"),
        ([], "message': expected an object"),
        ({"op": "accept", "ids": "i0"}, "'message.ids': expected a list"),
        ({"op": "accept", "ids": [["i0"]]}, r"'message.ids\[0\]': expected str"),
        ({"op": "author", "texts": [5]}, r"'message.texts\[0\]': expected str"),
        ({"op": "add"}, "no operation 'add' with 0 items and 0 texts"),
        ({"op": "look"}, "no operation 'look'"),
        ({"op": "merge", "texts": ["x"]}, "no operation 'merge' with 0 items and 1 text"),
        ({"op": "move", "ids": ["i0"], "to": 0}, "no operation 'move' with 1 item and 0 texts"),
        ({"op": "move", "ids": ["i0"], "texts": ["i0"], "to": 0}, "no other row has the id 'i0'"),
    ],
)
def test_a_strange_message_is_refused_in_a_sentence(files, message, told):
    browser = Browser(Curation.open(*files))
    browser.view._handle_custom_msg(message, [])
    assert re.search(told, browser.heard[-1]["error"]) and not files[1].exists()


def test_budget_prompt_and_draws():
    items = [
        ExperienceItem(f"{d}{n}", f"note {n} of draw {d}", (), "m", 1, d)
        for d in (0, 1)
        for n in range(3)
    ]
    curation = Curation(items)
    browser = Browser(
        curation,
        tokenizer=lambda text: len(text.split()),
        budget_tokens=16,
        prompt=lambda notes: f"Before.\n{notes}\nAfter.",
    )
    assert browser.state["before"] == "Before.\n\nAfter."
    curation.accept([i.id for i in items], every_draw=False)  # as auto_curate may
    browser.do("refresh")
    said = [f"- EXPERIENCE ITEM: note {n} of draw 0" for n in range(3)]
    assert browser.state["cut"] == ["note 0 of draw 0"] and browser.state["reads"] == said[1:]
    assert (browser.state["before"], browser.state["after"]) == ("Before.\n", "\nAfter.")
    assert (browser.state["tokens"], browser.state["prompt_tokens"], browser.state["unit"]) == (
        16,
        18,
        "tokens",
    )
    assert [id for id, row in browser.rows.items() if row["cut"]] == ["00"]
    assert browser.do("draw", to=1)["reads"] == [
        line.replace("draw 0", "draw 1") for line in said[1:]
    ]
    assert [id for id, row in browser.rows.items() if row["cut"]] == ["10"]
    with pytest.raises(ValueError, match="needs a tokenizer"):
        experience_editor(curation, budget_tokens=5)

    def refuse(notes):
        raise TemplateError("System role not supported")

    refused = Browser(curation, prompt=refuse).state  # its rows are there all the same
    assert "System role not supported" in refused["before"] and len(refused["reads"]) == 3


def test_near_duplicates_word_diff_and_source(files):
    curation = Curation.open(*files)
    browser = Browser(curation)
    assert browser.state["unit"] == "words" and browser.rows["i0"]["tokens"] == 4
    browser.do("edit", ids=["i2"], texts=["H is the goal."])
    assert browser.rows["i0"]["against"] == [["i2", "H is the goal.", 1]]
    browser.do("edit", ids=["i2"], texts=["H marks a hole."])
    assert browser.rows["i0"]["alike"] == browser.rows["i2"]["alike"] == 0
    assert browser.rows["i1"]["alike"] is None and browser.rows["i0"]["against"] == []
    assert browser.rows["i2"]["diff"][0][0] == "-"
    assert browser.do("edit", ids=["i2"], texts=["H is a Hole!"])["at"] == "i0"
    assert browser.state["order"] == ["i0", "i1"] and browser.rows["i0"]["items"] == 2
    merged = curation.merge(["i0", "i2"])
    own = browser.do("add", texts=["mine"])["at"]
    assert browser.rows[merged]["text"] == "H is a hole."  # the same words, said once
    assert [browser.rows[i]["sources"] for i in (merged, own, "i1")] == [
        ["merged", "draw 0"],
        ["by hand"],
        ["draw 0"],
    ]


@pytest.mark.parametrize("op, texts", [("edit", ["x"]), ("merge", ["x"]), ("split", ["x", "y"])])
def test_what_a_person_writes_is_accepted_in_one_step_unless_it_was_rejected(files, op, texts):
    curation = Curation.open(*files)
    browser = Browser(curation)
    ids = ["i0", "i2"] if op == "merge" else ["i0"]
    curation.skip("i2")
    browser.do(op, ids=ids, texts=texts)
    assert [item.text for item in curation.kept()] == texts and len(curation.log) == 2
    assert [i.text for i in Curation.open(*files).kept()] == texts, "the log says it"
    browser.do("undo")
    assert [item.status for item in curation.items] == ["pending", "pending", "skipped"]
    curation.reject(["i0", "i2"])
    browser.do(op, ids=ids, texts=texts)
    assert not curation.kept()


def test_a_merged_text_is_compared_sentence_by_sentence(files):
    browser = Browser(Curation.open(*files))
    merged = browser.do("merge", ids=["i1", "i2"], texts=["G is the goal. H is the goal."])["at"]
    assert browser.rows["i0"]["against"][0][0] == merged
    assert browser.rows[merged]["against"][0][0] == "i0"


def test_what_no_person_decided_is_marked_until_one_does(files):
    curation = Curation.open(*files)
    curation.accept(["i0", "i2"], author="auto", every_draw=False)
    browser = Browser(curation)
    assert [browser.rows[id]["auto"] for id in ("i0", "i1", "i2")] == [True, False, True]
    browser.do("accept", ids=["i0"])
    assert not browser.rows["i0"]["auto"]
    browser.do("undo")
    assert browser.rows["i0"]["auto"] and browser.rows["i2"]["auto"]


def test_where_an_item_comes_from(files):
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    reply = f"<think>Hm.</think>reply {EVIL}\n{call}"
    turn = Turn("a board", [], reply, "left", "ok", 1, 1, False)
    game = Trajectory("t0", "e", 1, "m", 1, (turn,), Outcome.SUCCESS, "ok")
    curation = Curation.open(*files)
    seen = []
    browser = Browser(curation, games=[game], on_turn=lambda *turn: seen.append(turn))
    browser.do("turn", ids=["t0"], to=0)
    browser.view.show("i2")
    assert seen == [("t0", 0)] and browser.heard[-1]["at"] == "i2"
    with pytest.raises(ValueError, match="no item has the id"):
        browser.view.show("nope")
    browser.do("edit", ids=["i0"], texts=["x"])
    browser.do("explain", reason="why not")
    browser.do("accept", ids=["i0"])
    browser.do("undo")
    detail = browser.do("look", ids=["i0"])["detail"]
    assert detail["originals"] == ["H is a hole."] and [h[0::3] for h in detail["history"]] == [
        ["edit", "why not"]
    ]
    assert detail["evidence"] == [
        {
            "game": "t0",
            "turn": 1,
            "of": 1,
            "chat": True,
            "outcome": "success",
            "text": "a board",
            "board": {"cells": [], "kinds": ANY, "action": "left"},
            "thinking": "Hm.",
            "reply": f"reply {EVIL}",
            "calls": [["f", "{}"]],
            "move": "left",
            "feedback": "ok",
        }
    ]
    browser.do("edit", ids=["i2"], texts=["x"])
    merged = curation.merge(["i0", "i2"])
    detail = browser.do("look", ids=[merged])["detail"]
    assert detail["parents"] == [[["i0", "i2"], "x"]]
    assert detail["evidence"][1] == {"game": "t0", "turn": 3}  # beyond the games that are loaded


def test_saved_notebooks_keep_html_and_broken_text_reaches_the_browser(tmp_path):
    curation = Curation([ExperienceItem("i0", f"half \ud83d {EVIL}", (), "m", 1, 0)])
    view = experience_editor(curation)
    data, _ = view._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "&lt;script" in data["text/html"] and "<script" not in data["text/html"]
    output = nbformat.v4.new_output("display_data", data)
    cell = nbformat.v4.new_code_cell(outputs=[output])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "saved.ipynb")
    sent = []
    view.send = sent.append
    view._handle_custom_msg({"op": "hello"}, [])
    assert sent[0]["json"].isascii() and json.loads(sent[0]["json"])["rows"]["i0"][
        "text"
    ].startswith("half \ud83d")


def test_an_item_shown_before_the_page_is_there_is_where_it_opens():
    """When `show` is called in the cell that makes the editor, no page receives its message yet."""
    items = [ExperienceItem(f"i{n}", f"Item number {n}.", (), "m", 1, 0) for n in range(30)]
    editor, sent = experience_editor(Curation(items)), []
    editor.show("i20")
    editor.send = lambda content, buffers=None: sent.append(json.loads(content["json"]))
    editor._handle_custom_msg({"op": "hello"}, [])
    assert sent[0]["at"] == "i20" and "i20" in sent[0]["rows"]
    with pytest.raises(ValueError, match="nobody"):
        editor.show("nobody")
    merged = editor.curation.merge([editor.curation.merge(["i20", "i21"]), "i2"])
    editor._handle_custom_msg({"op": "hello"}, [])
    assert sent[-1]["at"] == merged  # in its place
    editor.show("i21")
    assert sent[-1]["at"] == merged
    editor.curation.undo()
    editor.show("i2")
    assert sent[-1]["at"] == "i2"


def test_what_hangs_on_the_items_hears_of_each_change(files):
    heard = []
    browser = Browser(Curation.open(*files), on_change=lambda: heard.append(1))
    browser.do("look", ids=["i0"])
    browser.do("accept", ids=["i0"])
    browser.do("edit", ids=["i0"], texts=["  "])  # refused
    browser.do("undo")
    assert len(heard) == 3, "once at the start, and after each that was done"


def test_a_decision_on_a_row_is_for_all_items_in_its_words_and_all_evidence_is_there(tmp_path):
    items = [
        ExperienceItem(f"i{n}", "H is a hole.", (Evidence("g", n),), "m", 1, n % 10)
        for n in range(60)
    ]
    browser = Browser(Curation(items, tmp_path / "log.jsonl"))
    row = browser.rows["i0"]
    assert (row["items"], row["support"], row["of"], row["seen"]) == (60, 10, 10, 60)
    detail = browser.do("look", ids=["i0"])["detail"]
    assert len(detail["evidence"]) == 40 and detail["more"] == 20
    detail = browser.do("look", ids=["i0"], to=1)["detail"]
    assert len(detail["evidence"]) == 60 and detail["more"] == 0
    browser.do("accept", ids=["i0"])
    assert browser.state["reads"] == ["- EXPERIENCE ITEM: H is a hole."]
    assert len(browser.view.curation.log) == 1 and browser.state["log"][1] == 1
    browser.do("explain", reason="seen often")
    assert browser.do("look", ids=["i0"])["detail"]["history"][0][3] == "seen often"


def test_budget_author_export_and_import_are_messages(files):
    browser = Browser(Curation.open(*files))
    browser.do("author", texts=["Ann"])
    browser.do("accept", ids=["i0"])
    assert browser.view.curation.log[0].author == "Ann" == browser.state["author"]
    assert browser.do("budget", to=3)["cut"] == ["H is a hole."]
    assert "budget_tokens=-1" in browser.do("budget", to=-1)["error"]
    assert "1e+30" in browser.do("budget", to=1e30)["error"]  # as a page sends it
    name, text = browser.do("export", texts=["csv"])["file"]
    assert name == "curation.csv"
    assert browser.do("import", texts=[text])["notice"] == "Imported: no changes"
    assert "no operation" not in browser.do("import", texts=["x"])["error"]

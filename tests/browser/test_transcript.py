"""Conversations in the viewer and people's notes on them, in Chromium."""

import json
from dataclasses import replace

import pytest
from axe_playwright_python.sync_playwright import Axe

from oelkit.curation import Curation
from oelkit.logs import read_chats
from oelkit.records import Evidence, ExperienceItem, Trajectory, read_jsonl
from oelkit.views.widgets import experience_editor, trajectory_viewer

from .pages import PICTURES, ROOT, press, until

CALL = {"name": "find_order", "arguments": '{"number": "A-1031", "with": ["lines", "payments"]}'}
TOOLS = [{"type": "function", "function": {"name": "find_order", "parameters": {}}}]
TALK = [
    {"role": "system", "content": "You are the help desk of a shop. " + "Be kind and brief. " * 30},
    {"role": "user", "content": "Where is my order A-1031? I paid for two routers last week."},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "I must look it up.",
        "tool_calls": [{"id": "c1", "type": "function", "function": CALL}],
    },
    {"role": "tool", "name": "find_order", "content": '{"state": "returned", "days": 46}'},
    {"role": "assistant", "content": "It was sent back. We take routers back for 30 days."},
    {"role": "user", "content": "No, it is 45 days for routers: see your own page."},
    {"role": "assistant", "content": "You are right: 45 days for routers. I am sorry."},
    {"role": "user", "content": "Thank you. Goodbye!"},
]


def conversations():
    short = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]
    rows = [{"id": "chat-9", "messages": TALK, "tools": TOOLS}]
    return read_chats(rows + [{"id": f"chat-{n}", "messages": short} for n in range(3)])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_rows_that_begin_alike_show_their_ids_and_lines_left_out_are_named(show, theme):
    hello = [{"role": "user", "content": "I want to return my bike. " * 9}, TALK[-2]]
    rows = [{"id": f"{'talk_' * n * 9}chat-{n}", "messages": hello} for n in range(3)]
    with pytest.warns(UserWarning, match="left out"):
        view = trajectory_viewer(read_chats([*rows, {"messages": "<b>"}], on_bad="skip"))
    page = show(view, theme)
    for n, row in enumerate(page.locator(".ov-row").all()):
        box, name = row.bounding_box(), row.locator(".ov-id").bounding_box()
        assert row.locator(".ov-id").inner_text().endswith(f"chat-{n}")
        assert name["x"] + name["width"] < box["x"] + box["width"]
    page.get_by_text("1 line of the log could not be read").click()
    assert page.locator(".ov-left").inner_text().splitlines()[1].startswith("line 4: ")
    if PICTURES:
        page.screenshot(path=f"{PICTURES}/ids_{theme}.png")


def item(turn):
    return ExperienceItem("i1", "Routers: 45 days.", (Evidence("chat-9", turn),), "m", 1, 0)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [760, 1600])
def test_a_conversation_is_a_transcript(show, theme, width):
    gone = []
    view = trajectory_viewer(conversations(), items=[item(1)], on_item=gone.append)
    page = show(view, theme, width=width, height=900)
    page.locator(".ov-chat").wait_for()
    shown = page.locator(".ov-said > h4").all_inner_texts()
    roles = [line.split()[0] for line in shown]
    assert (
        roles == ["system", "user", "1", "tool", "2", "user", "3", "after"]
        and "find_order" in shown[3]
    )
    folds = page.locator(".ov-said details").all()
    assert [f.get_attribute("open") for f in folds] == [None] * 3, "prompt, tools, reasoning"
    assert not page.get_by_text("I must look it up.").is_visible()
    page.get_by_text("reasoning ·").click()
    assert page.get_by_text("I must look it up.").is_visible()
    call = page.locator(".ov-call").inner_text()
    assert call.startswith("calls find_order") and '"number": "A-1031"' in call
    assert page.get_by_text("We take routers back for 30 days.").is_visible()
    assert page.get_by_text("<tool_call>").count() == 0
    texts = page.locator(".ov-by-user").all_inner_texts()
    assert texts == [f"user\n{TALK[i]['content']}" for i in (1, 5)]
    for said in ("move", " tok", "no other game", "unknown", "round"):
        assert page.locator(".oel-viewer").get_by_text(said).locator("visible=true").count() == 0
    assert page.locator(".ov-sum [role=status]").first.inner_text() == "4 conversations"
    keys = page.locator(".ov-foot").inner_text()
    assert "conversation" in keys and "game" not in keys
    # from the item to the turn that taught it, and to the item's editor
    page.get_by_role("button", name="1 item: turn 2").click()
    until(page, lambda: view.at["turn"] == 1)
    taught = page.locator(".ov-exchange[aria-current]")
    assert "We take routers back for 30 days." in taught.inner_text()
    if PICTURES:
        page.screenshot(path=f"{PICTURES}/transcript_{theme}_{width}.png")
    taught.get_by_role("button", name="Routers: 45 days.").click()
    until(page, lambda: gone == ["i1"])
    wide = "[...document.querySelectorAll('.ov-detail, .ov-said')].filter("
    wide += "n => n.scrollWidth > n.clientWidth + 1).map(n => n.className)"
    assert page.evaluate(wide) == []
    found = Axe().run(page).response["violations"]
    serious = [v["nodes"][0]["html"] for v in found if v["impact"] in ("serious", "critical")]
    assert not serious, serious


def test_the_editor_speaks_of_a_conversation_as_of_one(show):
    view = experience_editor(Curation([item(2)]), games=conversations(), on_turn=print)
    page = show(view)
    page.get_by_role("button", name="Whole conversation").wait_for()
    seen = page.get_by_label("Evidence").inner_text()
    assert "Turn 3 of 3 chat-9" in " ".join(seen.split())
    assert "After the reply" in seen and "Thank you. Goodbye!" in seen
    short = experience_editor(
        Curation([replace(item(0), evidence=(Evidence("chat-0", 0),))]), games=conversations()
    )
    page = show(short)
    page.get_by_text("Before the reply").wait_for()
    seen = page.get_by_label("Evidence").inner_text()
    for said in ("unknown", "Move", "none found", "Feedback", "After the reply"):  # there is none
        assert said not in seen, said


def test_a_transcript_follows_the_turn_and_stays_where_one_clicked(show):
    talk = [m for n in range(30) for m in TALK[5:7]]
    log = read_chats([{"messages": talk}])
    view = trajectory_viewer(log)
    page = show(view, height=700)
    page.locator(".ov-chat").wait_for()
    detail = page.locator(".ov-detail")
    assert detail.evaluate("n => n.scrollTop") == 0
    page.locator(".ov-row").click()
    press(page, *["ArrowRight"] * 20)
    until(page, lambda: view.at["turn"] == 20)
    top, now = page.locator(".ov-top").bounding_box(), page.locator(".ov-exchange[aria-current]")
    assert abs(now.bounding_box()["y"] - top["y"] - top["height"]) < 3
    assert page.evaluate("scrollY") == 0, "only the transcript moves"
    before = detail.evaluate("n => n.scrollTop")
    page.get_by_role("button", name="turn 22", exact=True).click()
    until(page, lambda: view.at["turn"] == 21)
    assert detail.evaluate("n => n.scrollTop") == before


def test_words_of_a_conversation_neither_run_nor_hide(show):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\u202e"
    call = {"function": {"name": evil, "arguments": json.dumps({"a": evil})}}
    talk = [
        {"role": "user", "content": evil},
        {"role": "assistant", "content": "</tool_call><tool_call>\nnot JSON\n</tool_call>" + evil},
        {"role": "user", "content": "on"},
        {"role": "assistant", "content": evil, "tool_calls": [call]},
    ]
    page = show(trajectory_viewer(read_chats([{"messages": talk}])))
    page.locator(".ov-chat").wait_for()
    assert page.locator(".oel-viewer script, .oel-viewer img").count() == 0
    text = page.locator(".ov-chat").inner_text()
    assert "not JSON" in text and "<script>alert(1)</script>" in text and "\u202e" not in text


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_tags_and_comments_are_kept_in_a_log_filtered_by_and_exported(show, theme, tmp_path):
    log = tmp_path / "comments.jsonl"
    view = trajectory_viewer(conversations(), comments=Curation([], log, author="ada"))
    page = show(view, theme)
    page.locator(".ov-row").nth(1).click()
    page.locator(".ov-title", has_text="chat-0").wait_for()
    press(page, "c")
    page.keyboard.type("#polite #short")
    press(page, "Enter")
    until(page, lambda: page.locator(".ov-tag").count() == 2)
    page.locator(".ov-row").first.click()
    page.locator(".ov-title", has_text="chat-9").wait_for()
    press(page, "ArrowRight", "c")
    page.keyboard.type("wrong: 45 days <b>")
    press(page, "Enter")
    page.locator(".ov-exchange[aria-current] .ov-comment").wait_for()
    comment = page.locator(".ov-comment")
    assert "wrong: 45 days <b> ada" in comment.inner_text() and view.at["turn"] == 1
    if PICTURES:
        page.screenshot(path=f"{PICTURES}/notes_{theme}.png")
    page.get_by_label("tag", exact=True).select_option(label="#polite (1)")
    assert page.locator(".ov-row .ov-id").all_inner_texts() == ["chat-0"]
    page.get_by_label("tag", exact=True).select_option(label="with a comment (1)")
    page.locator(".ov-title", has_text="chat-9").wait_for()
    with page.expect_download() as taken:
        page.get_by_role("button", name="export 1").click()
    taken.value.save_as(tmp_path / "some.jsonl")
    (game,) = read_jsonl(tmp_path / "some.jsonl", Trajectory)
    (note,) = game.extra["notes"]
    assert (note["turn"], note["text"], note["author"]) == (1, "wrong: 45 days <b>", "ada")
    page.get_by_role("button", name="remove wrong").click()
    until(page, lambda: comment.count() == 0)
    assert page.locator(".ov-row").count() == 4, "a filter without a note left is none"
    press(page, "u")
    comment.wait_for()
    # it is the editor's log, so the editor shows the same decisions
    assert [op["op"] for op in read_jsonl(log)] == ["add", "add", "add", "reject", "undo"]
    again = show(trajectory_viewer(conversations(), comments=Curation([], log)))
    again.locator(".ov-comment").wait_for()
    assert again.locator(".ov-row").nth(1).inner_text().endswith("#polite · #short")
    assert again.get_by_label("tag or comment").get_attribute("title") == f"saved to {log}"


def test_a_note_that_was_not_written_is_said(show, tmp_path):
    log = tmp_path / "comments.jsonl"
    mine, other = Curation([], log), Curation([], log)
    items = [ExperienceItem("i7", "Be brief.", (Evidence("chat-9", 0),), "m", 1, 0)]
    opened = []
    page = show(
        trajectory_viewer(conversations(), comments=mine, items=items, on_item=opened.append)
    )
    page.locator(".ov-chat").wait_for()
    other.add("#theirs", [Evidence("chat-9", 0)])
    field = page.get_by_label("tag or comment")
    field.fill("#mine")
    press(page, "Enter")
    alert = page.get_by_role("alert")
    alert.get_by_text("changed by somebody else").wait_for()
    assert page.locator(".ov-tag bdi").all_inner_texts() == ["#theirs"], "it is there now"
    assert field.input_value() == "#mine", "until it is saved"
    press(page, "Enter")
    until(page, lambda: page.locator(".ov-tag").count() == 2)
    assert not alert.is_visible() and field.input_value() == ""
    item = page.get_by_role("button", name="Be brief.")
    item.click()
    until(page, lambda: opened == ["i7"])
    page.evaluate("() => { window.alive = model.send; model.send = () => {}; }")
    item.click()
    alert.get_by_text("The kernel does not answer").wait_for(timeout=60_000)
    page.evaluate("() => { model.send = window.alive; }")
    page.get_by_role("button", name="Ask again").click()
    until(page, lambda: not alert.is_visible())
    page.evaluate("() => { model.send = () => {}; }")
    field.fill("late")
    press(page, "Enter")
    alert.get_by_text("The kernel does not answer").wait_for()
    page.evaluate("() => { model.send = window.alive; }")
    press(page, "Escape", "ArrowDown")  # to another game, which arrives
    until(page, lambda: not alert.is_visible())
    assert field.input_value() == "late"
    field.focus()
    press(page, "Enter")
    until(
        page, lambda: field.input_value() == "" and other.reload() is None and len(other.log) == 3
    )


def test_logs_of_notebook_09_are_transcripts_and_say_so(show):
    view = trajectory_viewer(read_chats(ROOT / "data/logs/lake_chats.jsonl"))
    page = show(view)
    page.locator(".ov-chat").wait_for()
    assert page.locator(".ov-by-user").first.inner_text().startswith("user\nBoard:")
    assert page.locator(".ov-by-after").count() == 1

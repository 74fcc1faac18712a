"""The experience editor in Chromium: its front end on a plain page, real Python behind it."""

import json

import pytest

from oelkit.curation import Curation, replay
from oelkit.prompts import act_messages, load_prompt_set, with_experience
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

from .pages import PICTURES, SAMPLE, press, until

Axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe

TEXTS = [
    "H is a hole.",
    "G is the goal.",
    "Avoid H or G, they block your path.",
    "h is a HOLE",
    "Move right first.",
]


@pytest.fixture
def curation(tmp_path):
    write_jsonl(
        tmp_path / "items.jsonl",
        [
            ExperienceItem(f"i{n}", text, (Evidence("t0", n),), "m", 1, n % 2)
            for n, text in enumerate(TEXTS)
        ],
    )
    return Curation.open(tmp_path / "items.jsonl", tmp_path / "log.jsonl")


def current(page):
    return page.locator("[aria-current] .oel-text").inner_text()


def test_an_item_shown_before_the_page_is_there_is_where_it_opens(show, curation):
    editor = experience_editor(curation)
    editor.show("i4")
    page = show(editor)
    until(page, lambda: page.locator("[aria-current]").count() and current(page) == TEXTS[4])


def test_keys_are_operations_in_the_log_on_disk(show, curation):
    page = show(experience_editor(curation))
    page.locator(".oel-row").first.click()
    press(page, "a", "x", "s")  # each goes on to the next
    until(page, lambda: len(curation.log) == 3 and current(page) == TEXTS[4])
    press(page, "u", "u", "U")
    until(page, lambda: len(curation.log) == 6)
    log = read_jsonl(curation.log_path)
    assert [op["op"] for op in log] == ["accept", "reject", "skip", "undo", "undo", "redo"]
    assert log[0]["ids"] == ["i0", "i3"] and log[0]["every_draw"]  # all that is said in these words
    assert [i.status for i in curation.items[:3]] == ["accepted", "rejected", "pending"]
    until(page, lambda: "2 of 4 reviewed, 1 kept" in page.locator(".oel-progress").inner_text())


def rows(page):
    return page.locator(".oel-row .oel-text").all_inner_texts()


def button(page, name):
    return page.get_by_role("button", name=name, exact=False).first


def show_all(page):
    page.get_by_role("button", name="All").first.click()


@pytest.mark.parametrize("kind", ["All", "Pending"])
def test_each_decision_goes_on_to_the_next_in_every_filter(show, curation, kind):
    page = show(experience_editor(curation))
    button(page, kind).click()
    for n in range(3):
        before = current(page)
        press(page, "s")
        until(page, lambda: len(curation.log) == n + 1 and current(page) != before)
    assert current(page) == TEXTS[4] and curation.item("i4").status == "pending"


def test_it_opens_on_what_is_pending_and_what_is_done_is_one_click_away(show, curation):
    curation.accept(["i0", "i3"])
    page = show(experience_editor(curation))
    until(page, lambda: rows(page) == [TEXTS[1], TEXTS[2], TEXTS[4]])
    curation.reject(["i1", "i2", "i4"])
    done = show(experience_editor(curation))
    until(done, lambda: len(rows(done)) == 4)  # nothing is left to decide: all are shown


def test_what_was_said_in_the_same_words_is_one_row_by_support(show, tmp_path):
    said = [(d, "Boxes move.") for d in range(2)] + [(d, "h is a hole") for d in range(7)]
    said += [(9, "H is the goal."), (8, "A box moves.")]
    items = [
        ExperienceItem(f"i{n}", text, (Evidence(f"g{n}", 0),), "m", 1, d)
        for n, (d, text) in enumerate(said)
    ]
    curation = Curation(items, tmp_path / "log.jsonl")
    page = show(experience_editor(curation))
    until(page, lambda: len(rows(page)) == 4)
    first = page.locator(".oel-row").first.inner_text()
    assert (
        "written by 7 of 10 draws" in first
        and "7 turns of evidence" in first
        and "7 items" in first
    )
    assert "contradicts “H is the goal.”" in first
    page.locator(".oel-row").first.click()
    until(page, lambda: page.locator(".oel-side details").count() == 7)  # all of its evidence
    page.get_by_role("button", name="H is the goal. 1 draw").click()
    assert current(page) == "H is the goal."
    button(page, "Contradictions").click()
    assert rows(page) == ["h is a hole", "H is the goal."]
    button(page, "Near-duplicates").click()
    assert rows(page) == ["Boxes move.", "A box moves."]
    press(page, "l", "m", "Control+Enter")
    until(page, lambda: len(curation.items) == 9)
    assert curation.items[0].draws == (0, 1, 8)


def test_edit_in_place_cancel_split_and_add(show, curation):
    page = show(experience_editor(curation))
    page.locator(".oel-row").first.click()
    press(page, "e", "x", "Escape")
    assert current(page) == TEXTS[0] and curation.log == []
    press(page, "e")
    page.keyboard.type(" Mind it.")
    page.locator(".oel-row").last.dblclick()
    button(page, "Edit").click()
    assert page.locator("textarea").input_value() == f"{TEXTS[0]} Mind it.", "one form at a time"
    press(page, "Control+Enter")
    until(page, lambda: len(curation.log) == 1)
    assert {curation.item(id).text for id in ("i0", "i3")} == {f"{TEXTS[0]} Mind it."}
    assert curation.kept()[0].text == f"{TEXTS[0]} Mind it.", "what a person writes is trained"
    page.locator("[aria-current] ins").first.wait_for()  # word by word against the original
    show_all(page)
    page.locator(".oel-row").nth(2).click()
    press(page, "d")
    page.locator("textarea").fill("Avoid H.\nAvoid G.")
    press(page, "Control+Shift+Enter")
    until(page, lambda: len(curation.items) == 6)
    press(page, "i")
    page.keyboard.type("Think first.")
    press(page, "Control+Enter")
    until(page, lambda: len(curation.items) == 7)
    assert [i.text for i in curation.items][2:4] == ["Avoid H.", "Avoid G."]
    until(page, lambda: current(page) == "Think first.")
    press(page, "u")  # the keys work on
    until(page, lambda: len(curation.items) == 6)
    until(page, lambda: current(page) != "Think first.")
    page.locator(".oel-row").first.click()
    press(page, "r")
    until(page, lambda: curation.item("i0").text == TEXTS[0])
    until(page, lambda: current(page) == TEXTS[0])
    press(page, "e")
    page.keyboard.type(" Really.")
    curation.merge(["i0", "i3", "i1"])  # meanwhile, in another cell
    page.evaluate("() => { model.send({ op: 'refresh' }); }")
    page.get_by_label("Text of the new item").wait_for()
    press(page, "Control+Enter")
    until(page, lambda: curation.items[-1].text == f"{TEXTS[0]} Really.")


def test_selection_merge_and_bulk(show, curation):
    page = show(experience_editor(curation))
    page.locator(".oel-row").nth(1).click()
    press(page, " ", "j", " ")
    page.locator(".oel-menu summary").click()
    press(page, "Escape")
    assert not page.locator(".oel-pop").is_visible()
    assert page.locator(".oel-row input:checked").count() == 2
    press(page, "m")  # opens their text
    assert page.locator("textarea").input_value() == f"{TEXTS[1]}\n{TEXTS[2]}"
    page.locator("textarea").fill("G is the goal: avoid H.")
    press(page, "Control+Enter")
    until(page, lambda: len(curation.items) == 4)
    assert curation.item("merge-1").parents == ("i1", "i2")
    assert curation.kept()[0].text == "G is the goal: avoid H."
    show_all(page)
    until(page, lambda: page.get_by_text("Merged from").count() == 1)
    page.get_by_label("Select all shown").click()
    press(page, "a")
    until(page, lambda: [i.status for i in curation.items] == ["accepted"] * 4)
    assert curation.log[-1].op == "accept" and len(curation.log[-1].ids) == 4  # one step of undo
    until(page, lambda: page.locator(".oel-row input:checked").count() == 0)
    show_all(page)
    page.locator(".oel-row").nth(1).click()
    press(page, " ", "j", "x")
    until(page, lambda: curation.log[-1].op == "reject")
    (id,) = curation.log[-1].ids
    said = f"Rejected “{curation.item(id).text}”"
    until(page, lambda: page.locator(".oel-after").inner_text() == said)


def test_the_reason_follows_the_decision_and_the_name_is_asked_once(show, curation):
    page = show(experience_editor(curation))
    page.locator(".oel-row").first.click()
    press(page, "x", "w")
    page.keyboard.type("it was a slip")
    press(page, "Enter", "a")  # the keys work on
    until(page, lambda: [op.op for op in curation.log] == ["reject", "explain", "accept"])
    assert curation.history("i0")[0].reason == "it was a slip"
    page.get_by_placeholder("your name, for the log").fill("Ann")
    page.keyboard.press("Enter")
    press(page, "s")
    until(page, lambda: curation.log[-1].author == "Ann" and len(curation.log) == 4)
    assert not page.get_by_placeholder("your name, for the log").is_visible()
    foot = page.locator(".oel-foot").inner_text()
    assert f"saved to {curation.log_path}: 4 operations" in foot and "as Ann" in foot
    assert page.get_by_placeholder("why?").is_visible()
    press(
        page, "u", "w"
    )  # a reason would be saved with a different decision than the one beside it
    until(page, lambda: page.locator(".oel-after").inner_text() == "Undone")
    assert not page.get_by_placeholder("why?").is_visible()


def test_reorder_filter_and_search(show, curation):
    page = show(experience_editor(curation))
    page.locator(".oel-row").first.click()
    page.get_by_label("Sort").select_option("as the teacher reads")
    page.locator(".oel-row").first.click()
    press(page, "Alt+ArrowDown")
    until(
        page,
        lambda: (
            [i.id for i in curation.items][:3] == ["i1", "i0", "i3"] and rows(page)[1] == TEXTS[0]
        ),
    )
    press(page, "Alt+ArrowUp")
    until(page, lambda: rows(page)[0] == TEXTS[0])
    press(page, "/")
    page.keyboard.type("he")
    until(page, lambda: page.locator("mark").count() == 2)
    assert current(page) == TEXTS[1], "the first hit, before Enter"
    press(page, "Enter", "n")
    assert current(page) == TEXTS[2]
    press(page, "N")
    assert current(page) == TEXTS[1]
    button(page, "2 hits").click()
    assert rows(page) == [TEXTS[1], TEXTS[2]]
    page.locator(".oel-row").first.click()
    press(page, "Escape")
    assert len(rows(page)) == 4
    page.get_by_label("Filter by source").select_option("draw 1")
    assert rows(page) == [TEXTS[0], TEXTS[1]]


def test_a_kernel_that_is_gone_says_so_and_takes_no_decision(show, curation):
    page = show(experience_editor(curation))
    page.locator(".oel-row").first.click()
    press(page, "a")
    until(page, lambda: len(curation.log) == 1)
    page.evaluate("() => { window.alive = model.send; model.send = () => {}; }")
    press(page, "e", "!", "Control+Enter")
    page.get_by_role("alert").get_by_text("The kernel does not answer").wait_for()
    assert page.locator(".oel-strip").inner_text() == "", "nothing is announced"
    assert str(curation.log_path) in page.get_by_role("alert").inner_text()
    assert f"Perhaps not saved: {TEXTS[1]}!" in page.get_by_role("alert").inner_text()
    page.evaluate("() => { model.send = window.alive; }")
    page.locator(".oel-row").nth(1).click()
    press(
        page, "x", "e", "?", "Control+Enter"
    )  # the kernel might be back, but the page does not know
    assert len(curation.log) == 1 and page.locator("textarea").input_value() == f"{TEXTS[2]}?"
    button(page, "Ask again").click()
    until(page, lambda: not page.get_by_role("alert").is_visible())
    press(page, "Control+Enter")
    until(page, lambda: len(curation.log) == 2)
    assert curation.item("i2").text == f"{TEXTS[2]}?"


def test_the_divider_moves_and_full_screen_fills(show, curation):
    page = show(experience_editor(curation))
    width = lambda: page.locator(".oel-left").bounding_box()["width"]  # noqa: E731
    before, bar = width(), page.locator(".oel-divider")
    box = bar.bounding_box()
    page.mouse.move(box["x"] + 3, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] - 200, box["y"] + 50, steps=4)
    page.mouse.up()
    assert before - 220 < width() < before - 180
    bar.focus()
    press(page, "ArrowRight")
    assert width() > before - 190
    page.locator(".oel-row").first.click()
    press(page, "f")
    until(page, lambda: page.locator(".oel-editor").bounding_box()["height"] == 800)
    press(page, "f")
    until(page, lambda: page.locator(".oel-editor").bounding_box()["height"] == 640)
    page.set_viewport_size({"width": 420, "height": 850})
    last = page.get_by_role("button", name="Help: keys").bounding_box()
    assert last["x"] + last["width"] < 400, "no button is out of sight"


@pytest.mark.parametrize("format", ["JSONL", "CSV"])
def test_export_and_import(show, curation, format):
    page = show(experience_editor(curation))
    page.locator(".oel-row").first.click()
    press(page, "a")
    until(page, lambda: len(curation.log) == 1)
    page.locator(".oel-menu summary").click()
    with page.expect_download() as taken:
        page.get_by_role("button", name=f"Export {format}").click()
    path = curation.log_path.with_name(taken.value.suggested_filename)
    taken.value.save_as(path)
    path.write_text(path.read_text().replace("i1,pending", "i1,rejected"))
    path.write_text(
        path.read_text().replace('"i1", "status": "pending"', '"i1", "status": "rejected"')
    )
    page.get_by_label("File to import").set_input_files(path)
    until(page, lambda: curation.item("i1").status == "rejected")
    page.get_by_text("Imported 1 operation").wait_for()


def test_words_are_not_broken_where_jupyter_breaks_them(show):
    text = "Experience everywhere extraordinarily meaningful consideration " * 8
    turn = Turn(text, [], text, None, text, 1, 1, False)
    game = Trajectory("g", "e", None, "m", 1, (turn,), Outcome.FAILURE, "")
    item = ExperienceItem("i", text, (Evidence("g", 0),), "m", 1, 0)
    page = show(experience_editor(Curation([item]), games=[game], prompt=lambda notes: text))
    page.add_style_tag(content="pre { word-break: break-all; overflow-wrap: anywhere; }")
    page.locator(".oel-row").first.click()
    page.locator(".oel-side details pre").first.wait_for()
    # a word on two lines has two rectangles
    assert (
        page.evaluate("""() => {
      const broken = [];
      for (const pre of document.querySelectorAll(".oel-side pre")) {
        const walker = document.createTreeWalker(pre, NodeFilter.SHOW_TEXT);
        for (let node; (node = walker.nextNode());) for (const found of node.data.matchAll(/\\S+/g)) {
          const range = document.createRange();
          range.setStart(node, found.index);
          range.setEnd(node, found.index + found[0].length);
          const tops = new Set([...range.getClientRects()].map((box) => Math.round(box.top)));
          if (tops.size > 1) broken.push(found[0]);
        }
      }
      return broken;
    }""")
        == []
    )


def test_evidence_help_and_every_key_is_on_its_button(show, curation):
    page = show(experience_editor(curation))
    page.locator(".oel-row").first.click()
    press(page, "g")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Evidence"
    press(page, "g")
    assert page.evaluate("document.activeElement.getAttribute('aria-current')") == "true"
    page.locator(".oel-menu summary").click()
    on_buttons = set(page.locator(".oel-bar kbd").all_inner_texts())
    page.locator(".oel-row").first.click()
    assert on_buttons == set("axsemuUidrlgf") | {"Space", "Alt+↑", "Alt+↓"}
    press(page, "?")
    shown = set(page.get_by_role("dialog").locator("kbd").all_inner_texts())
    assert shown == on_buttons | {"j ↓", "k ↑", "/", "n", "N", "?", "Esc", "w"}
    press(page, "Escape")
    assert not page.get_by_role("dialog").is_visible()
    page.get_by_role("button", name="Help: keys").click()
    columns = {s.bounding_box()["x"] for s in page.get_by_role("dialog").locator("section").all()}
    assert len(columns) == 3, "of which the last has two parts"
    page.get_by_role("button", name="Close").click()
    assert not page.get_by_role("dialog").is_visible()


def test_the_page_around_hears_no_key_but_ctrl_s(show, curation):
    page = show(experience_editor(curation))
    page.evaluate(
        "() => { window.heard = []; document.addEventListener('keydown', (e) => heard.push(e.key)); }"
    )
    page.locator(".oel-row").first.click()
    press(
        page,
        *"bdhikz",
        "a",
        "x",
        "Enter",
        "Shift+Enter",
        "e",
        "q",
        "Control+s",
        "Escape",
        "/",
        "b",
        "Escape",
    )
    assert page.evaluate("heard") == ["s"]


def test_the_second_editor_is_told(show, curation):
    page = show(experience_editor(curation))
    page.locator(".oel-row").first.click()
    Curation(curation._source, curation.log_path, author="ann").reject("i0", "mine")
    press(page, "e", "!", "Control+Enter")
    page.get_by_role("alert").get_by_text("changed by somebody else").wait_for()
    assert len(read_jsonl(curation.log_path)) == 1
    assert page.locator(".oel-strip").inner_text() == "", "nothing is announced"
    assert page.locator("textarea").input_value() == f"{TEXTS[0]}!", "it can be saved again"
    button(page, "Read the log again").click()
    until(page, lambda: curation.item("i0").status == "rejected")
    press(page, "Control+Enter")
    until(page, lambda: len(read_jsonl(curation.log_path)) == 2)
    assert not page.get_by_role("alert").is_visible()


def test_over_budget_says_how_many_fit_and_shows_the_line(show, curation):
    curation.accept([i.id for i in curation.items])
    words = lambda text: len(text.split())  # noqa: E731
    prompt = "Start\n" * 60 + "{}\nEnd"
    page = show(
        experience_editor(curation, tokenizer=words, budget_tokens=17, prompt=prompt.format)
    )
    page.get_by_label("Sort").select_option("as the teacher reads")
    page.locator(".oel-row").first.click()
    fits, cut = curation.within_budget(17, words, draw=0)
    assert (len(fits), len(cut)) == (2, 2)
    said = page.locator(".oel-progress").inner_text()
    assert "4 kept, 2 fit, 2 cut" in said
    shown = page.locator(".oel-side pre").last
    gone = [line.strip() for line in shown.locator(".oel-gone").all_inner_texts()]
    kept = [line.strip() for line in shown.locator(".oel-item").all_inner_texts()]
    assert gone == [i.text for i in cut] != []
    assert "\n".join(kept) == curation.experience(17, words, draw=0)
    line, pane = page.locator(".oel-limit").bounding_box(), shown.locator("..").bounding_box()
    assert pane["y"] < line["y"] < pane["y"] + pane["height"]  # below 60 lines, and in sight
    assert page.locator(".oel-edge .oel-text").all_inner_texts() == [fits[0].text]
    assert page.locator(".oel-cut").count() == len(cut)
    page.get_by_label("Budget", exact=True).fill("200")
    page.keyboard.press("Enter")
    until(page, lambda: "fit" not in page.locator(".oel-progress").inner_text())
    assert page.locator(".oel-cut").count() == 0


EVIL = [
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(2)">',
    "</table></div></main>stray",
    "\x1b[31mred\x1b[0m",
    "\u202eright to left\u202c \u200fmark",
    "x" * 100_000,
    "👩‍👩‍👧‍👦 🏳️‍🌈 z\u0315\u0321\u0489" * 20,
    "half \ud83d",
    "{{7*7}} ${1}",
    "javascript:alert(3)",
]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_of_models_neither_runs_nor_breaks_the_layout(show, theme):
    items = [
        ExperienceItem(f"i{n} {text[:30]}", text, (Evidence("g", n),), text[:40], 1, 0)
        for n, text in enumerate(EVIL)
    ]
    turns = tuple(Turn(text, [], text, None, text, 1, 1, False) for text in EVIL)
    game = Trajectory("g", "e", None, "m", 1, turns, Outcome.FAILURE, "")
    view = experience_editor(
        Curation(items), games=[game], prompt=lambda notes: f"{EVIL[0]}\n{notes}\n{EVIL[1]}"
    )
    page = show(view, theme)
    page.get_by_label("Select all shown").click()
    press(page, "a")
    until(page, lambda: len(page.locator(".oel-accepted").all()) > 0 or not rows(page))
    show_all(page)
    page.get_by_label("Sort").select_option("as the teacher reads")
    page.locator(".oel-row").first.click()
    for _ in EVIL:
        page.wait_for_timeout(150)
        assert page.locator("[aria-current] .oel-text").bounding_box()["height"] <= 191
        press(page, "j")
    page.keyboard.press("e")
    press(page, "Escape")
    assert page.locator(".oel script, .oel img, .oel table").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert (
        page.evaluate("document.querySelector('.oel-editor').getBoundingClientRect().height") == 640
    )
    assert (
        "␛[31mred" in rows(page)[3] or "␛[31mred" in page.locator(".oel-side pre").last.inner_text()
    )


def test_five_hundred_items_stay_fluid(show):
    many = [
        ExperienceItem(f"i{n}", f"note {n}: " + f"what number {n % 37} means " * 4, (), "m", 1, 0)
        for n in range(500)
    ]
    page = show(experience_editor(Curation(many)))
    page.locator(".oel-row").first.click()
    assert page.locator(".oel-row").count() < 40  # the rest is not in the page
    worst = page.evaluate("""async () => {
      const list = document.querySelector(".oel-list"), frame = () => new Promise((go) => requestAnimationFrame(go));
      let worst = 0, last = await frame();
      for (let y = 0; y < 29000; y += 700) {
        list.scrollTop = y;
        const now = await frame();
        [worst, last] = [Math.max(worst, now - last), now];
      }
      return worst;
    }""")
    # 17 ms on a quiet machine; printed, not asserted, as a busy machine must not fail
    print(f"worst frame of scrolling through 500 items: {worst:.0f} ms")
    assert page.locator(".oel-row").count() < 40
    press(page, *["j"] * 40)
    assert current(page).startswith("note 40:")


@pytest.fixture
def sample():
    items = read_jsonl(SAMPLE / "items.jsonl", ExperienceItem)
    games = read_jsonl(SAMPLE / "trajectories.jsonl", Trajectory)
    curation = replay(items, SAMPLE / "curation.jsonl")
    first = curation.items[0].id
    curation.edit(
        first, "H is always a hole: walk around it, even where that is the longer way.", "clearer"
    )
    curation.restore([i.id for i in curation.items[7:10]])
    prompts = load_prompt_set("paper")

    def prompt(notes):
        return with_experience(
            prompts, act_messages(prompts, games[0].turns[0].observation), notes
        )[-1]["content"]

    return experience_editor(
        curation,
        tokenizer=lambda text: len(text) // 4,
        budget_tokens=60,
        games=games,
        prompt=prompt,
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_accessible_and_whole_in_both_themes_and_widths(show, sample, theme, tmp_path):
    for width in (900, 1600):
        page = show(sample, theme, width=width, height=680)
        page.locator(".oel-row").nth(1).click()
        page.keyboard.press("k")
        page.locator(".oel-side details").first.wait_for()
        page.screenshot(
            path=(PICTURES and f"{PICTURES}/editor_{theme}_{width}.png") or tmp_path / "page.png"
        )
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        seen, read = (side.bounding_box() for side in page.locator(".oel-side").all())
        assert read["height"] > seen["height"] / 2, "the teacher's text has its share in a column"
        board = page.locator(".oel-side svg").first.bounding_box()
        assert board["y"] + board["height"] < seen["y"] + seen["height"], "the whole board is seen"
        whole = "n => n.scrollWidth <= n.clientWidth && n.scrollHeight <= n.clientHeight + 1"
        assert all(n.evaluate(whole) for n in page.locator(".oel-meta, .oel-after").all())
        for keys in ((), ("?",), ("Escape", "e")):
            press(page, *keys)
            found = Axe().run(page)
            serious = [
                v for v in found.response["violations"] if v["impact"] in ("serious", "critical")
            ]
            assert not serious, json.dumps(
                [(v["id"], [n["html"] for n in v["nodes"]]) for v in serious], indent=1
            )
        page.close()

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
    editor.show("i3")
    page = show(editor)
    until(page, lambda: page.locator("[aria-current]").count() and current(page) == TEXTS[3])


def test_keys_are_operations_in_the_log_on_disk(show, curation):
    page = show(experience_editor(curation))
    page.locator(".oel-row").first.click()
    press(page, "a", "j", "x", "ArrowDown", "s", "k")
    assert current(page) == TEXTS[1]
    press(page, "u", "u", "U")
    until(page, lambda: len(curation.log) == 6)
    log = read_jsonl(curation.log_path)
    assert [op["op"] for op in log] == ["accept", "reject", "skip", "undo", "undo", "redo"]
    assert [i.status for i in curation.items[:3]] == ["accepted", "rejected", "pending"]
    until(page, lambda: "2 of 5 reviewed, 1 kept" in page.locator(".oel-progress").inner_text())


def rows(page):
    return page.locator(".oel-row .oel-text").all_inner_texts()


def button(page, name):
    return page.get_by_role("button", name=name, exact=False).first


def test_edit_in_place_cancel_split_and_add(show, curation):
    page = show(experience_editor(curation))
    page.locator(".oel-row").first.click()
    press(page, "e", "x", "Escape")
    assert current(page) == TEXTS[0] and curation.log == []
    press(page, "e")
    page.keyboard.type(" Mind it.")
    press(page, "Control+Enter")
    until(page, lambda: len(curation.log) == 1)
    assert curation.item("i0").text == f"{TEXTS[0]} Mind it."
    page.locator("[aria-current] ins").first.wait_for()  # word by word against the original
    page.locator(".oel-row").nth(2).dblclick()
    page.locator("textarea").fill("Avoid H.\nAvoid G.")
    button(page, "Split").click()
    until(page, lambda: len(curation.items) == 6)
    button(page, "Add item").click()
    page.keyboard.type("Think first.")
    press(page, "Control+Enter")
    until(page, lambda: len(curation.items) == 7)
    assert [i.text for i in curation.items][2:4] == ["Avoid H.", "Avoid G."]
    until(page, lambda: current(page) == "Think first.")
    press(page, "u")  # the keys work on
    until(page, lambda: len(curation.items) == 6)


def test_selection_merge_near_duplicates_and_bulk(show, curation):
    page = show(experience_editor(curation))
    page.locator(".oel-row").nth(3).click()
    button(page, "Select alike").click()
    assert page.locator(".oel-row input:checked").count() == 2
    press(page, "m")
    until(page, lambda: len(curation.items) == 4)
    assert curation.items[0].parents == ("i0", "i3") and curation.items[0].text == TEXTS[0]
    until(page, lambda: page.get_by_text("Merged from").count() == 1)
    page.get_by_label("Select all that are shown").click()
    press(page, "a")
    until(page, lambda: [i.status for i in curation.items] == ["accepted"] * 4)
    assert curation.log[-1].op == "accept" and len(curation.log[-1].ids) == 4  # one step of undo
    until(page, lambda: page.locator(".oel-row input:checked").count() == 0)
    page.get_by_placeholder("Reason (optional)").fill("it was a slip")
    page.locator(".oel-row").nth(1).click()
    press(page, "x")
    until(
        page, lambda: curation.log[-1].reason == "it was a slip" and curation.log[-1].op == "reject"
    )


def test_reorder_filter_and_search(show, curation):
    page = show(experience_editor(curation))
    page.locator(".oel-row").first.click()
    press(page, "Alt+ArrowDown")
    until(
        page,
        lambda: [i.id for i in curation.items][:2] == ["i1", "i0"] and rows(page)[1] == TEXTS[0],
    )
    press(page, "Alt+ArrowUp")
    until(page, lambda: rows(page)[0] == TEXTS[0])
    press(page, "/")
    page.keyboard.type("hole")
    until(page, lambda: page.locator("mark").count() == 2)
    press(page, "Enter", "n")
    assert current(page) == TEXTS[3]
    press(page, "N")
    assert current(page) == TEXTS[0]
    button(page, "2 hits").click()
    assert rows(page) == [TEXTS[0], TEXTS[3]]
    page.locator(".oel-row").first.click()
    press(page, "Escape")
    assert len(rows(page)) == 5
    page.get_by_label("Filter by source").select_option("draw 1")
    assert rows(page) == [TEXTS[1], TEXTS[3]]
    page.get_by_label("Filter by source").select_option("")
    button(page, "Pending").click()
    page.locator(".oel-row").first.click()
    for _ in range(4):  # each decision brings up the next
        n = len(rows(page))
        press(page, "s")
        until(page, lambda: len(rows(page)) == n - 1)
    assert {i.status for i in curation.items[:4]} == {"skipped"} and current(page) == TEXTS[4]


def test_evidence_help_and_every_key_is_on_its_button(show, curation):
    page = show(experience_editor(curation))
    page.locator(".oel-row").first.click()
    press(page, "g")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Evidence"
    press(page, "g")
    assert page.evaluate("document.activeElement.getAttribute('aria-current')") == "true"
    on_buttons = set(page.locator(".oel-bar kbd").all_inner_texts())
    assert on_buttons == {"a", "x", "s", "e", "Space", "m", "Alt+↑", "Alt+↓", "u", "U", "g"}
    press(page, "?")
    shown = set(page.get_by_role("dialog").locator("kbd").all_inner_texts())
    assert shown == on_buttons | {"j ↓", "k ↑", "/", "n", "N", "?", "Esc"}
    press(page, "Escape")
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
    press(page, "a")
    page.get_by_role("alert").get_by_text("changed by somebody else").wait_for()
    assert len(read_jsonl(curation.log_path)) == 1
    button(page, "Read the log again").click()
    page.locator(".oel-row.oel-rejected").wait_for()
    press(page, "a")
    until(
        page,
        lambda: (
            curation.item("i0").status == "accepted" and len(read_jsonl(curation.log_path)) == 2
        ),
    )
    assert not page.get_by_role("alert").is_visible()


def test_budget_line_and_preview(show, curation):
    curation.accept([i.id for i in curation.items])
    words = lambda text: len(text.split())  # noqa: E731
    page = show(
        experience_editor(
            curation, tokenizer=words, budget_tokens=17, prompt="Start\n{}\nEnd".format
        )
    )
    page.locator(".oel-row").first.click()
    assert "17 of 17 tokens" in page.locator(".oel-progress").inner_text()
    fits, cut = curation.within_budget(17, words, draw=0)
    prompt = page.locator(".oel-side pre").last
    assert (
        [line.strip() for line in prompt.locator(".oel-gone").all_inner_texts()]
        == [i.text for i in cut]
        != []
    )
    kept = [line.strip() for line in prompt.locator(".oel-item").all_inner_texts()]
    assert "\n".join(kept) == curation.experience(17, words, draw=0) and len(kept) == len(fits)
    assert prompt.inner_text().startswith("Start") and prompt.inner_text().rstrip().endswith("End")
    assert page.get_by_text("budget of 17 tokens").count() == 1 and page.locator(
        ".oel-cut"
    ).count() == len(cut)
    assert page.locator(".oel-edge .oel-text").all_inner_texts() == [
        fits[0].text
    ]  # whatever lies in between
    page.get_by_label("Draw", exact=True).select_option("1")
    until(page, lambda: TEXTS[1] in prompt.inner_text())


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
    page.get_by_label("Select all that are shown").click()
    press(page, "a")
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
    # 17 ms where nothing else runs; shown, not judged: a busy machine must not fail the build
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

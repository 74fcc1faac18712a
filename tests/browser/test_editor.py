"""The experience editor in Chromium: its front end on a plain page, the real Python side behind it."""
import pytest

from oelkit.curate import Curation
from oelkit.records import Evidence, ExperienceItem, read_jsonl, write_jsonl
from oelkit.widgets import experience_editor

TEXTS = ["H is a hole.", "G is the goal.", "Avoid H or G, they block your path.", "h is a HOLE", "Move right first."]


@pytest.fixture
def curation(tmp_path):
    write_jsonl(tmp_path / "items.jsonl", [ExperienceItem(f"i{n}", text, (Evidence("t0", n),), "m", 1, n % 2)
                                           for n, text in enumerate(TEXTS)])
    return Curation.open(tmp_path / "items.jsonl", tmp_path / "log.jsonl")


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def until(page, true):
    """Let the page and the Python side work until it is true."""
    for _ in range(200):
        if true():
            return
        page.wait_for_timeout(50)
    raise AssertionError("did not become true in 10 s")


def current(page):
    return page.locator("[aria-current] .oel-text").inner_text()


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

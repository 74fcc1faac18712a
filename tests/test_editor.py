"""The experience editor, driven as a person would: every click lands in the log, and text of models stays text."""
import ipywidgets
import pytest

from oelkit.curate import Curation
from oelkit.records import ExperienceItem, read_jsonl, write_jsonl
from oelkit.widgets import experience_editor

EVIL = "<script>alert(1)</script>"


def find(widget, kind):
    found = [widget] if isinstance(widget, kind) else []
    return found + [w for child in getattr(widget, "children", ()) for w in find(child, kind)]


def shown(widget):
    return " ".join(w.value for w in find(widget, ipywidgets.HTML))


@pytest.fixture
def files(tmp_path):
    write_jsonl(tmp_path / "items.jsonl", [ExperienceItem(f"i{n}", text, (), "m", 1, 0) for n, text in
                                           enumerate(("H is a hole.", EVIL, "G is the goal."))])
    return tmp_path / "items.jsonl", tmp_path / "curation.jsonl"


class Table:
    def __init__(self, curation, **options):
        self.view = experience_editor(curation, **options)
        self.undo, self.redo = [b for b in find(self.view, ipywidgets.Button) if b.description in ("undo", "redo")]

    def row(self, n):
        return self.view.children[0].children[n].children  # status, accept, reject, text


def test_every_click_is_an_operation_and_the_view_follows(files):
    curation = Curation.open(*files)
    table = Table(curation)
    assert table.undo.disabled and "0 of 3 items kept" in shown(table.view)
    table.row(0)[1].click()
    table.row(1)[2].click()
    table.row(2)[3].value = "G is where to go."
    table.row(2)[1].click()
    assert [op["op"] for op in read_jsonl(files[1])] == ["accept", "reject", "edit", "accept"]
    assert [i.status for i in curation.items] == ["accepted", "rejected", "accepted"]
    assert table.row(0)[1].button_style == "success" and table.row(1)[2].button_style == "danger"
    assert "2 of 3 items kept, 15 words" in shown(table.view)
    assert "- EXPERIENCE ITEM: G is where to go." in shown(table.view)
    assert "<script" not in shown(table.view)
    table.undo.click()
    table.undo.click()
    assert table.row(2)[3].value == "G is the goal." and "1 of 3" in shown(table.view)
    assert len(curation.log) == 6 and not table.redo.disabled  # redrawing is no edit
    table.redo.click()
    assert curation.item("i2").text == table.row(2)[3].value == "G is where to go."
    assert Table(Curation.open(*files)).row(2)[3].value == "G is where to go."


def test_view_shows_items_that_come_and_go(files):
    curation = Curation.open(*files)
    table = Table(curation, tokenizer=len)
    curation.merge(["i0", "i2"], "H hole, G goal.")
    table.row(0)[1].click()  # still i0, which is merged by now: refused in words, and the view is drawn anew
    assert "restore it first" in shown(table.view)
    assert [table.row(n)[3].value for n in range(2)] == ["H hole, G goal.", EVIL]
    table.row(0)[1].click()
    assert "restore it first" not in shown(table.view)
    assert f"1 of 2 items kept, {len(curation.experience())} tokens" in shown(table.view)


def test_refusals_are_shown_and_change_nothing(files):
    curation = Curation.open(*files)
    table = Table(curation)
    table.row(0)[3].value = "  "
    assert "text is empty" in shown(table.view) and table.row(0)[3].value == "H is a hole."
    Curation.open(*files).accept("i1")  # somebody else, in another window
    table.row(0)[1].click()
    assert "changed by somebody else" in shown(table.view) and curation.item("i0").status == "pending"


def test_saved_notebooks_keep_html(files):
    bundle = experience_editor(Curation.open(*files))._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "&lt;script" in bundle["text/html"] and "<script" not in bundle["text/html"]

"""A curation as a table: exported, changed in a spreadsheet, imported again."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oelkit.curation import Curation
from oelkit.exchange import bring_in, export
from oelkit.records import Evidence, ExperienceItem

TEXTS = ["H is a hole.", "=HYPERLINK(1)", "'quoted'", "+1 wins", '-1, "x"', "@home", "plain"]


def curation(texts=TEXTS):
    seen = (Evidence("game", 2),)
    return Curation(ExperienceItem(f"i{n}", t, seen, "m", 1, 0) for n, t in enumerate(texts))


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_what_is_brought_back_unchanged_does_nothing(format):
    texts = [*TEXTS, "half \ud83d"]  # of a broken reply, which no file can hold
    c = curation(texts)
    c.accept("i0", "seen")
    c.reject(["i1", "i7"])
    table = export(c, format).encode().decode()
    assert bring_in(c, table) == 0 and len(c.log) == 2
    again = curation(texts)
    assert bring_in(again, f"\ufeff{table}") == 2  # the same decisions elsewhere, from Excel
    assert [i.status for i in again.items] == [i.status for i in c.items]
    assert [i.text for i in again.items] == texts
    assert [op.reason for op in again.log] == ["seen", "imported"]


def test_no_cell_is_a_formula_and_a_text_that_looks_like_one_comes_back():
    table = list(csv.reader(io.StringIO(export(curation(), "csv"))))
    assert not [cell for row in table for cell in row if cell.startswith(("=", "+", "-", "@"))]
    assert "game, turn 3" in table[1]
    c = curation(["＝1+1 is one in Japan"])
    c.accept("i0", "\n=1+1")
    cells = list(csv.reader(io.StringIO(export(c, "csv"))))[1]
    assert cells[2] == "'＝1+1 is one in Japan" and cells[-1] == "'\n=1+1"
    assert bring_in(c, export(c, "csv")) == 0


SAID = st.text(min_size=1, max_size=20) | st.text(";\t=-'x", min_size=1, max_size=9)


@given(st.lists(SAID, min_size=1, max_size=5))
@settings(deadline=None, max_examples=60)
def test_any_text_comes_back_as_it_was(texts):
    c = curation([f"{text} x" for text in texts])
    for format in ("jsonl", "csv"):
        assert bring_in(c, export(c, format)) == 0


@pytest.mark.parametrize("by", [",", ";", "\t"])
def test_a_table_without_a_status_keeps_every_decision(by):
    c = curation(TEXTS[:3])
    c.accept(["i0", "i1"])
    c.reject("i2")
    rows = [("id", "text"), *((item.id, item.text) for item in c.items)]
    table = "\r\n".join(by.join(f'"{cell}"' for cell in row) for row in rows)
    assert bring_in(c, table) == 0
    assert bring_in(c, table.replace("H is", "M is")) == 1, "the other words, no other status"
    assert [item.status for item in c.items] == ["accepted", "accepted", "rejected"]
    assert bring_in(c, f"id{by}status{by}text\ni2{by} Pending {by}'quoted'\n") == 1
    assert c.item("i2").status == "pending" and c.item("i2").text == "'quoted'"


def test_no_cell_is_split_at_another_separator():
    c = curation(["a;=1+1", "a\t=1+1", "a;'=1", ";\t=1"])
    for by in ";\t":
        table = csv.reader(io.StringIO(export(c, "csv")), delimiter=by)
        assert not [cell for row in table for cell in row if cell.startswith("=")]
    assert bring_in(c, export(c, "csv")) == 0


def test_decisions_edits_and_new_rows_are_operations():
    c = curation()
    rows = list(csv.DictReader(io.StringIO(export(c, "csv"))))
    rows[0] |= {"status": "accepted", "text": "H is always a hole.", "why": "clearer"}
    rows[6] |= {"status": "rejected"}
    out = io.StringIO()
    table = csv.DictWriter(out, rows[0])
    table.writeheader()
    table.writerows([*rows, {"text": "Think first."}, {"text": "Perhaps.", "status": "skipped"}])
    assert bring_in(c, out.getvalue()) == 6
    assert [op.reason for op in c.log if op.op in ("accept", "reject")] == ["clearer", "imported"]
    assert c.item("i0").text == "H is always a hole." and c.item("i0").status == "accepted"
    assert c.history("i0")[-1].reason == "clearer"
    assert c.item("i6").status == "rejected" and c.items[-2].text == "Think first."
    assert [i.status for i in c.items[-2:]] == ["accepted", "skipped"]


@pytest.mark.parametrize(
    "text, told",
    [
        ("", "text column"),
        ("{bad", "neither JSON Lines nor CSV"),
        ('{"text": ' + "1" * 5000 + "}", "neither JSON Lines nor CSV: Exceeds the limit"),
        ("id,status\ni0,accepted\n", "text column"),
        ("id,status,text\ni0,maybe,x\n", "row 1: 'maybe' is none of"),
        ("id,status,text\nnobody,accepted,x\n", "no item has the id 'nobody'"),
        ("id,status,text\ni0,accepted,x\ni1,accepted, \n", "row 2: the text is empty"),
        ("[1]", "text column"),
        (
            "id,status,text\ni0,accepted,H is a hole, so run.\n",
            "row 1 has 4 cells, the first line 3",
        ),
        (
            'id,status,text\ni0,pending,"H is\n',
            "neither JSON Lines nor CSV: unexpected end of data",
        ),
        ('{"text": 1}', "row 1: text must be text, got 1"),
        ('{"text": "x"}\n5', "text column"),
        ('{"text": "x", "id": ["i0"]}', "row 1: id must be text"),
        ('{"text": "x", "status": {}, "why": 3}', "row 1: why must be text, got 3"),
        ('{"a":' + "[" * 100_000, "neither JSON Lines nor CSV"),
        ("id,status,text\ni0,accepted," + "x" * 200_000, "neither JSON Lines nor CSV"),
        ("id,status,text\n,,mine\ni6,accepted,pl\ufffdin\n", "row 2: a letter is lost; save"),
        ("id,status,text\n,,mine\ni5,accepted,@home\n", "row 2: 'i5' is now merged; export"),
        ("id,status,text\n,,mine\ni6,accepted,x\ni6,,x", "row 3: an earlier row has the id 'i6'"),
    ],
)
def test_what_is_no_table_is_refused_and_nothing_is_changed(text, told):
    c = curation()
    c.merge(["i4", "i5"])
    with pytest.raises(ValueError, match=told):
        bring_in(c, text)
    assert len(c.log) == 1


def test_another_format_is_refused():
    with pytest.raises(ValueError, match="choose jsonl or csv"):
        export(curation(), "xlsx")

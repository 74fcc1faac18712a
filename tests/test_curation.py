import os
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oelkit import operations
from oelkit.curation import Curation, replay
from oelkit.exchange import export
from oelkit.records import (
    ConflictError,
    Evidence,
    ExperienceItem,
    Outcome,
    RecordError,
    Trajectory,
    Turn,
    append_jsonl,
    read_jsonl,
    write_jsonl,
)
from oelkit.statements import statements
from oelkit.text import experience_text
from oelkit.views.widgets import trajectory_viewer

TEXTS = [
    "H is a hole.",
    "G is the goal.",
    "Avoid H or G,\nthey block  your path",
    "h is a HOLE",
    "Move right first.",
]


def items(n=5):
    return [
        ExperienceItem(
            f"i{k}", TEXTS[k % 5], (Evidence(f"t{k}", k), Evidence("all", 0)), "micro", 1, k % 3
        )
        for k in range(n)
    ]


def words(text):
    return len(text.split())


def seen(curation):
    """Return everything that a caller can see, and the state below it."""
    texts = curation.experience(), curation.experience(draw=1)
    return list(curation._state.items()), curation.items, texts


@pytest.fixture
def log(tmp_path):
    return tmp_path / "curation.jsonl"


# -- one operation each


def test_statuses_and_experience():
    c = Curation(items())
    c.accept("i1", "right")
    c.accept(["i0"], author="ann")
    c.reject("i3")
    c.skip("i4")
    assert [i.status for i in c.items] == ["accepted", "accepted", "pending", "rejected", "skipped"]
    assert c.experience() == "- EXPERIENCE ITEM: H is a hole.\n- EXPERIENCE ITEM: G is the goal."
    assert c.experience(draw=1) == c.experience() == c.experience(draw=0)  # for every draw
    assert [(o.op, o.author, o.reason, o.ids) for o in c.log[:2]] == [
        ("accept", "user", "right", ("i1",)),
        ("accept", "ann", "", ("i0",)),
    ]
    assert c.log[0].time.endswith("+00:00")
    assert repr(c) == "Curation(5 items: 2 accepted, 1 pending, 1 rejected, 1 skipped)"


@pytest.mark.parametrize("line", ["a\nb", "a\r\n\r\n  b ", "a\u2028b", "a\x85b", "a\x0bb\n"])
def test_a_text_is_one_line_and_the_original_stays(line):
    c = Curation([ExperienceItem("x", line, (), "m", 1, 0), *items(1)])
    assert c.items[0].text == "a b" and c.items[0].original == line
    c.edit("i0", line)
    c.accept(["x", "i0"])
    assert c.experience() == "- EXPERIENCE ITEM: a b"  # said once
    assert c.item("i0").original == "H is a hole."
    assert experience_text([ExperienceItem("x", line, (), "m", 1, 0)]) == "- EXPERIENCE ITEM: a b"


def test_merge_keeps_parents_evidence_place_and_shared_status():
    c = Curation(items())
    c.accept(["i1", "i3"])
    new = c.merge(["i3", "i1"], "both")
    assert [i.id for i in c.items] == ["i0", new, "i2", "i4"]
    merged = c.item(new)
    assert (
        merged.parents == ("i3", "i1") and merged.status == "accepted" and merged.original == "both"
    )
    assert merged.evidence == (Evidence("t3", 3), Evidence("all", 0), Evidence("t1", 1))
    assert c.item("i1").status == "merged" and c.item("i1").text == TEXTS[1]
    assert c.item(c.merge([new, "i2"])).status == "pending"
    with pytest.raises(ValueError, match="was merged; restore it first"):
        c.accept("i1")


def test_split_add_restore_move():
    c = Curation(items())
    parts = c.split("i2", ["Avoid H.", "Avoid\nG."], "two facts")
    assert [i.id for i in c.items] == ["i0", "i1", *parts, "i3", "i4"]
    assert [c.item(p).text for p in parts] == ["Avoid H.", "Avoid G."]
    assert all(
        c.item(p).evidence == c.item("i2").evidence and c.item(p).parents == ("i2",) for p in parts
    )
    own = c.add("Think.", [Evidence("t9", 2)])
    assert (
        c.items[-1].id == own
        and c.item(own).status == "accepted"
        and c.item(own).evidence == (Evidence("t9", 2),)
    )
    c.edit("i0", "other")
    c.reject("i0")
    c.restore(["i0", "i2"])
    assert (c.item("i0").text, c.item("i0").status) == ("H is a hole.", "pending")
    assert [i.id for i in c.items] == ["i0", "i1", *parts, "i2", "i3", "i4", own]
    for to in range(len(c.items)):
        others = [i.id for i in c.items if i.id != "i3"]
        c.move("i3", to)
        assert [i.id for i in c.items] == others[:to] + ["i3"] + others[to:]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda c: c.accept("nope"), "no item has the id 'nope'"),
        (lambda c: c.edit("i0", " \n"), "empty"),
        (lambda c: c.merge(["i0"]), "merge cannot take 1 item"),
        (lambda c: c.merge(["i0", "i0"]), "merge"),
        (lambda c: c.split("i0", ["one"]), "split"),
        (lambda c: c.accept([]), "accept"),
        (lambda c: c.move("i0", 5), "0 to 4"),
        (lambda c: c.move("i0", -1), "0 to 4"),
        (lambda c: c.undo(), "nothing to undo"),
        (lambda c: c.redo(), "nothing to redo"),
        (lambda c: c.add(""), "empty"),
        (lambda c: c.experience(10), "tokenizer"),
        (lambda c: c.item("nope"), "nope"),
        # a log with one of these could not be read again
        (lambda c: c.accept("i0", None), "field 'reason': expected str"),
        (lambda c: c.reject("i0", author=5), "field 'author': expected str"),
        (lambda c: c.accept("i0", every_draw=1), "field 'every_draw': expected bool"),
        (lambda c: c.edit("i0", None), r"field 'texts\[0\]': expected str"),
        (lambda c: c.move("i0", 1.0), "field 'to': expected int"),
        (lambda c: c.add("own", [("t0", 1)]), r"field 'evidence\[0\]': expected an object"),
        (lambda c: c.add("own", [Evidence("t0", "1")]), r"'evidence\[0\].turn': expected int"),
    ],
)
def test_a_wrong_call_is_one_clear_error_and_changes_nothing(log, call, message):
    c = Curation(items(), log)
    before = seen(c)
    with pytest.raises(ValueError, match=message):
        call(c)
    assert seen(c) == before and c.log == [] and not log.exists()


# -- budget, diff, frame


def test_over_the_budget_the_oldest_go_first():
    c = Curation(items())
    c.accept(["i0", "i1", "i4"])  # 7, 7 and 6 words with the marker
    all_three, two = ["i0", "i1", "i4"], ["i1", "i4"]
    for budget, kept in ((20, all_three), (19, two), (13, two), (12, ["i4"]), (5, []), (0, [])):
        fits, cut = c.within_budget(budget, words)
        assert [i.id for i in fits] == kept and [i.id for i in cut + fits] == ["i0", "i1", "i4"]
        assert (
            c.experience(budget, words) == experience_text(fits)
            and words(experience_text(fits)) <= budget
        )


def test_the_budget_counts_with_a_real_tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    t = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    t.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=t)
    c = Curation(items())
    c.accept(["i0", "i1", "i4"])
    for budget in (20, 13, 5):
        assert c.experience(budget, t) == c.experience(budget, fast) == c.experience(budget, words)


def test_the_diff_is_by_word():
    c = Curation(items())
    c.edit("i0", "H is always a hole!")
    assert c.diff() == {
        "i0": [("=", "H is"), ("+", "always"), ("=", "a"), ("-", "hole."), ("+", "hole!")]
    }


def test_to_frame():
    pytest.importorskip("pandas")
    c = Curation(items())
    c.accept("i1")
    frame = c.to_frame()
    assert list(frame["id"]) == [i.id for i in c.items] and frame.loc[1, "status"] == "accepted"
    assert len(Curation([]).to_frame()) == 0


# -- the log


def session(c):
    c.accept(["i0", "i1"], "fine")
    c.edit("i0", "H is always a hole.")
    m = c.merge(["i2", "i4"], "ü → merged")
    c.undo()
    c.redo()
    c.split(m, ["one", "two"])
    c.undo("too small")
    c.reject("i3")
    c.add("own", author="bob")
    return c


def test_replay_is_the_same_to_the_byte(log):
    c = session(Curation(items(), log))
    for other in (replay(items(), c.log), replay(items(), log), Curation(items(), log)):
        assert (
            seen(other) == seen(c)
            and other.experience().encode() == c.experience().encode()
            and other.log == c.log
        )
    size, again = log.stat().st_size, replay(items(), log)
    again.accept("i3")
    again.reload()  # no file: nothing to read, nothing lost
    assert log.stat().st_size == size and again.item("i3").status == "accepted"


def test_undo_and_redo_go_all_the_way_across_restarts(tmp_path, log):
    write_jsonl(tmp_path / "items.jsonl", items())
    start = seen(Curation(items()))
    end = seen(session(Curation.open(tmp_path / "items.jsonl", log)))
    steps = 0
    while (c := Curation.open(tmp_path / "items.jsonl", log)).can_undo:
        c.undo()
        steps += 1
    assert steps == 5 and seen(c) == start
    while (c := Curation.open(tmp_path / "items.jsonl", log)).can_redo:
        c.redo()
    assert seen(c) == end
    assert len(read_jsonl(log)) == 9 + 2 * steps  # nothing was erased
    c.undo()
    c.skip("i0")
    assert not c.can_redo


def test_each_operation_is_on_disk_before_the_state_changes(log):
    resource = pytest.importorskip("resource")
    c = session(Curation(items(), log))
    before, lines, limits = seen(c), log.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(lines) + 10, limits[1]))
    try:
        with pytest.raises(OSError):
            c.skip("i0")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert seen(c) == before and log.read_bytes() == lines
    c.skip("i0")
    assert seen(Curation(items(), log)) == seen(c)


def test_a_log_cut_off_at_any_byte_loses_only_the_last_line(tmp_path, log):
    c = Curation(items(), log)
    states = [seen(c)]
    for act in (
        lambda: c.accept("i0"),
        lambda: c.edit("i1", "Größe → 3"),
        lambda: c.merge(["i2", "i3"]),
    ):
        act()
        states.append(seen(c))
    data, cut = log.read_bytes(), tmp_path / "cut.jsonl"
    for end in range(len(data) + 1):
        cut.write_bytes(data[:end])
        complete = data[:end].count(b"\n")
        rest = data[:end].rpartition(b"\n")[2]
        whole = (
            bool(rest) and data[end : end + 1] == b"\n"
        )  # only the newline is missing, so nothing is lost
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            again = Curation(items(), cut)
        assert seen(again) == states[complete + whole]
        assert [f"line {complete + 1} was cut off" in str(w.message) for w in told] == [
            True
        ] * bool(rest and not whole)
        again.reject("i4")
        assert cut.read_bytes().startswith(data[:end])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert seen(Curation(items(), cut)) == seen(again)


def test_damage_inside_the_log_is_an_error_not_a_crash(log):
    session(Curation(items(), log))
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:2] + [lines[2][:9] + b"\n"] + lines[3:]))
    with pytest.warns(UserWarning), pytest.raises(RecordError, match="missing or repeated"):
        Curation(items(), log)
    log.write_bytes(b"".join(lines).decode().encode("utf-16"))
    with pytest.raises(RecordError, match="line 1: not JSON"):
        Curation(items(), log)
    log.write_bytes(b"".join(lines[:-1] + [lines[-1].replace(b'"schema": 1', b'"schema": 2')]))
    with pytest.raises(RecordError, match="line 9.*schema"):
        Curation(items(), log)
    log.write_bytes(b"".join(lines[:-1] + [lines[-1].replace(b'"op": "add"', b'"op": "dance"')]))
    with pytest.raises(ValueError, match="operation 9 .*unknown operation 'dance'"):
        Curation(items(), log)
    log.write_bytes(lines[0].replace(b'"op": "', b'"op": "undo", "was": "'))
    with pytest.raises(RecordError, match=f"{log.name}: there is nothing to undo. Restore the log"):
        Curation(items(), log)


def test_a_log_is_never_applied_to_other_items(log):
    Curation(items(), log).accept("i1")
    other = [ExperienceItem(i.id, f"new {i.text}", i.evidence, "m", 1, 0) for i in items()]
    with pytest.raises(
        ValueError, match="operation 1 does not fit these items.*'new G is the goal.'"
    ):
        Curation(other, log)
    with pytest.raises(ValueError, match="no item has the id 'i1'"):
        Curation(items(1), log)
    assert Curation(items(9), log).item("i1").status == "accepted"  # more items may come later
    with pytest.raises(ValueError, match="distinct ids"):
        Curation(items() + items())


def test_the_second_editor_is_told_and_nothing_is_overwritten(log):
    first, second = Curation(items(), log), Curation(items(), log)
    first.accept("i0")
    lines, before = log.read_bytes(), seen(second)
    for act in (lambda: second.reject("i0"), lambda: second.add("x")):
        with pytest.raises(ConflictError, match="changed by somebody else"):
            act()
    assert log.read_bytes() == lines and seen(second) == before
    second.reload()
    assert second.item("i0").status == "accepted"
    second.reject("i0")
    assert second.item("i0").status == "rejected"
    whole = log.read_bytes()
    log.write_bytes(damaged := whole.splitlines(keepends=True)[0] * 2)
    with pytest.raises(RecordError, match="missing or repeated"):
        second.reload()
    with pytest.raises(ConflictError):  # nor is anything added to a log that cannot be read
        second.accept("i1")
    assert log.read_bytes() == damaged
    os.remove(log)
    with pytest.raises(ConflictError):
        second.accept("i1")


def test_ids_that_an_earlier_curation_made_do_not_clash(tmp_path):
    c = Curation(items())
    c.merge(["i0", "i1"])
    c.add("own")
    write_jsonl(tmp_path / "kept.jsonl", c.items)
    carried = Curation.open(tmp_path / "kept.jsonl", tmp_path / "log.jsonl")
    assert [(i.text, i.evidence) for i in carried.items] == [(i.text, i.evidence) for i in c.items]
    new = carried.merge(["i2", "i3"])
    carried.add("own")
    assert len({i.id for i in carried.items}) == len(carried.items) and carried.item(
        new
    ).parents == ("i2", "i3")
    undo_then_new = Curation(items())
    a = undo_then_new.add("a")
    undo_then_new.undo()
    assert undo_then_new.add("b") != a


# -- properties

texts = st.text(max_size=12).filter(lambda t: t.split())
actions = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "accept",
                "reject",
                "skip",
                "restore",
                "edit",
                "move",
                "merge",
                "split",
                "add",
                "undo",
                "redo",
            ]
        ),
        st.integers(0, 99),
        st.integers(0, 99),
        texts,
        texts,
    ),
    max_size=25,
)


def act(c, action):
    """Call the operation that the numbers choose. An invalid call (such as an undo with nothing to
    undo) is not an operation.
    """
    op, a, b, text, other = action
    view = list(c._state) if op == "restore" else [i.id for i in c.items]
    ids = [view[a % len(view)], view[b % len(view)]]
    arguments = {
        "edit": (ids[0], text),
        "move": (ids[0], b % len(view)),
        "merge": (ids, text),
        "add": (text,),
        "split": (ids[0], [text, other]),
        "undo": (),
        "redo": (),
    }.get(op, (list(dict.fromkeys(ids)),))
    try:
        getattr(c, op)(*arguments)
    except ValueError:
        assert op in ("undo", "redo") or (op == "merge" and ids[0] == ids[1])
        return False
    return True


@given(actions)
@settings(max_examples=150, deadline=None)
def test_undo_after_any_operation_is_identity_and_redo_brings_it_back(todo):
    c = Curation(items())
    for action in todo:
        before = seen(c)
        if act(c, action) and action[0] not in ("undo", "redo"):
            after = seen(c)
            c.undo()
            assert seen(c) == before
            c.redo()
            assert seen(c) == after
    while c.can_undo:
        c.undo()
    assert seen(c) == seen(Curation(items()))


@given(actions)
@settings(max_examples=150, deadline=None)
def test_the_fold_is_the_same_incremental_from_the_start_and_from_disk(tmp_path_factory, todo):
    log = tmp_path_factory.mktemp("c") / "log.jsonl"
    c = Curation(items())
    for action in todo:
        act(c, action)
    for op in c.log:
        append_jsonl(log, op)
    for other in (replay(items(), c.log), Curation(items(), log)):
        assert seen(other) == seen(c) and other.log == c.log
        assert (other.can_undo, other.can_redo) == (c.can_undo, c.can_redo)


@given(actions)
@settings(max_examples=150, deadline=None)
def test_no_operation_ever_loses_evidence_or_an_original(todo):
    c = Curation(items())
    for action in todo:
        before = c.items
        act(c, action)
        if action[0] in ("merge", "split", "move", "edit", "accept", "reject", "skip"):
            assert {e for i in c.items for e in i.evidence} == {
                e for i in before for e in i.evidence
            }
        for item in items():
            assert (
                c.item(item.id).original == item.text and c.item(item.id).evidence == item.evidence
            )
        for item in c._state.values():
            assert all(set(c.item(p).evidence) <= set(item.evidence) for p in item.parents)
            assert "\n" not in item.text and len(item.text.splitlines()) == 1


@given(st.lists(st.text(max_size=30), max_size=12), st.integers(0, 40))
@settings(deadline=None)
def test_the_budget_holds_for_any_text(texts, budget):
    c = Curation([ExperienceItem(str(k), t, (), "m", 1, 0) for k, t in enumerate(texts)])
    if texts:
        c.accept([i.id for i in c.items])
    kept, cut = c.within_budget(budget, len)
    assert cut + kept == c.kept() and len(experience_text(kept)) <= budget
    assert [i.text for i in c.kept()] == [s.text for s in statements(c.items)]
    assert not cut or len(experience_text([cut[-1], *kept])) > budget


# -- statements, every draw, reasons


def said(*texts):
    return Curation(
        ExperienceItem(f"i{n}", text, (Evidence("t", n),), "m", 1, draw)
        for n, (draw, text) in enumerate(texts)
    )


def test_items_in_the_same_words_are_one_statement_the_most_supported_first():
    c = said((0, "G wins."), (0, "H is a hole."), (2, "h is a HOLE"), (2, "H is a hole!"))
    c.reject("i3")
    first, second = c.statements()
    assert (first.text, first.status, first.ids) == ("H is a hole.", "pending", ("i1", "i2", "i3"))
    assert first.draws == (0, 2) and [e.turn for e in first.evidence] == [1, 2, 3]
    merged = c.merge(["i1", "i2", "i3"])
    assert c.item(merged).draws == (0, 2)  # merged items keep their authors
    assert second.draws == (0,) and c.statements()[0].draws == (0, 2)
    c.add("Think first.")
    assert c.statements()[-1].draws == ()


def test_what_is_accepted_is_for_every_draw_and_said_once():
    c = said((0, "H is a hole."), (1, "h is a hole"), (1, "G wins."))
    c.accept(["i0", "i1"])
    assert c.experience() == "- EXPERIENCE ITEM: H is a hole."
    assert {c.experience(draw=d) for d in range(3)} == {c.experience()}
    c.accept("i2", every_draw=False)
    assert [c.experience(draw=d).count("G wins") for d in (0, 1)] == [0, 1]


def test_a_log_from_before_gives_the_texts_that_it_gave(tmp_path):
    """Its accepts do not name draws, so they apply to the draw that wrote the item."""
    write_jsonl(tmp_path / "log.jsonl", OLD_LOG)
    texts = [(0, "H is a hole."), (1, "h is a hole"), (1, "h is a hole")]
    items = [ExperienceItem(f"i{n}", text, (), "m", 1, d) for n, (d, text) in enumerate(texts)]
    c = replay(items, tmp_path / "log.jsonl")
    assert [c.experience(draw=d).count("hole") for d in (0, 1)] == [1, 2]
    assert c.experience().count("hole") == 3


OLD_LOG = [
    {
        "schema": 1,
        "n": 1,
        "op": "accept",
        "author": "user",
        "time": "2026-11-01T10:00:00.000+00:00",
        "reason": "",
        "ids": ["i0", "i1", "i2"],
        "before": ["H is a hole.", "h is a hole", "h is a hole"],
        "new": [],
        "texts": [],
        "to": None,
        "evidence": [],
    }
]


def test_items_of_a_statement_are_edited_moved_and_split_in_one_step():
    c = said((0, "A wins."), (0, "B wins."), (1, "a wins"))
    c.edit(["i0", "i2"], "A and C win.")
    assert [i.text for i in c.items] == ["A and C win.", "B wins.", "A and C win."]
    c.move(["i0", "i2"], 1)
    assert [i.id for i in c.items] == ["i1", "i0", "i2"]
    a, b = c.split(["i0", "i2"], ["A wins.", "C wins."])
    assert [i.id for i in c.items] == ["i1", a, b] and c.item(b).draws == (0, 1)
    for _ in range(3):
        c.undo()
    assert [i.text for i in c.items] == ["A wins.", "B wins.", "a wins"]


def test_a_reason_may_come_after_the_decision(tmp_path):
    log = tmp_path / "log.jsonl"
    c = Curation(items(), log)
    with pytest.raises(ValueError, match="nothing to explain"):
        c.explain("why")
    c.reject("i0")
    assert c.explain("G was won", author="ann").op == "reject"
    c.accept("i1")
    again = Curation(items(), log)
    assert [op.reason for op in again.history("i0")] == ["G was won"] and len(again.log) == 3
    again.undo()
    again.undo()  # the reason is not a separate step
    assert not again.can_undo and again.item("i0").status == "pending"


def test_what_shows_all_items_reads_the_log_once(monkeypatch):
    """Otherwise, exporting thousands of items takes longer than a page waits for its kernel."""
    c = Curation(items())
    c.accept(["i0", "i1"], "seen"), c.merge(["i0", "i3"]), c.explain("the same")
    assert c.histories() == {id: c.history(id) for id in ("i0", "i1", "i3", "merge-2")}
    assert [[op.reason for op in c.history(id)] for id in ("i0", "i2")] == [
        ["seen", "the same"],
        [],
    ]
    notes = Curation([])
    notes.add("#tag", [Evidence("g", 0)])
    turn = Turn("o", [], "r", "a", "f", 1, 1, False)
    viewer = trajectory_viewer(
        [Trajectory("g", "e", 1, "m", 1, (turn,), Outcome.SUCCESS, "f")], comments=notes
    )
    monkeypatch.delattr(Curation, "history")
    assert "the same" in export(c) and viewer._noted()[0][3] == "#tag"


def test_an_operation_looks_at_no_earlier_one(monkeypatch):
    """Otherwise, writing a log of ten thousand operations takes minutes."""
    looked, real = [], operations.undo_and_redo

    def counted(log, *before):
        looked.append(len(list(log)))
        return real(log, *before)

    monkeypatch.setattr(operations, "undo_and_redo", counted)
    c = Curation(items())
    looked.clear()
    c.reject("i0"), c.accept("i1"), c.undo(), c.redo(), c.undo(), c.undo(), c.skip("i2")
    assert looked == [1] * 7
    assert not c.can_redo and [op.op for op in c._done] == ["skip"]
    assert replay(items(), c.log).items == c.items

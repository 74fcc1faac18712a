"""Items that no person decided on: draws decide by agreement, never against a person."""

import pytest

from oelkit.auto_curation import auto_curate
from oelkit.curation import Curation
from oelkit.records import Evidence, ExperienceItem
from oelkit.statements import items_for_draw


def curation(*written):
    """Return a curation of (draw, text) items, with ids i0, i1, … in this order."""
    return Curation(
        ExperienceItem(f"i{n}", text, (Evidence(f"t{n}", n),), "m", 1, draw)
        for n, (draw, text) in enumerate(written)
    )


def statuses(c):
    return {i.id: i.status for i in c.items}


def again_does_nothing(c):
    n = len(c.log)
    return len(auto_curate(c).log) == n


def test_all_is_kept_but_the_same_words():
    written = ["H is a hole.", "G is the goal.", "Avoid H", "h is a HOLE", "→", "←", "G is a hole."]
    c = auto_curate(curation(*((n % 2 if n != 3 else 0, text) for n, text in enumerate(written))))
    assert statuses(c) == {f"i{n}": "accepted" for n in range(7)} | {"i3": "rejected"}
    assert [op.reason for op in c.log if op.op == "reject"] == ["duplicates i0"]
    assert {op.author for op in c.log} == {"auto"} and again_does_nothing(c)


def test_signs_and_numbers_make_no_duplicates_and_no_agreement():
    said = ['"#" stops you.', '"√" stops you.', "If row < 2 go down.", "If row > 2 go down."]
    said += ["A step gives 1.", "A step gives -1.", "G costs 5", "G costs 5x"]
    c = auto_curate(curation(*((0, text) for text in said)))
    assert set(statuses(c).values()) == {"accepted"}
    three = auto_curate(
        curation((0, "If row < 2 go down."), (1, "If row > 2 go down."), (2, "G wins."))
    )
    assert set(statuses(three).values()) == {"accepted"}  # they agree on nothing


def test_draws_are_at_least_those_that_wrote():
    written = [(d, "H is a hole.") for d in range(3)] + [(3, "G is a hole.")]
    c = auto_curate(curation(*written), draws=2)  # else three of two draws would agree
    assert {op.reason for op in c.log if op.reason} == {
        "written by 3 of 4 draws",
        "written by 1 of 4 draws",
    }
    with pytest.raises(ValueError, match="draws=-1"):
        auto_curate(curation(*written), draws=-1)


def test_what_most_draws_agree_on_is_merged_and_the_rest_rejected():
    c = auto_curate(
        curation(
            *((0, text) for text in ("H is a hole.", "G is a hole.")),
            *((1, text) for text in ("H is a hole", "G is the goal.")),
            *((2, text) for text in ("G is the goal.", "h is a hole.")),
        )
    )
    assert [i.text for i in c.kept()] == ["H is a hole.", "G is the goal."]
    assert [e.turn for i in c.kept() for e in i.evidence] == [0, 2, 5, 3, 4]
    assert c.item("i1").status == "rejected" and c.log[-1].author == "auto"
    assert all(items_for_draw(c.kept(), d) == c.kept() for d in range(3))  # merged: for every draw
    assert again_does_nothing(c)
    free = auto_curate(curation(*((d, f"words {d}") for d in range(4))))  # nothing to agree on
    assert [i.text for i in items_for_draw(free.kept(), 2)] == ["words 2"]


@pytest.mark.parametrize(
    "text, writers, draws, kept",
    [
        ("G is a hole.", 3, None, 1),
        ("G is a hole.", 1, 2, 1),
        ("G is a hole.", 4, 10, 0),  # outvoted by draws that found nothing new
        ("G is a hole.", 5, 10, 1),
        ("G is a hole.", 10, 10, 1),
        ("words {}", 5, 10, 0),
        ("words {}", 6, 10, 6),  # no agreement, but most draws have items
    ],
)
def test_draws_that_found_nothing_new_count(text, writers, draws, kept):
    c = curation(*((d, text.format(d)) for d in range(writers)))
    assert len(auto_curate(c, draws).kept()) == kept


# -- decisions of a person


def test_what_a_person_decided_stays():
    c = curation(
        (0, "H is a hole."), (1, "G wins."), (2, "Avoid H"), (0, "h is a HOLE"), (1, "Go.")
    )
    c.reject("i1")
    c.accept("i3")
    c.skip("i4")
    auto_curate(c)
    assert list(statuses(c).values()) == ["accepted", "rejected", "accepted", "accepted", "skipped"]
    by_auto = [(op.ids, op.reason) for op in c.log if op.author == "auto"]
    assert by_auto == [(("i0",), "same words as i3"), (("i2",), "")]


def test_what_a_person_accepted_is_accepted_in_every_draw():
    """Ten draws wrote H, six of them also G; a person accepts H in six draws."""
    c = curation(*((d, "H is a hole.") for d in range(10)), *((d, "G wins.") for d in range(6)))
    c.accept([f"i{d}" for d in range(6)])
    auto_curate(c)
    lines = "- EXPERIENCE ITEM: H is a hole.\n- EXPERIENCE ITEM: G wins."
    assert {c.experience(draw=d) for d in range(10)} == {lines}
    assert "rejected" not in statuses(c).values() and again_does_nothing(c)
    for _ in range(3):  # G was merged and accepted; the person's own step is still there
        c.undo()
    assert [i.status for i in c.items[:7]] == ["accepted"] * 6 + ["pending"]


@pytest.mark.parametrize("draws", [3, 4, 9])
def test_what_a_person_accepted_holds_where_too_few_draws_wrote_it(draws):
    c = curation(*((d, "G wins.") for d in range(draws)), (0, "H is a hole."), (1, "h is a hole"))
    c.accept(f"i{draws}")
    auto_curate(c, 9)
    for d in range(2):
        assert "h is a hole" in c.experience(draw=d).lower()
        assert c.experience(draw=d).lower().count("h is a hole") == 1
    assert again_does_nothing(c)


def test_what_a_person_rejected_is_rejected_in_every_draw():
    """Ten draws wrote that G is a hole; a person rejects one of them."""
    c = curation(
        *((d, "G is a hole.") for d in range(10)), *((d, "H is a hole.") for d in range(7))
    )
    c.reject("i0", "wrong")
    auto_curate(c)
    for d in range(10):
        assert c.experience(draw=d) == "- EXPERIENCE ITEM: H is a hole."
    assert [c.item(f"i{d}").status for d in range(10)] == ["rejected"] * 10
    reasons = {op.reason for op in c.log if op.op == "reject" and op.author == "auto"}
    assert reasons == {"same words as i0"} and again_does_nothing(c)


def test_a_rejected_wording_is_no_agreement_that_would_reject_the_others():
    c = curation(*((d, "G is a hole.") for d in range(4)), *((d, f"fact {d}") for d in range(4)))
    c.reject("i2")
    auto_curate(c)
    assert [i.text for i in c.kept()] == [f"fact {d}" for d in range(4)]


def test_a_copy_that_a_person_rejected_does_not_reject_what_they_accepted():
    c = curation((0, "H is a hole."), (0, "H is a hole!"), (1, "H is a hole."), (2, "G wins."))
    c.accept("i0")
    c.reject("i1", "twice")
    auto_curate(c)
    assert c.item("i1").status == "rejected"
    for d in range(2):
        assert c.experience(draw=d) == "- EXPERIENCE ITEM: H is a hole."


def test_an_item_of_a_person_stands_in_every_draw_once():
    c = curation(*((d, "H is a hole.") for d in range(4)))
    own = c.add("h is a HOLE")
    auto_curate(c)
    assert c.experience(draw=3) == c.experience() == "- EXPERIENCE ITEM: h is a HOLE"
    assert {op.reason for op in c.log if op.op == "reject"} == {f"duplicates {own}"}
    assert again_does_nothing(c)


def test_what_was_skipped_stays_skipped():
    c = curation(*((d, "H is a hole.") for d in range(3)))
    c.skip(["i0", "i1"])
    auto_curate(c)
    assert statuses(c) == {"i0": "skipped", "i1": "skipped", "i2": "accepted"}


# -- items that contradict known ones


def test_what_speaks_against_what_is_known_is_rejected_with_the_sentence():
    said = ["M is the goal.", "W is the goal.", "Room 2 opens at 10."]
    c = curation(*((d, text) for d in range(4) for text in said))
    auto_curate(c, 4, ["T is a hole.", "M is the key.", "Room 1 opens at 9."])
    assert [i.text for i in c.kept()] == ["W is the goal.", "Room 2 opens at 10."]
    said = [(op.ids, op.reason) for op in c.log if op.op == "reject"]
    assert said == [(("i0", "i3", "i6", "i9"), "contradicts: M is the key.")]
    assert again_does_nothing(c)


def test_what_a_person_accepted_holds_also_against_what_is_known():
    c = curation(*((d, "T is the goal.") for d in range(4)))
    c.accept("i1")
    auto_curate(c, 4, ["T is a hole."])
    assert {i.text for i in c.kept()} == {"T is the goal."}


def test_a_merged_item_counts_all_its_draws_and_a_persons_own_none():
    c = curation((0, "H is a hole."), (1, "H: a hole."), (2, "H, hole."), (0, "G wins."))
    merged = c.merge(["i0", "i1", "i2"], "H is a hole.")
    auto_curate(c)
    assert c.item(merged).status == "accepted" and c.item("i3").status == "rejected"
    assert again_does_nothing(c)

    c = curation((0, "A is b."), (1, "H is a hole."), (2, "C is d."))
    c.add("H is a hole.")
    auto_curate(c)  # one draw wrote it, so no draws agree, and nothing is rejected for that
    assert c.item("i0").status == c.item("i2").status == "accepted"

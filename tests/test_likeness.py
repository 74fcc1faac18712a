"""Which texts say nearly the same and which speak against each other, by words alone."""

from pathlib import Path

import pytest

from oelkit.likeness import contradictions, similar

PAIRS = [
    line.split("\t")
    for line in (Path(__file__).parent / "data/pairs.tsv").read_text("utf-8").splitlines()
]


def test_groups_of_similar_texts():
    texts = [
        "H is a hole",
        "G wins",
        "h is A hole.",
        "the G wins",
        "Boxes are pushed",
        "Push a box",
    ]
    assert similar(texts, 1) == [[0, 2], [1, 3], [4, 5]]
    chain = ["red hot iron", "red hot iron bar", "red hot iron bar hangs", "iron"]
    assert similar(chain, 0.8) == [[0, 1, 2]]
    assert similar([], 1) == [] and similar(["", "..."]) == []
    for threshold in (0, 1.1):
        with pytest.raises(ValueError, match="threshold"):
            similar(texts, threshold)


def test_paraphrases_are_found_and_nothing_else_is_taken_for_one():
    """The figures of the module's docstring."""
    found = {
        kind: [bool(similar([a, b])) for k, a, b in PAIRS if k == kind] for kind, _, _ in PAIRS
    }
    assert sum(found["same"]) == 20 and len(found["same"]) == 25
    assert sum(found["other"]) == 0 and len(found["other"]) == 33


@pytest.mark.parametrize(
    "a, b",
    [
        ("H is a hole.", "H is the goal."),
        ("H is a hole.", "H is not a hole."),
        ("x1 = -1", "x1 = 1"),
        ("Keep row < 2.", "Keep row > 2."),
        ("Refunds take 3 days.", "Refunds take 5 days."),
        ("Always ask first.", "Never ask first."),
        ("Move left first.", "Move right first."),
        ("H is a hole, G is not.", "G is a hole, H is not."),
    ],
)
def test_what_cannot_both_hold_is_a_contradiction_and_no_duplicate(a, b):
    assert contradictions([a, "Think first.", b]) == [(0, 2)] and similar([a, b]) == []


@pytest.mark.parametrize(
    "a, b",
    [
        ("H is a hole.", "G is a hole."),
        ("H is a hole.", "H is a deep hole."),
        ("H is a hole.", "h is a HOLE"),
        ("H is a hole.", "Avoid H."),
        ("x1 = 1", "x2 = 5"),
        ("C is the goal.", "Q is the goal."),
        ("", "."),
    ],
)
def test_what_can_both_hold_is_no_contradiction(a, b):
    assert contradictions([a, b]) == []

"""Texts that say nearly the same or contradict each other, found by their words alone."""

import itertools
import random
from pathlib import Path

import pytest

from oelkit import likeness
from oelkit.likeness import contradictions, similar, teaching_turn
from oelkit.logs import read_chats
from oelkit.records import Turn

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


@pytest.mark.parametrize(
    "a, b",
    [
        ("Do not go left, go right.", "Go left, do not go right."),
        ("Go up, then left.", "Go left, then up."),
        ("Needs x > y here.", "Needs y > x here."),
        ("H beats G here.", "G beats H here."),
        ("Unless it is red, go on.", "If it is red, go on."),
        ("C* is a wall here.", "C is a wall here."),
        ("A beats B.", "B beats A."),
        ("The key comes before the door.", "The door comes before the key."),
        ("Red is better than blue.", "Blue is better than red."),
        ("Two keys open one door.", "One key opens two doors."),
        ("The second is left, the third right.", "The third is left, the second right."),
    ],
)
def test_the_same_words_in_another_order_may_say_something_else(a, b):
    assert similar([a, b]) == []


def test_paraphrases_are_found_and_nothing_else_is_taken_for_one():
    """Confirms the figures in the module's docstring."""
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
        ("It costs 5 thousand coins.", "It costs 5 coins."),
        ("Biete eine Rückgabe an.", "Biete keine Rückgabe an."),
        ("Immer duzen.", "Nie duzen."),
        ("Order NL-7 ships with DHL.", "Order NL-7 never ships with DHL."),
        ("Refund $30 at once.", "Refund $40 at once."),
        ("Gehe bei rotem Licht nach links.", "Gehe bei rotem Licht nicht nach links."),
        ("Va à gauche au feu rouge.", "Ne va pas à gauche au feu rouge."),
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
        ("Order NL-10037 ships with DHL.", "Order NL-10148 ships with DHL."),
        ("", "."),
    ],
)
def test_what_can_both_hold_is_no_contradiction(a, b):
    assert contradictions([a, b]) == []


def by_all_pairs(texts, threshold):
    said, groups = [likeness._said(text) for text in texts], [{i} for i in range(len(texts))]
    for a, b in itertools.combinations(range(len(texts)), 2):
        one, two = said[a], said[b]
        common, sizes = len(one.words & two.words), (len(one.words), len(two.words))
        if (
            (one.exact, one.negated) == (two.exact, two.negated)
            and 2 * common >= threshold * sum(sizes)
            and sizes != (common + 1, common + 1)
        ):
            joined = groups[a] | groups[b]
            for i in joined:
                groups[i] = joined
    return sorted(sorted(g) for g in {frozenset(g) for g in groups} if len(g) > 1)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6, 0.75, 0.8, 0.9, 1.0])
def test_few_pairs_are_compared_and_none_is_missed(threshold):
    rng, words = random.Random(1), ["ice", "fire", "wind", "rock", "sand", "snow", "rain", "heat"]
    for _ in range(30):
        texts = [" ".join(rng.choices(words, k=rng.randint(0, 7))) for _ in range(30)]
        assert similar(texts, threshold) == by_all_pairs(texts, threshold)


def test_thousands_of_texts_are_not_compared_pair_by_pair():
    rng = random.Random(0)
    words = ["".join(rng.choices("bcdfghklmn", k=6)) for _ in range(1000)]
    said = [likeness._said(" ".join(rng.choices(words, k=8))) for _ in range(2000)]
    pairs = list(likeness._sharing(list(range(2000)), said, 0.75))
    assert 0 < len(pairs) < 2000 * 1999 / 2 / 50
    assert contradictions([f"Rule {n} is for step {n}." for n in range(1000)]) == []
    assert contradictions([f"Order {n} ships with DHL." for n in range(4711, 4722)]) == []
    assert contradictions(["Return it within 30 days.", "Return it within 45 days."]) == [(0, 1)]


CHATS = Path(__file__).parents[1] / "data/logs/sql_chats.jsonl"
SAID = {  # by words found only in turns that say it
    "auftrag": (
        "Orders are in table auftrag.",
        "Use the table auftrag for orders and auf_nr for their numbers.",
        "The order table is called auftrag, not orders.",
        "Query auftrag when asked about orders; the number column is auf_nr.",
    ),
    "kunde": (
        "Customers are in table kunde.",
        "The table of customers is called kunde.",
        "Use kunde instead of customers, names are in column name.",
    ),
    "ware": (
        "Products are in table ware, their names in bez.",
        "The product table is ware.",
        "Use ware for products and bez for the name.",
    ),
    "No query found": (
        "Write the query in a ```sql block.",
        "A query must stand in a ```sql block, else none is found.",
        "Always put SQL queries into an ```sql block.",
    ),
}


def test_the_turn_that_taught_an_item_is_found_in_chats():
    """Confirms the figures in the function's docstring."""
    found, last = [], []
    for chat in read_chats(CHATS):
        for sign, items in SAID.items():
            taught = {k for k, turn in enumerate(chat.turns) if sign in turn.feedback}
            for item in items if taught else ():
                found.append(teaching_turn(item, chat.turns) in taught)
                last.append(len(chat.turns) - 1 in taught)
    assert (len(found), sum(found), sum(last)) == (190, 190, 108)


def test_the_last_turn_taught_where_no_word_tells():
    said = [("Board P H", "You moved up."), ("Board P H", "You moved into a hole.")]
    turns = [Turn(seen, [], "", None, after, 0, 0, False) for seen, after in said]
    assert teaching_turn("Think first.", turns) == 1
    assert teaching_turn("H stands on the board.", turns) == 1  # all turns say so
    assert teaching_turn("H is a hole.", turns) == 1
    bye = Turn("You moved into a hole.", [], "", None, "Goodbye!", 0, 0, False)
    assert teaching_turn("H is a hole.", [*turns, bye]) == 1

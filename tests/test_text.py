"""Replies and items as text: parsers on replies of real models, budgets, equal statements."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oelkit.records import ExperienceItem
from oelkit.text import (
    MARKER,
    count_tokens,
    experience_text,
    parse_items,
    truncate_to_budget,
    well_formed,
    word_diff,
    wording,
)

A, B = "Avoid 'H', it is a hole.", "The goal is at cell 9."

BOTH = [  # replies that both parsers read the same way
    (f"{MARKER} {A}", [A]),
    (f"{MARKER} {B}\n{MARKER} {A}", [B, A]),
    (f"Here you are:\n\n{MARKER} {A}\r\n{MARKER} {B}\r\n", [A, B]),
    (f"{MARKER}{A}", [A]),
    (f"{MARKER}", []),
    (f"{MARKER}   \n\n", []),
    (f"{MARKER} {A}\n{MARKER}", [A]),
    ("Nothing new.", []),
    ("- EXPERIENCE ITEM: There is nothing new to learn from this conversation.", []),
    ("", []),
    (
        f"{MARKER} a move written [left] costs 1.\n{MARKER} 2 * 3 * 4",
        ["a move written [left] costs 1.", "2 * 3 * 4"],
    ),
]
TOLERANT = [  # variants that real models write
    (f"### EXPERIENCE ITEM: {A}", [A]),
    (f"- Experience Item: {B}\n- Experience Item: {A}", [B, A]),
    (f"EXPERIENCE ITEM: {A}", [A]),
    (f"experience item: {A}", [A]),
    (f"  - EXPERIENCE ITEM: {A}", [A]),
    (f"- EXPERIENCE ITEM : {A}", [A]),
    (f"- EXPERIENCE_ITEM: {A}", [A]),
    (f"* EXPERIENCE-ITEM: {A}", [A]),
    (f"EXPERIENCE ITEM: {B} EXPERIENCE ITEM: {A}", [B, A]),
    (f"- EXPERIENCE ITEM: {B} - EXPERIENCE ITEM: {A}", [B, A]),
    (f"**EXPERIENCE ITEM:** {A}", [A]),
    (f"- **EXPERIENCE ITEM**: {A}", [A]),
    (f"**EXPERIENCE ITEM: {A}**", [A]),
    (f"- EXPERIENCE ITEM: **{A}**", [A]),
    (f"- `EXPERIENCE ITEM:` {A}", [A]),
    (f"`- EXPERIENCE ITEM: {A}`", [A]),
    (f"1. EXPERIENCE ITEM: {B}\n2. EXPERIENCE ITEM: {A}", [B, A]),
    (f"EXPERIENCE ITEM 1: {B}\nEXPERIENCE ITEM #2: {A}\nExperience Item (3): C", [B, A, "C"]),
    (f"- EXPERIENCE ITEM:\n{A}\nSome chatter.", [A]),
    (f"- EXPERIENCE ITEM:\n\n  {A}\n- EXPERIENCE ITEM:\n- {B}", [A, B]),
    (f"### EXPERIENCE ITEMS:\n- {A}\n- {B}\n\nI hope that this helps.", [A, B]),
    (f"**Experience items:**\n1. {A}\n2. {B}", [A, B]),
    ("- EXPERIENCE ITEM: `H` is a hole, `G` the goal", ["`H` is a hole, `G` the goal"]),
    ("- EXPERIENCE ITEM: **H** kills. **G** wins.", ["**H** kills. **G** wins."]),
    (
        "- EXPERIENCE ITEM: never step on *",
        ["never step on"],
    ),  # an unbalanced star is taken for emphasis
    (f"- EXPERIENCE ITEM\uff1a{A}", [A]),
    ("My experience items are few", []),
]


@pytest.mark.parametrize("reply, items", BOTH)
@pytest.mark.parametrize("strict", [True, False])
def test_both_parsers(reply, items, strict):
    assert parse_items(reply, strict) == items


@pytest.mark.parametrize("reply, items", TOLERANT)
def test_tolerant_parser(reply, items):
    assert parse_items(reply) == items


def test_strict_parser_takes_the_papers_marker_alone():
    assert [parse_items(reply, strict=True) for reply, _ in TOLERANT[:5]] == [[]] * 5


@given(
    st.text()
    | st.lists(
        st.sampled_from(
            [
                "EXPERIENCE ITEM",
                "- ",
                "*",
                "**",
                "`",
                ":",
                " ",
                "\n",
                "\r",
                "\u2028",
                "1. ",
                "word",
                "s",
                "#",
            ]
        )
    ).map("".join)
)
def test_items_are_single_lines_with_text(reply):
    for strict in (True, False):
        for item in parse_items(reply, strict):
            assert item and item == item.strip() and item.splitlines() == [item]


@given(
    st.lists(
        st.from_regex(r"[A-Za-z0-9'\[\](][ -)+-_a-~]{0,40}[A-Za-z0-9.!)\]]", fullmatch=True).filter(
            lambda line: "item" not in line.lower()
        )
    )
)
def test_well_formed_replies_give_their_lines(lines):
    reply = "\n".join(f"{MARKER} {line}" for line in lines)
    assert parse_items(reply, strict=True) == lines
    assert parse_items(reply) == lines


@pytest.mark.parametrize(
    "piece",
    [
        " ",
        "*",
        "\n",
        "- ",
        "\t",
        "1. ",
        "experience ",
        "EXPERIENCE ITEM",
        "EXPERIENCE ITEM:",
        "EXPERIENCE ITEM:\n",
        "experience item" + " " * 1000,
        "EXPERIENCE ITEM:" + "\n" * 1000,
        "** `",
        "EXPERIENCE ITEM: x - ",
    ],
)
def test_100_kb_take_no_time(piece):
    reply = (piece * (100_000 // len(piece) + 1))[:100_000]
    began = time.process_time()
    parse_items(reply + "!")
    parse_items(f"- EXPERIENCE ITEM: {reply}")
    assert time.process_time() - began < 2  # CPU time, independent of other load


# -- the experience text


def words(text):
    return len(text.split())


def test_over_the_budget_the_oldest_lines_go_first():
    text = "a b c\nd e\nf"
    for budget, left in ((6, text), (5, "d e\nf"), (3, "d e\nf"), (2, "f"), (1, "f"), (0, "")):
        assert truncate_to_budget(text, budget, words) == left
    assert truncate_to_budget(text, None, None) == text


def test_half_an_emoji_is_a_replacement_character_for_the_model(tiny):
    half = "A sign \ud83d and you fell."
    assert well_formed(half) == "A sign \ufffd and you fell."
    item = ExperienceItem("i", half, (), "m", 1, 0)
    assert experience_text([item]) == f"{MARKER} A sign \ufffd and you fell."
    assert count_tokens(half, tiny.tokenizer) == count_tokens(well_formed(half), tiny.tokenizer)


# -- texts that say the same

SAME = [
    ("H is a hole.", "h is a HOLE"),
    ('"H" is a hole!', "`H` is a **hole**"),
    ("Go [right], then (down).", "go right then down"),
    ("  H\tis a   hole;", "H is a hole"),
    ("**Never go** *left*!", "never go left"),
]
DIFFERENT = [
    ("A step gives 1.", "A step gives -1."),
    ("If row < 2 go down.", "If row > 2 go down."),
    ('"#" stops you.', '"√" stops you.'),
    ('"." is free.', '"," is free.'),
    ("The sign ? wins.", "The sign ! wins."),
    ("Costs 5", "Costs 5x"),
    ("Costs 5", "Costs 5%"),
    ("Costs 1.5", "Costs 15"),
    ("Costs .5", "Costs 5"),
    ("x != 1", "x = 1"),
    ("x!=1", "x=1"),
    ("Use a + b", "Use a - b"),
    ("Use 2 * 3", "Use 2 3"),
    ("Use C++", "Use C"),
    ("C* is a tile", "C is a tile"),
    ("It costs 5!", "It costs 5"),
    ("n! grows", "n grows"),
    ("f' is f", "f is f"),
    ("pass *args", "pass args"),
    ("__init__ runs", "init runs"),
    ("_x is hidden", "x is hidden"),
    ("*p and *q", "p and q"),
    ("Use C#", "Use C"),
    ("SELECT COUNT(*)", "SELECT COUNT()"),
    ("Is !done", "Is done"),
    ("x² grows", "x2 grows"),
    ("→", "←"),
    ("<=", "<"),
    ("a/b", "a b"),
    ("~5", "5"),
    ("3 - 1", "3 1"),
    ("Maße zählen", "Masse zählen"),
    ("[s] is you", "[S] is you"),
    ("‹s› is you", "«S» is you"),
]


@pytest.mark.parametrize("a, b", SAME)
def test_case_quotes_emphasis_and_punctuation_say_nothing(a, b):
    assert wording(a) == wording(b)


@pytest.mark.parametrize("a, b", DIFFERENT)
def test_numbers_signs_and_operators_say_something(a, b):
    assert wording(a) != wording(b)


@given(st.text(max_size=40), st.sampled_from("0123456789+-<>=#%√→"), st.integers(0, 9))
def test_one_more_sign_between_words_is_another_wording(text, sign, place):
    parts = text.split()
    place = min(place, len(parts))
    assert wording(" ".join([*parts[:place], sign, *parts[place:]])) != wording(text)


def test_a_long_word_of_brackets_takes_no_time():
    began = time.process_time()
    for piece in ("(", ")", "'", "(.", "]'"):
        wording(piece * 100_000)
        wording(f"{piece * 40} " * 1_000)
    assert time.process_time() - began < 2  # CPU time, independent of other load


def test_the_diff_is_by_word():
    runs = [("=", "H is"), ("+", "always"), ("=", "a"), ("-", "hole."), ("+", "hole!")]
    assert word_diff("H is a hole.", "H is always a hole!") == runs
    assert word_diff("", "") == []

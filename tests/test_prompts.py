"""Prompt sets and the messages made from them."""

import re
from dataclasses import fields
from os.path import commonprefix
from pathlib import Path

import pytest

import oelkit.prompts as prompts_of
from oelkit import distill, evaluate, rollout
from oelkit.envs import BOARDS
from oelkit.prompts import (
    PromptSet,
    act_messages,
    extract_messages,
    load_prompt_set,
    with_experience,
    without_experience,
)
from oelkit.records import Outcome, State, Trajectory, Turn

BOARD = " a1P a2H\n b1. b2G"


def turn(reply="I go [down].", action="down", feedback="You moved to b1.", observation=BOARD):
    return Turn(observation, [], reply, action, feedback, 1, 1, False)


def game(*turns):
    return Trajectory("t", "e", 0, "m", 1, turns, Outcome.FAILURE, turns[-1].feedback)


def text(messages):
    assert [m["role"] for m in messages] == ["user"]
    return messages[0]["content"]


@pytest.mark.parametrize("name", ["paper", "brief"])
def test_sets_load_and_fill(name):
    prompts = load_prompt_set(name)
    assert prompts.name == name and prompts.board in BOARDS and prompts.max_new_tokens > 0
    asked = text(act_messages(prompts, BOARD, [turn()]))
    assert BOARD.strip("\n") in asked and not re.search(r"\{\w+\}", asked)
    read = text(extract_messages(prompts, game(turn()), "KNOWN"))
    assert "KNOWN" in read and "down" in read and not re.search(r"\{\w+\}", read)
    assert "KNOWN" not in text(extract_messages(prompts, game(turn())))


def test_paper_says_no_rule_of_the_game():
    for prompt in (
        act_messages(load_prompt_set("paper"), BOARD),
        act_messages(load_prompt_set("brief"), BOARD),
    ):
        assert not re.search(
            r"(?i)\b(hole|goal|ice|frozen|lake|wall|player|box|target|reach|avoid|push)",
            text(prompt),
        )


def test_history_shows_moves_and_feedback_not_the_reasoning():
    turns = [
        turn("SECRET THOUGHTS [down]"),
        turn("no idea", None, "No move found.", "SECOND BOARD"),
    ]
    asked = text(act_messages(load_prompt_set("paper"), "THIRD BOARD", turns))
    assert "You played [down]. You moved to b1." in asked
    assert "You played no move. No move found." in asked
    assert asked.index(BOARD.strip()) < asked.index("SECOND BOARD") < asked.index("THIRD BOARD")
    assert "SECRET" not in asked and "no idea" not in asked
    assert "this is turn 3" in asked and "at most 5 turns" in asked


def test_extraction_shows_the_whole_reply():
    read = text(
        extract_messages(
            load_prompt_set("paper"), game(turn("MY THOUGHTS [down]"), turn("X", None, "LOST"))
        )
    )
    assert read.index("MY THOUGHTS") < read.index("LOST")


@pytest.mark.parametrize("name", ["brief", "paper", "rules"])
def test_what_with_experience_adds_without_experience_takes_away(name):
    prompts = load_prompt_set(name)
    plain = act_messages(prompts, BOARD, [turn("I go down")])
    told = with_experience(prompts, plain, "E {x}")
    assert told != plain and without_experience([prompts], told, "E {x}") == plain
    for messages in (plain, told[1:], [{"role": "user", "content": None}]):
        with pytest.raises(ValueError, match=f"prompt set {name} puts|no place|no text"):
            without_experience([prompts], messages, "E {x}")


def test_experience_stands_behind_the_intro_and_before_all_that_differs():
    prompts = load_prompt_set("paper")
    plain = act_messages(prompts, BOARD, [turn()])
    told = text(with_experience(prompts, plain, "- EXPERIENCE ITEM: E"))
    intro = prompts.intro.strip("\n")
    assert told.startswith(intro)
    assert told.index(intro) < told.index("- EXPERIENCE ITEM: E") < told.index("Turn 1, the board")
    # only the block is new, and the text before it is the same for all states
    other = text(
        with_experience(prompts, act_messages(prompts, "OTHER", []), "- EXPERIENCE ITEM: E")
    )
    shared = told.index("- EXPERIENCE ITEM: E") + len("- EXPERIENCE ITEM: E")
    assert told[:shared] == other[:shared]
    block = prompts.experience.format(items="- EXPERIENCE ITEM: E")
    assert told.replace(block, "") == text(plain)


def test_experience_of_a_set_without_intro_comes_first_and_an_empty_one_changes_nothing():
    prompts = load_prompt_set("brief")
    plain = act_messages(prompts, BOARD)
    assert text(with_experience(prompts, plain, "E")).startswith("Notes, maybe wrong:\nE\nBoard:")
    assert with_experience(prompts, plain, "") == plain


def test_experience_goes_into_the_first_user_message_of_a_log_and_leaves_the_log_alone():
    log = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "C"},
    ]
    state = State("s", "t", 0, log)
    told = with_experience(load_prompt_set("paper"), state.prompt, "E")
    assert [m["content"] for m in (told[0], *told[2:])] == ["S", "B", "C"]
    assert told[1]["content"].endswith("A") and "E" in told[1]["content"]
    assert state.prompt[1]["content"] == "A"
    with pytest.raises(ValueError, match="no place for the experience"):
        with_experience(load_prompt_set("paper"), log[:1], "E")


def test_the_turns_of_a_conversation_share_their_beginning_with_the_experience(tiny):
    """The teacher's cache of one turn serves the next, as both contain the block."""
    prompt_set, experience = load_prompt_set("paper"), "- EXPERIENCE ITEM: E"
    first = act_messages(prompt_set, BOARD)
    second = [*first, {"role": "assistant", "content": "[up]"}, {"role": "user", "content": "?"}]
    ids = [tiny.encode(with_experience(prompt_set, m, experience)) for m in (first, second)]
    shared = tiny.decode(commonprefix(ids))
    assert shared.count(experience) == 1 and BOARD.strip() in shared


@pytest.mark.parametrize(
    "content, text",
    [
        ([{"type": "text", "text": "Which way?"}], "Which way?"),
        ([{"type": "input_text", "text": "A\n"}, {"type": "text", "text": "B"}, "C"], "A\nBC"),
        (None, ""),
        ([], ""),
    ],
)
def test_content_in_parts_or_none_is_read_as_its_text(tiny, content, text):
    parts, plain = ([{"role": "user", "content": c}] for c in (content, text))
    assert tiny.encode(parts) == tiny.encode(plain)
    for name in ("paper", "brief"):
        prompt_set = load_prompt_set(name)
        assert with_experience(prompt_set, parts, "E") == with_experience(prompt_set, plain, "E")
        assert with_experience(prompt_set, parts, "") == parts
    empty = [{"role": "user", "content": ""}]
    assert tiny.encode([{"role": "user", "tool_calls": []}]) == tiny.encode(empty)


@pytest.mark.parametrize("content", [[{"type": "image_url", "image_url": "x"}], [None], 3, {}])
def test_content_that_is_no_text_is_one_sentence(tiny, content):
    messages = [{"role": "user", "content": content}]
    with pytest.raises(ValueError, match="a message's content "):
        with_experience(load_prompt_set("brief"), messages, "E")
    with pytest.raises(ValueError, match=r"state 'log-7': a message's content "):
        distill(tiny, [State("log-7", "log", 0, messages)], ["E"], steps=1, batch_size=1)


def test_half_an_emoji_in_a_log_reaches_no_tokenizer(tiny):
    half, whole = ([{"role": "user", "content": f"Move {x}?"}] for x in ("\ud83d", "\ufffd"))
    assert tiny.encode(half) == tiny.encode(whole)


def test_braces_and_template_syntax_in_text_are_not_interpreted():
    nasty = "{observation} {0} {{x}} {% for %} %s {unknown!r:>9}"
    for name in ("paper", "brief"):
        prompts = load_prompt_set(name)
        asked = text(
            with_experience(prompts, act_messages(prompts, nasty, [turn(feedback=nasty)]), nasty)
        )
        assert asked.count(nasty) == (3 if name == "paper" else 2)  # brief shows no history
        read = text(extract_messages(prompts, game(turn(nasty, "down", nasty, nasty)), nasty))
        assert read.count(nasty) == (4 if name == "paper" else 3)  # brief shows no reply


def test_a_chat_template_does_not_interpret_it_either(tiny):
    nasty = "{{ 1 + 1 }} {% set x = 1 %} {observation}"
    assert nasty in tiny.decode(tiny.encode([{"role": "user", "content": nasty}]))


GOOD = {f.name: "''" for f in fields(PromptSet)} | {"max_new_tokens": "8", "chat": "false"}
GOOD |= {"experience": "'{items}'", "act": "'{observation}'", "extract": "'{game}'"}


def write(path, **changes):
    path.write_text(
        "".join(f"{k} = {v}\n" for k, v in (GOOD | changes).items() if v and k != "name")
    )
    return path


TALK = ["system", *["user", "assistant"] * 9]


def test_a_system_prompt_is_part_of_the_state(tmp_path, tiny):
    text = (Path(prompts_of.__file__).parent / "rules.toml").read_text("utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(text.replace("system = ''", "system = 'Be polite.'"))
    system, user = act_messages(load_prompt_set(path), "Hi", moves=())
    assert system == {"role": "system", "content": "Be polite."} and user["content"] == "Hi"
    tiny.base_lm.config.max_position_embeddings = 4096
    options = {"max_new_tokens": 4}
    for given, own in (("Play well.", "brief"), (None, path)):
        options |= {"prompt_set": own, "system": given}
        (game,) = rollout(tiny, "oelkit/FrozenLake3x3-v0", [1], "- an item", **options)
        roles = [[m["role"] for m in turn.prompt] for turn in game.turns]
        assert roles == [TALK[: 2 + 2 * n * (own == path)] for n in range(len(game.turns))]
        assert game.turns[0].prompt[0]["content"] == (given or "Be polite.")
        assert "- an item" in game.turns[0].prompt[1]["content"]
    report = evaluate(tiny, "oelkit/FrozenLake3x3-v0", [1], **options)
    assert report.trajectories[0].turns[0].prompt[0]["content"] == "Be polite."


def test_earlier_turns_are_messages_where_the_set_talks():
    prompts = load_prompt_set("rules")
    turns = [
        Turn("Q?", [], reply, "x", "No.", 1, 1, False) for reply in ("A\n", "<think>\n</think>B")
    ]
    first, second, third = (act_messages(prompts, "Q?", turns[:n]) for n in range(3))
    said = [m["content"] for m in third]
    assert first == [{"role": "user", "content": "Q?"}] and said == ["Q?", "A", "No.", "B", "No."]
    assert second == third[:3] and [m["role"] for m in third] == TALK[1:6]
    # a world whose board changes shows the new one
    assert act_messages(prompts, "Next?", turns[:1])[-1]["content"] == "No.\n\nNext?"


def test_a_set_of_ones_own(tmp_path):
    path = write(tmp_path / "mine.toml", act="'{{\"move\": ?}} {observation}'")
    assert text(act_messages(load_prompt_set(path), "B")) == '{"move": ?} B'
    assert load_prompt_set(str(path)).name == str(path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"act": "= ="}, "not valid TOML"),
        ({"act": None}, r"missing fields \['act'\]"),
        ({"acts": "''"}, r"unknown fields \['acts'\]"),
        ({"max_new_tokens": "'8'"}, "max_new_tokens must be int"),
        ({"board": "3"}, "board must be str"),
        (
            {"act": "'{board}'"},
            r"act cannot be filled in \(\{board\}\).*history observation turn max_turns",
        ),
        ({"act": "'{\"move\": 1}'"}, "act cannot be filled in.*twice"),
        ({"act": "'{'"}, "act cannot be filled in"),
        ({"act": "'Move?'"}, r"act does not use \{observation\}"),
        ({"experience": "'Notes: {{items}}'"}, r"experience does not use \{items\}"),
        ({"extract": "'{previous}'"}, r"extract does not use \{game\}"),
        ({"turn": "'{reply.x}'"}, "turn cannot be filled in"),
        # these fail, or fill the memory, only when something is filled in
        ({"turn": "'{reply.upper}'"}, "turn cannot be filled in"),
        ({"turn": "'{reply:>999999999999}'"}, "turn cannot be filled in"),
        ({"turn": "'{reply:{reply}}'"}, "turn cannot be filled in"),
    ],
)
def test_a_bad_set_is_one_clear_error(tmp_path, changes, message):
    path = write(tmp_path / "bad.toml", **changes)
    with pytest.raises(ValueError, match=message) as error:
        load_prompt_set(path)
    assert "bad.toml" in str(error.value)


def test_an_unknown_set_and_a_file_that_is_not_text(tmp_path):
    with pytest.raises(ValueError, match="no prompt set 'papre': choose one of brief, paper"):
        load_prompt_set("papre")
    with pytest.raises(ValueError, match="no prompt set '.*none.toml'"):
        load_prompt_set(tmp_path / "none.toml")
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="x.toml: not valid TOML"):
        load_prompt_set(tmp_path / "x.toml")


def test_a_later_window_keeps_the_numbers_of_its_turns():
    paper = load_prompt_set("paper")
    asked = text(extract_messages(paper, game(turn(), turn()), "", first=5))
    assert "Turn 6" in asked and "Turn 7" in asked and "Turn 1," not in asked


def test_what_a_plain_world_answers_is_shown_once_and_a_call_without_tools_is_text():
    rules, call = load_prompt_set("rules"), '<tool_call>{"name": "a", "arguments": {}}</tool_call>'
    played = turn(reply=call, feedback="Go on.", observation="Begin.")
    messages = act_messages(rules, "Go on.", [played])
    assert str(messages).count("Go on.") == 1 and not any(m.get("tool_calls") for m in messages)
    assert any(m.get("tool_calls") for m in act_messages(rules, "Go on.", [played], tools=[{}]))
    deep = '{"a": ' + "[" * 150 + "]" * 150 + "}"  # could not be read again from a file
    for arguments in ("[7]", deep):  # some templates fail at a list
        odd = turn(reply=call.replace("{}", arguments))
        assert not any(m.get("tool_calls") for m in act_messages(rules, "B", [odd], tools=[{}]))

"""The accumulation of draws."""

import importlib
import json
import re
import warnings
from collections import Counter
from dataclasses import asdict, replace

import pytest

from oelkit import load_policy, load_prompt_set, parse_items
from oelkit.config import Sampling
from oelkit.model.sampling import Reply
from oelkit.records import Outcome, Trajectory, Turn
from oelkit.steps.extraction import extract
from oelkit.text import MARKER, experience_text, join_experience, truncate_to_budget

module = importlib.import_module("oelkit.steps.extraction")  # `oelkit.extract` is the function
A, B = "Avoid 'H', it is a hole.", "The goal is at cell 9."
# real prompts and parsing around a scripted generator, as a random model writes no items


def games(n):
    turns = [turn(i, "[down]") for i in range(n)]
    ends = Outcome.FAILURE, "f"
    return [Trajectory(f"g{i}", "e", i, "m", 1, (t, t), *ends) for i, t in enumerate(turns)]


def turn(number, reply):
    return Turn(f"BOARD{number}", [], reply, "down", f"FEEDBACK{number}", 1, 1, False)


@pytest.fixture
def tiny(tiny):
    """The tiny policy, with room for many items in a prompt."""
    tiny.base_lm.config.max_position_embeddings = 16_384
    return tiny


@pytest.fixture
def script(monkeypatch):
    """Replace sampling: each prompt is answered by `say(prompt text)`. Records calls as lists of
    prompts.
    """
    calls = []

    def install(say):
        def generate(policy, prompts, **options):
            calls.append([policy.decode(p) for p in prompts])
            calls_options.append(options)
            return [Reply([5], say(text), False) for text in calls[-1]]

        monkeypatch.setattr(module, "generate", generate)
        return calls

    calls_options = install.options = []
    return install


def board(text):
    """Return the number of the game that a prompt shows."""
    return text.split("BOARD")[1].split("\n")[0]


def item(text):
    return f"{MARKER} from game {board(text)}"


def test_draws_are_batched_by_step_and_read_what_they_wrote(tiny, script):
    calls = script(item)
    items = extract(tiny, games(4), num_draws=3, round=2, prompt_set="paper")
    assert [len(call) for call in calls] == [3] * 4
    assert [i.draw for i in items] == [0] * 4 + [1] * 4 + [2] * 4
    orders = {tuple(i.text for i in items if i.draw == d) for d in range(3)}
    assert len(orders) > 1
    assert all(sorted(o) == [f"from game {g}" for g in range(4)] for o in orders)
    for step, call in enumerate(calls):  # each draw sees exactly its own earlier items
        for d, text in enumerate(call):
            assert text.count(MARKER.strip("- ")) == 1 + step  # the instruction names it once
            assert all(i.text in text for i in [i for i in items if i.draw == d][:step])
    first, (evidence,) = items[0], items[0].evidence
    assert len({i.id for i in items}) == len(items)
    assert first.round == 2 and first.model == tiny.name
    assert first.text == f"from game {evidence.trajectory_id[1:]}" and evidence.turn == 1
    assert len({o["seed"] for o in script.options}) == 4


def test_without_previous_experience_all_is_one_call(tiny, script):
    calls = script(item)
    options = {"num_draws": 2, "prompt_set": "paper"}
    shown = extract(tiny, games(4), show_previous=False, previous="OLD", **options)
    assert [len(call) for call in calls] == [8]
    assert not any("OLD" in text or "from game" in text for text in calls[0])
    assert extract(tiny, games(4), num_draws=2, previous="OLD", prompt_set="paper") == shown
    assert all("OLD" in text for call in calls[1:] for text in call)


def test_previous_experience_per_draw(tiny, script):
    calls = script(item)
    extract(tiny, games(1), ["OLD0", "OLD1"], num_draws=2, prompt_set="paper")
    assert ["OLD0" in t for t in calls[0]] == [True, False]
    assert ["OLD1" in t for t in calls[0]] == [False, True]


def test_the_cap_drops_the_oldest_of_all_that_is_known(tiny, script):
    calls = script(item)
    line = len(tiny.tokenizer(f"{MARKER} from game 0\n")["input_ids"])
    everything = extract(tiny, games(5), prompt_set="paper")
    assert len(everything) == 5
    kept = extract(tiny, games(5), "- old line", budget_tokens=3 * line, prompt_set="paper")
    assert [i.text for i in kept] == [i.text for i in everything[2:]]
    assert "- old line" in calls[5][0] and "- old line" not in calls[9][0]
    assert extract(tiny, games(2), budget_tokens=0, prompt_set="paper") == []
    joined = join_experience("a\nb", everything)
    assert joined.startswith("a\nb\n- EXPERIENCE ITEM: from")
    assert truncate_to_budget(joined, None, tiny.tokenizer) == joined
    assert truncate_to_budget("aaaa\nbb\nc", 4, tiny.tokenizer) == "bb\nc"
    assert truncate_to_budget("", 4, tiny.tokenizer) == ""


def test_thoughts_are_no_items_and_what_was_read_is_counted(tiny, script, capsys):
    thought = f"<think>{MARKER} a thought</think>\n"
    script(lambda text: thought + (item(text) if board(text) == "0" else "Nothing new."))
    (found,) = extract(tiny, games(3), progress=True, prompt_set="paper")
    assert found.text == "from game 0"
    out = capsys.readouterr().out
    assert re.fullmatch(r"extract: 3 readings in \S+, games=3, items=1\n", out), out


def test_the_embedded_model_is_told_of_chats_without_a_board(tiny, script):
    script(item)
    tiny.name, chats = "micro", [replace(game, env_id="log") for game in games(1)]
    with pytest.warns(UserWarning, match="understands only boards"):
        extract(tiny, chats, prompt_set="paper")
    seen = replace(chats[0].turns[0], prompt=[{"role": "user", "content": "Board:\n4x4"}])
    with warnings.catch_warnings(action="error"):
        extract(tiny, [replace(chats[0], turns=(seen,))], prompt_set="paper")
        extract(tiny, games(1), prompt_set="paper")


def test_tools_that_the_template_leaves_out_are_told_before_the_reading(tiny, script):
    script(item)
    (game,) = games(1)
    tools = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
    prompt = [{"role": "user", "content": "Hi", "tools": tools}]
    turns = replace(game.turns[0], prompt=prompt), game.turns[0]
    with pytest.warns(UserWarning, match="leave out 1 of the 2 replies .* shows no tools"):
        extract(tiny, [replace(game, env_id="log", turns=turns)], prompt_set="paper")


def test_a_thought_that_the_template_opens_gives_no_items(tiny_model, script):
    thinking = load_policy(tiny_model, enable_thinking=True)
    thinking.base_lm.config.max_position_embeddings = 16_384
    script(item)  # the thought does not end
    assert extract(thinking, games(2), prompt_set="paper") == []
    script(lambda text: f"{item(text)} not</think>{item(text)}")
    assert [i.text for i in extract(thinking, games(1), prompt_set="paper")] == ["from game 0"]


def test_sampling_as_settings_or_as_keywords(tiny, script):
    script(item)
    given = Sampling(temperature=0, top_p=0.5, top_k=3, max_new_tokens=2, batch_tokens=300)
    extract(tiny, games(1), "", given, prompt_set="paper", seed=1)
    extract(tiny, games(1), **asdict(given), prompt_set="paper", seed=1)
    assert script.options == [{**asdict(given), "seed": 1009}] * 2


def test_nothing_new_is_an_answer(tiny, script):
    said = {"0": "NOTHING NEW", "1": f"{MARKER} Nothing new.", "2": f"{MARKER} None", "3": "Hm."}
    script(lambda text: said[board(text)])
    rows = []
    assert extract(tiny, games(4), prompt_set="rules", on_step=rows.append) == []
    assert [sum(row[key] for row in rows) for key in ("empty", "nothing_new")] == [4, 3]
    assert parse_items(f"{MARKER} There is nothing new in column 2.") != []
    assert "NOTHING NEW" in load_prompt_set("rules").extract


def long_game(turns, words=60):
    return replace(games(1)[0], turns=tuple(turn(i, "word " * words) for i in range(turns)))


@pytest.mark.parametrize("shown", [True, False])
def test_a_long_session_is_read_in_windows_of_whole_turns(tiny, script, shown):
    calls = script(lambda text: f"{MARKER} seen {board(text)}")
    game, asked = long_game(12), {"prompt_set": "rules", "max_new_tokens": 100}
    tiny.base_lm.config.max_position_embeddings = 2_200
    parts = [replace(games(2)[1], id=f"g0-{n}") for n in range(1, 12)]
    items = extract(tiny, [game, *parts], num_draws=2, show_previous=shown, **asked)
    texts = [text for call in calls for text in call]
    assert all(len(tiny.encode([{"role": "user", "content": t}])) < 2_200 for t in texts)
    told = Counter(i for t in texts for i in range(2, 12) if f"FEEDBACK{i}\n" in t)
    assert set(told.values()) == {2} and len(told) == 10  # each turn once in each draw
    assert len(items) > 4 and len({item.id for item in items}) == len(items)
    later = [i for i in items if i.draw == 0 and i.evidence[0].trajectory_id == "g0"]
    first = later[0]
    assert [i.evidence[0].turn for i in later] == sorted(i.evidence[0].turn for i in later)
    assert later[-1].evidence[0].turn == 11
    second = next(t for t in texts if f"BOARD{first.evidence[0].turn + 1}" in t)
    assert f"{MARKER} {first.text}" in second  # items from the previous window


@pytest.mark.parametrize("context", [16_384, 2_200])
def test_the_evidence_is_the_turn_that_taught_the_item_also_in_a_window(tiny, script, context):
    said = f"{MARKER} Answer with feedback8."
    script(lambda text: said if "FEEDBACK8" in text else "NOTHING NEW")
    tiny.base_lm.config.max_position_embeddings = context
    asked = {"prompt_set": "rules", "max_new_tokens": 100, "show_previous": False}
    items = extract(tiny, [long_game(12)], **asked)
    assert [item.evidence[0].turn for item in items] == [8]


def test_a_session_that_fits_is_read_once(tiny, script):
    calls = script(item)
    extract(tiny, [long_game(12)], prompt_set="rules")
    assert len(calls) == 1


def test_what_is_known_gives_way_to_a_turn_and_a_turn_that_never_fits_is_named(tiny, script):
    calls = script(lambda text: "NOTHING NEW")
    tiny.base_lm.config.max_position_embeddings = 1_600
    known = "\n".join(f"{MARKER} rule {i} of many" for i in range(60))
    extract(tiny, [long_game(1)], known, prompt_set="rules", max_new_tokens=100)
    assert "rule 59" in calls[0][0] and "rule 0 " not in calls[0][0]
    with pytest.raises(ValueError, match=r"turn 1 of 'g0' alone takes .* leave this game out"):
        extract(tiny, [long_game(1, 600)], prompt_set="rules", max_new_tokens=100)
    assert len(calls) == 1
    with pytest.warns(UserWarning, match="1 of 2 games are left out because a turn"):
        extract(tiny, [games(2)[1], long_game(1, 600)], prompt_set="rules", max_new_tokens=100)
    assert len(calls) == 2


def test_another_writer_answers_in_place_of_the_policy(tiny, script):
    calls, asked = script(item), []

    def writer(messages):
        asked.append(messages)
        assert json.dumps(messages, ensure_ascii=False).encode()  # as a client of an API does
        return f"<think>so</think>{MARKER} Do: go on."

    half = [replace(g, turns=(replace(g.turns[0], reply="\ud83d"),)) for g in games(2)]
    items = extract(tiny, half, writer=writer, prompt_set="rules")
    assert [i.text for i in items] == ["Do: go on."] * 2 and calls == []
    assert "BOARD" in asked[0][0]["content"] and f"{MARKER} Do: go on." in asked[1][0]["content"]


def test_each_step_tells_how_many_replies_gave_no_item(tiny, script):
    def say(text):
        said = {"0": item(text), "1": f"{item(text)}\n{item(text)} too"}
        return said.get(board(text), "Nothing new.")

    script(say)
    for shown in (True, False):
        rows = []
        options = {"num_draws": 2, "prompt_set": "paper", "on_step": rows.append}
        extract(tiny, games(3), show_previous=shown, **options)
        assert [row["replies"] for row in rows] == ([2, 2, 2] if shown else [6])
        assert [sum(row[key] for row in rows) for key in ("empty", "items")] == [2, 6]
    rows = []
    extract(tiny, games(1), strict=True, prompt_set="paper", on_step=rows.append)
    script(lambda text: "### EXPERIENCE ITEM: x")
    extract(tiny, games(1), strict=True, prompt_set="paper", on_step=rows.append)
    assert [row["empty"] for row in rows] == [0, 1]


def test_a_reply_that_goes_in_circles_is_one_item_and_its_cut_off_end_none(tiny, monkeypatch):
    """A 1.5B model wrote the same sentence about a game 72 times, until max_new_tokens."""
    text = f"{MARKER} {A}\n{MARKER} {B}\n" + f"{MARKER} {A}\n" * 70 + f"{MARKER} {A[:9]}"
    for cut, told in ((True, [A, B]), (False, [A, B, A[:9]])):
        monkeypatch.setattr(module, "generate", lambda *_, **__: [Reply([5], text, cut)])
        assert [item.text for item in extract(tiny, games(1), prompt_set="paper")] == told


def test_strict_is_passed_on(tiny, script):
    script(lambda text: "### EXPERIENCE ITEM: x")
    assert extract(tiny, games(1), strict=True, prompt_set="paper") == []
    assert experience_text(extract(tiny, games(1), prompt_set="paper")) == "- EXPERIENCE ITEM: x"


def test_a_random_model_goes_through_and_a_seed_fixes_it(tiny):
    options = {"num_draws": 2, "prompt_set": "brief", "max_new_tokens": 4}
    assert extract(tiny, games(3), **options) == extract(tiny, games(3), **options) == []


def test_errors(tiny):
    with pytest.raises(ValueError, match="list of trajectories is empty"):
        extract(tiny, [])
    with pytest.raises(ValueError, match="0 draws"):
        extract(tiny, games(1), num_draws=0)
    with pytest.raises(ValueError, match="2 draws with 1 previous"):
        extract(tiny, games(1), ["x"], num_draws=2)
    with pytest.raises(ValueError, match="budget_tokens=-5"):
        extract(tiny, games(1), budget_tokens=-5)


def test_games_of_one_id_are_an_error_before_the_first_reply(tiny, script):
    """Such as games of two adapters on the same maps: no curation would accept their items."""
    calls = script(lambda prompt: f"{MARKER} {A}")
    with pytest.raises(ValueError, match="2 trajectories are called 'g1'"):
        extract(tiny, [*games(3), games(2)[1]], num_draws=1)
    assert calls == []


def test_a_writers_text_is_not_read_as_the_thought_that_the_policys_template_begins(
    tiny, monkeypatch
):
    monkeypatch.setattr(type(tiny), "answer_text", lambda *_: "")
    items = extract(tiny, games(1), writer=lambda asked: "- EXPERIENCE ITEM: K opens.")
    assert [item.text for item in items] == ["K opens."]


def test_an_extraction_that_no_request_of_a_server_answered_is_no_empty_result(tiny, monkeypatch):
    failed = module.Reply([], "", False, OSError("gone"))
    monkeypatch.setattr(module, "generate", lambda policy, prompts, **how: [failed] * len(prompts))
    with pytest.raises(RuntimeError, match="answered no request"):
        extract(tiny, games(2), num_draws=2)

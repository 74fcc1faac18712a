"""The trajectory viewer without a browser: what it sends to the page, and what a saved notebook
keeps.
"""

import dataclasses
import json

import pytest
from helpers import make_game

from oelkit import Run, Settings
from oelkit.curation import Curation
from oelkit.envs import make
from oelkit.logs import read_chats
from oelkit.model import source
from oelkit.records import Evidence, ExperienceItem, Outcome, Trajectory, Turn, write_jsonl
from oelkit.views import app
from oelkit.views.widgets import experience_editor, trajectory_viewer

EVIL = "<script>alert(1)</script>"


def asked(view, **message):
    """Return the view's answer to a message of the page."""
    heard = []
    view.send = lambda content, buffers=None: heard.append(json.loads(content["json"]))
    view._handle_custom_msg(message, [])
    return heard[0] if heard else None


def log(id="log", **changes):
    turn = dict(
        observation="dialogue",
        prompt=[{"role": "user", "content": "hi"}],
        reply="on it: lookup(7), then lookup(7)",
        action="lookup(7)",
        feedback="done",
        prompt_tokens=3,
        reply_tokens=9,
        truncated=False,
    )
    return Trajectory(
        id, "logs", None, "m", 1, (Turn(**{**turn, **changes}),), Outcome.UNKNOWN, "done"
    )


def test_conversations_are_told_apart_by_what_the_user_says_first():
    asks = ["Answer with one query: how many orders?", "Answer with one query: which city?", EVIL]
    said = [asks[0], *([{"type": "text", "text": ask}] for ask in asks[1:])]
    chats = [log(ask, prompt=[{"role": "user", "content": x}]) for ask, x in zip(asks, said)]
    words = lambda view: [row[-1] for row in asked(view, kind="index")["rows"]]  # noqa: E731
    assert words(trajectory_viewer([*chats, make_game(("[up]",))])) == [*asks, ""]
    assert words(trajectory_viewer(chats[:2])) == ["… how many orders?", "… which city?"]
    assert "&lt;script" in trajectory_viewer(chats).static_html


def test_index_is_light_and_knows_arms_and_maps():
    a, b, c = (
        make_game(("[left]", "[right]")),
        make_game(("[up]",) * 3),
        make_game(("[up]",), seed=7),
    )
    view = trajectory_viewer(
        {"base": [a], "consolidated": [b, c, dataclasses.replace(c, turns=())]}
    )
    rows = asked(view, kind="index")["rows"]
    assert [(r[3], r[5]) for r in rows] == [
        ("base", 2),
        ("consolidated", len(b.turns)),
        ("consolidated", 1),
    ]
    assert rows[0][8] == rows[1][8] != rows[2][8], "games of one map belong together"
    extra = dataclasses.replace(a, extra={"arm": "in_context"})
    assert (
        asked(trajectory_viewer([extra, log("x"), log("y")]), kind="index")["rows"][0][3]
        == "in_context"
    )
    many = [dataclasses.replace(b, id=f"FrozenLake4x4-v0-r1-m{i}-s1-0") for i in range(2000)]
    view = trajectory_viewer(many)
    assert len(json.dumps(asked(view, kind="index"))) < 250_000
    whole, small = (
        len(json.dumps(v.get_state(), default=str)) for v in (view, trajectory_viewer(many[:1]))
    )
    assert whole == small < 60_000, "a saved notebook would carry it"
    assert len(view.static_html) < 20_000 and "1,960 more" in view.static_html


def test_maps_of_logs_are_told_apart_by_seed_or_not_at_all():
    seeded = [dataclasses.replace(log(str(i)), seed=i // 2) for i in range(4)]
    maps = [
        r[8] for r in asked(trajectory_viewer([*seeded, log("a"), log("b")]), kind="index")["rows"]
    ]
    assert maps[0] == maps[1] != maps[2] == maps[3] and len(set(maps)) == 4


def test_a_turn_says_where_the_action_was_and_what_was_thought():
    game = make_game(
        ("<think>\n[up] or [left]?\n</think>\n\nNot [left]: [ Right ] is it.", "[a] or not"), seed=1
    )
    first, second = asked(trajectory_viewer([game]), kind="game", game=0)["turns"]
    assert first["thinking"] == "[up] or [left]?" and first["reply"] == [
        "Not [left]: ",
        "[ Right ]",
        " is it.",
    ]
    assert second["reply"][1] == "[a]" and second["thinking"] == ""
    assert first["cells"] and first["kinds"]["H"] == "hole" and first["action"] == "right"
    turn = asked(trajectory_viewer([log()]), kind="game", game=0)["turns"][0]
    assert turn["reply"] == ["on it: lookup(7), then ", "lookup(7)", ""] and turn["cells"] == []
    for reply, thinking, answer in (
        ("<think>and on", "and on", ""),
        ("", "", ""),
        ("a</think>", "a", ""),
        ("[THINK]a[/THINK]b", "a", "b"),
    ):
        turn = asked(trajectory_viewer([log(reply=reply, action=None)]), kind="game", game=0)[
            "turns"
        ][0]
        assert (turn["thinking"], turn["reply"]) == (thinking, [answer, "", ""])


def test_boards_of_all_worlds_and_renamed_symbols():
    for env_id in ("oelkit/Sokoban-v0", "oelkit/FrozenLake-v0"):
        for board in ("grid", "labelled"):
            observation = make(env_id, board=board).reset(seed=3)[0]
            turn = asked(trajectory_viewer([log(observation=observation)]), kind="game", game=0)[
                "turns"
            ][0]
            assert {s for row in turn["cells"] for s in row} <= set(turn["kinds"])
            assert ("wall" in [turn["kinds"][s] for s in turn["cells"][0]]) == ("Sokoban" in env_id)
    swapped = {"G": "hole", "H": "goal"}
    turn = asked(trajectory_viewer([make_game()], kinds=swapped), kind="game", game=0)["turns"][0]
    assert turn["kinds"] == swapped
    ragged = "|  P  |  H  |\n|  G  |"
    assert (
        asked(trajectory_viewer([log(observation=ragged)]), kind="game", game=0)["turns"][0][
            "cells"
        ]
        == []
    )


def test_search_reads_observations_replies_and_feedback():
    view = trajectory_viewer(
        [log("a"), log("b", reply="Straße", feedback="A.*B"), log("c", observation="LOOKUP")]
    )
    assert asked(view, kind="search", text="lookup")["hits"] == [[0, 0], [2, 0]]
    assert asked(view, kind="search", text="STRASSE")["hits"] == []
    assert asked(view, kind="search", text="a.*b")["hits"] == [[1, 0]]
    assert asked(view, kind="search", text="")["hits"] == []


def test_from_an_item_to_its_evidence_and_back(tmp_path):
    games, gone = [log("x"), make_game(("[left]", "[right]"))], []
    id = games[1].id
    items = [
        ExperienceItem(
            "i", "H is a hole.", (Evidence(id, 1), Evidence(id, 1), Evidence("?", 0)), "m", 1, 0
        )
    ]
    curation = Curation(items)
    view = trajectory_viewer(games, items=curation, on_item=gone.append)
    view.show(id, 1)
    assert view.at == {"game": 1, "turn": 1, "other": None}
    curation.edit("i", "H drowns you.")
    turns = asked(view, kind="game", game=1)["turns"]
    assert [t["items"] for t in turns] == [[], [["i", "H drowns you.", "pending"]]]
    asked(view, kind="item", id="i")
    assert gone == ["i"]
    editor = experience_editor(curation, games=games, on_turn=view.show)
    view.at, view._on_item, heard = {"game": 0, "turn": 0, "other": None}, editor.show, []
    editor.send = lambda content, buffers=None: heard.append(json.loads(content["json"]))
    editor._handle_custom_msg({"op": "turn", "ids": [id], "to": 1}, [])
    assert view.at == {"game": 1, "turn": 1, "other": None}
    asked(view, kind="item", id="i")
    assert heard[-1]["at"] == "i" and heard[-1]["reveal"]
    for wrong in ((id, 2), (id, -1), ("nobody", 0)):
        with pytest.raises(ValueError, match="not among the 2 games"):
            view.show(*wrong)
    assert view.at["game"] == 1


def test_an_id_of_several_games_opens_none_silently():
    """Games of two adapters on the same maps can share their ids."""
    base, after = make_game(("[right]",)), make_game(("[up]", "[right]", "[left]"))
    assert base.id == after.id and len(after.turns) > len(base.turns)
    view = trajectory_viewer({"base": [base], "consolidated": [after]})
    view.show(base.id, 0, arm="consolidated")
    assert view.at["game"] == 1
    view.show(base.id, 0, arm="base")
    assert view.at["game"] == 0
    view.show(base.id, len(after.turns) - 1)  # only one of them has that turn
    assert view.at["game"] == 1
    with pytest.raises(ValueError, match="names 2 games: pass arm=, one of 'base', 'consolidated'"):
        view.show(base.id)
    twice = trajectory_viewer([base, base])  # the same game, listed twice
    twice.show(base.id)
    assert twice.at["game"] == 0


def test_messages_of_a_transcript():
    """A log grows by its messages. A text game that repeats its history shows the observation."""
    call = {"function": {"name": "look", "arguments": {"at": "7"}}}
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "On it.", "tool_calls": [call, call]},
        {"role": "tool", "content": "7 it is"},
        {"role": "tool", "content": "8 too"},
        {"role": "assistant", "content": "7."},
        {"role": "user", "content": "thanks"},
    ]
    game = asked(trajectory_viewer(read_chats([{"messages": talk}])), kind="game", game=0)
    said = [[(m["role"], m["text"]) for m in turn["before"]] for turn in game["turns"]]
    assert said == [
        [("system", "Be brief."), ("user", "hi")],
        [("tool", "7 it is"), ("tool", "8 too")],
    ]
    look = ["look", '{\n "at": "7"\n}']
    assert [turn["calls"] for turn in game["turns"]] == [[look, look], []]
    assert ["".join(turn["reply"]) for turn in game["turns"]] == ["On it.", "7."]
    assert [turn["feedback"] for turn in game["turns"]] == ["", "thanks"]
    turns = [
        Turn(
            f"so far {n}",
            [{"role": "user", "content": f"all, so far {n}"}],
            "x",
            "x",
            f,
            1,
            1,
            False,
        )
        for n, f in enumerate(("so far 1", "lost"))
    ]
    words = Trajectory("w", "words", None, "m", 1, tuple(turns), Outcome.FAILURE, "lost")
    game = asked(trajectory_viewer([words]), kind="game", game=0)
    assert [turn["before"][0]["text"] for turn in game["turns"]] == ["so far 0", "so far 1"]
    assert [turn["feedback"] for turn in game["turns"]] == ["", "lost"], "once is enough"
    board = asked(trajectory_viewer([make_game()]), kind="game", game=0)
    assert not board["chat"] and "before" not in board["turns"][0]


@pytest.mark.parametrize(
    "strange, shown",
    [
        ({"role": None, "content": {"a": 1}}, '{"a": 1}'),
        ({"role": "assistant", "content": "x", "tool_calls": [{"id": 1}]}, "x"),
        ({"role": "assistant", "content": "x", "tool_calls": 5}, "x"),
        ({"role": "user", "content": "x", "tools": 5}, "x"),
        ({"role": "user", "content": "x", "tools": {"name": "look"}}, "x"),
    ],
)
def test_a_message_of_an_unknown_form_is_shown(strange, shown):
    """Otherwise the page would wait for a stranger's game and say that the kernel has stopped."""
    turn = Turn("o", [strange], "r", "a", "", 0, 0, False)
    game = Trajectory("g", "log", None, "m", 0, (turn,), Outcome.UNKNOWN, "")
    message = asked(trajectory_viewer([game]), kind="game", game=0)["turns"][0]["before"][0]
    assert message["text"] == shown and len(message["tools"]) == ("tools" in strange)


def test_notes_of_an_arm_are_of_that_arm(tmp_path):
    game, log = make_game(("[left]",)), tmp_path / "comments.jsonl"
    view = trajectory_viewer({"base": [game], "after": [game]}, comments=Curation([], log))
    heard = asked(view, kind="note", game=1, turn=0, texts=["#odd"])
    assert [note[:4:3] for note in heard["notes"]] == [[1, "#odd"]] and heard["wrong"] == ""
    again = asked(view, kind="note", game=1, turn=0, texts=["#odd"])
    assert again["notes"] == heard["notes"], "a game has a tag once"
    for i, k in ((5, 0), (1, 1)):  # no such game, no such turn
        assert asked(view, kind="note", game=i, turn=k, texts=["x"]) is None
    assert "empty" in asked(view, kind="note", game=0, turn=0, texts=[" "])["wrong"]
    alone = trajectory_viewer([game], comments=Curation([], log))
    assert asked(alone, kind="undo")["notes"] == []
    assert "nothing to undo" in asked(alone, kind="undo")["wrong"]
    log.write_text("[]\n")  # the page gets an answer even if the log cannot be read again
    assert "expected an object" in asked(alone, kind="note", game=0, turn=0, texts=["x"])["wrong"]


def test_apps_keep_notes_with_the_run_or_beside_the_file(tmp_path):
    one = tmp_path / "run/round_1"
    one.mkdir(parents=True)
    for folder in (one, tmp_path):
        write_jsonl(folder / "trajectories.jsonl", [make_game(("[left]",))])
    paths = [app.viewer(f / "trajectories.jsonl").comments.log_path for f in (one, tmp_path)]
    assert paths == [f / "trajectories.comments.jsonl" for f in (one, tmp_path)]
    (tmp_path / "run/run.json").write_text("{}")
    view = app.viewer(one / "trajectories.jsonl")
    assert view.comments.log_path == tmp_path / "run/comments.jsonl"


def test_an_editors_prompt_has_the_tools_and_the_thinking_of_its_run(tmp_path, monkeypatch):
    class Tokenizer:
        def __call__(self, text):
            return len(text)

        def apply_chat_template(self, messages, tools=None, **how):
            said = "".join(part["text"] for m in messages for part in m["content"] or ())
            return f"{said} {tools} {how['enable_thinking']}"

    monkeypatch.setattr(source, "load_tokenizer", lambda model: Tokenizer())
    run = Run(tmp_path / "run", Settings.of("tiny", enable_thinking=False), progress=False)
    prompt = [{"role": "user", "content": "Look!", "tools": [{"name": "look"}]}]
    write_jsonl(run.round_folder(1) / "trajectories.jsonl", [log(prompt=prompt)])
    write_jsonl(run.round_folder(1) / "items.jsonl", [])
    editor = app.editor(run.round_folder(1) / "items.jsonl")
    assert editor.prompt("") == "Look! [{'name': 'look'}] False"


def test_wrong_types_are_told_in_a_sentence():
    for wrong in ([{}], "games.jsonl", {"base": [None]}):
        with pytest.raises(TypeError, match="trajectories: expected a list of Trajectory"):
            trajectory_viewer(wrong)
    with pytest.raises(
        TypeError, match="expected a Curation, such as Curation.items., got the list"
    ):
        experience_editor([])


def test_strange_messages_are_ignored():
    view = trajectory_viewer([log()])
    for message in (
        {},
        {"kind": "game", "game": 1},
        {"kind": "game", "game": -1},
        {"kind": "game", "game": "0"},
        {"kind": "search", "text": 5},
        {"kind": "item", "id": "i"},
        {"kind": "show"},
    ):
        assert asked(view, **message) is None
    games = asked(view, kind="export", games=["0", None, [], 1, 0.0, 0])["text"]
    assert len(games.splitlines()) == 1
    with pytest.raises(ValueError, match="no trajectory"):
        trajectory_viewer([])


def test_saved_notebooks_keep_a_table():
    bundle, _ = trajectory_viewer([make_game(("[left]", EVIL)), log(EVIL)])._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "&lt;script" in bundle["text/html"] and "<script" not in bundle["text/html"]
    assert "left ?" in bundle["text/html"] and "lookup(7)" in bundle["text/html"]
    alone = trajectory_viewer([log(EVIL)]).static_html
    assert "<th>conversation</th>" in alone and "moves" not in alone and "<td>?</td>" not in alone

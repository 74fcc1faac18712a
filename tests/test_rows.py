"""Records for other programs: they can read the files, and TRL trains on them."""

import json
from dataclasses import replace

import pytest
from helpers import make_game, make_model

from oelkit import __main__ as cli
from oelkit.curation import Curation
from oelkit.logs import read_chats
from oelkit.prompts import load_prompt_set, with_experience
from oelkit.records import (
    Evidence,
    ExperienceItem,
    State,
    Trajectory,
    from_dict,
    read_jsonl,
    to_dict,
    write_jsonl,
)
from oelkit.rows import plain_rows, training_rows, write_rows
from oelkit.runs.files import write_json
from oelkit.runs.settings import Settings
from oelkit.steps.rollouts import states as states_of

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"at": "string"}}}]
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "a2"}}}
PROMPT = [
    {"role": "system", "content": "Be brief.", "tools": TOOLS},
    {
        "role": "user",
        "content": [{"type": "text", "text": "Where "}, {"type": "text", "text": "?"}],
    },
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "a hole"},
]


def items():
    return [
        ExperienceItem(f"i{n}", f"Item {n}", (Evidence("t", n),), "micro", 1, n % 2, extra)
        for n, extra in enumerate(({}, {"mark": {"by": "Eva"}}, {"mark": {"score": 3}}))
    ]


@pytest.mark.parametrize("end", [".jsonl", ".parquet", ""])
def test_trajectories_and_items_come_back_from_each_format(tmp_path, end):
    pytest.importorskip("datasets", reason="Parquet and data sets need oelkit[logs]")
    import datasets
    import pandas

    games = [make_game(seed=3), make_game(("[down]",), seed=4)]
    # Arrow takes no half emojis
    half = replace(games[0], feedback="half \ud83d", extra={"\ud83d": 1})
    write_rows(path := tmp_path / f"half{end}", [half])
    if end == ".parquet":
        assert pandas.read_parquet(path)["feedback"][0] == "half \ufffd"
    for name, records, kind in (("games", games, Trajectory), ("items", items(), ExperienceItem)):
        write_rows(path := tmp_path / f"{name}{end}", records)
        if end == ".jsonl":
            back = [json.loads(line) for line in path.read_text().splitlines()]
        elif end:
            back = datasets.Dataset.from_parquet(str(path)).to_list()
            assert len(pandas.read_parquet(path)) == len(records)
        else:
            back = datasets.load_from_disk(str(path)).to_list()
        texts = [{k: v for k, v in row.items() if k != "mark"} for row in back]
        marks = [row.get("mark") for row in back]
        marks = [json.loads(mark) if isinstance(mark, str) else mark for mark in marks]
        bare = [{k: v for k, v in to_dict(r).items() if k != "mark"} for r in records]
        assert [to_dict(from_dict(kind, row)) for row in texts] == [
            to_dict(from_dict(kind, row)) for row in bare
        ]
        assert marks == [to_dict(r).get("mark") for r in records]


@pytest.mark.parametrize("end", [".parquet", ""])
def test_what_a_world_added_comes_back_as_it_was(tmp_path, end):
    pytest.importorskip("datasets", reason="Parquet and data sets need oelkit[logs]")
    added = '{"a": 1}', "[1]", '"quoted"', '"G" is it', "{no JSON", [1, "a"], [{"a": 1}, {"b": {}}]
    for extra in added:
        game = make_game(seed=3)
        turn = replace(game.turns[0], extra={"x": extra})
        games = [replace(game, extra={"x": extra}, turns=(turn,))]
        write_rows(path := tmp_path / f"{added.index(extra)}{end}", games)
        assert read_chats(path, redact=None) == games
    said = ExperienceItem("i", '"H"', (), "m", 1, 0)
    assert plain_rows([said])[0]["text"] == '"H"'


@pytest.mark.parametrize("end", [".parquet", ""])
def test_what_a_column_cannot_hold_is_refused_in_a_sentence(tmp_path, end):
    pytest.importorskip("datasets", reason="Parquet and data sets need oelkit[logs]")
    game = make_game(seed=3)
    mixed = [replace(game, extra={"x": x}) for x in (1, "a")]
    for games in (mixed, [replace(game, seed=2**70)]):
        with pytest.raises(ValueError, match="data.*: a field has values of .* write .jsonl"):
            write_rows(tmp_path / f"data{end}", games)
        assert not (tmp_path / f"data{end}").exists()


def test_messages_with_tools_and_parts_have_one_type_for_each_column():
    row = plain_rows([{"prompt": PROMPT}, {"prompt": [{"role": "user", "content": "Hi"}]}])[0]
    system, user, call, result = row["prompt"]
    assert json.loads(system["tools"]) == TOOLS and user["content"] == "Where ?"
    assert call["content"] == "" and json.loads(call["tool_calls"]) == [CALL]
    assert result == {"role": "tool", "content": "a hole"}
    datasets = pytest.importorskip("datasets")
    rows = plain_rows([{"prompt": PROMPT}, {"prompt": PROMPT[1:2]}])
    back = datasets.Dataset.from_list(rows)[0]["prompt"]
    assert json.loads(back[2]["tool_calls"]) == [CALL] and back[1]["tool_calls"] is None


def test_training_rows_say_what_oelkits_teacher_reads():
    prompts = load_prompt_set("brief")
    states = states_of([make_game(seed=3)])
    texts = ["- EXPERIENCE ITEM: one", "", "- EXPERIENCE ITEM: two {braces}"]
    for i, row in enumerate(training_rows(states, texts, prompts)):
        assert row["prompt"] == states[i].prompt and set(row) == {"prompt", "privileged_context"}
        assert texts[2 * (i % 2)] in row["privileged_context"]
    for i, row in enumerate(training_rows(states, texts, prompts, "ms-swift")):
        read = with_experience(prompts, states[i].prompt, texts[2 * (i % 2)])
        assert row == {"messages": states[i].prompt, "teacher_prompt": read[-1]["content"]}


def test_states_that_a_trainer_does_not_take_are_counted_or_refused():
    prompts = load_prompt_set("brief")
    bad = [State("a", "t", 0, PROMPT), State("b", "t", 1, [PROMPT[1] | {"tools": TOOLS}])]
    good = State("c", "t", 2, [{"role": "system", "content": "S"}, PROMPT[1]])
    with pytest.warns(UserWarning, match="2 of 3 states have tools or do not end with the user"):
        (row,) = training_rows([*bad, good], "text", prompts)
    assert row["prompt"][1] == {"role": "user", "content": "Where ?"}
    picture = [{"type": "image_url", "image_url": {"url": "x"}}]
    seen = State("p", "t", 3, [{"role": "user", "content": picture}])
    assert json.loads(plain_rows([seen])[0]["prompt"][0]["content"]) == picture
    with pytest.raises(ValueError, match="state 'p': .* kind 'image_url', not text"):
        training_rows([good, seen], "text", prompts)
    with pytest.raises(ValueError, match="state 'r': a message has no role"):
        training_rows([good, State("r", "t", 4, [{"content": "Where ?"}])], "text", prompts)
    with pytest.warns(UserWarning, match="1 of 2 states"):
        assert training_rows([good, State("empty", "t", 5, [])], "text", prompts) == [row]
    with pytest.raises(ValueError, match="2 of 2 states .*: ms-swift takes none"):
        training_rows(bad, "text", prompts, "ms-swift")
    with pytest.raises(ValueError, match="0 texts: use trl or ms-swift"):
        training_rows([good], " ", prompts)
    with pytest.raises(ValueError, match="to='verl'"):
        training_rows([good], "text", prompts, "verl")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder with one round: games, items (one rejected), states, experience."""
    monkeypatch.chdir(tmp_path)
    prompts = {**vars(load_prompt_set("brief"))}
    record = {"form": 2, "settings": vars(Settings(rounds=1)), "prompts": prompts}
    folder = tmp_path / "run" / "round_1"
    folder.mkdir(parents=True)
    write_json(folder.parent / "run.json", record)
    games = [make_game(seed=3), make_game(seed=4)]
    write_jsonl(folder / "trajectories.jsonl", games)
    write_jsonl(folder / "states.jsonl", states_of(games))
    write_jsonl(folder / "items.jsonl", items())
    curation = Curation.open(folder / "items.jsonl", folder / "curation.jsonl")
    curation.reject("i0")
    curation.accept(["i1", "i2"])
    (folder / "experience.md").write_text("## Draw 0\n- EXPERIENCE ITEM: H is a hole.\n")
    return folder.parent


def test_the_command_writes_what_it_is_asked_for(run, capsys):
    for what, n in (("trajectories", 2), ("items", 2), ("trl", None), ("ms-swift", None)):
        out = run / f"{what}.jsonl"
        assert cli.main(["data", f"{run}/", "--what", what, "--out", str(out)]) == 0
        n = n or len(read_jsonl(run / "round_1/states.jsonl"))
        assert len(out.read_text().splitlines()) == n
        assert f"{n} rows ({what})" in capsys.readouterr().out
    assert cli.main(["data", f"{run}/", "--out", str(out)]) == 1
    assert "already exists" in capsys.readouterr().err


@pytest.mark.slow
def test_trl_trains_two_steps_on_a_set_as_it_is(run, tmp_path):
    """With TRL's defaults: no column is renamed and no template given."""
    pytest.importorskip("trl", reason="TRL is not installed: pip install 'oelkit[bench]'")
    import datasets
    from transformers import AutoTokenizer
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    out = run / "trl.parquet"
    assert cli.main(["data", f"{run}/", "--what", "trl", "--out", str(out)]) == 0
    rows = datasets.Dataset.from_parquet(str(out))
    model = make_model(tmp_path / "model")
    config = SDFTConfig(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=2,
        num_generations=1,
        max_steps=2,
        max_completion_length=4,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        logging_steps=1,
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    trainer = SDFTTrainer(str(model), config, rows, processing_class=tokenizer)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 2 and all(loss == loss for loss in losses)
    seen = trainer.teacher_context_builder.select_generation_prompts(
        [rows[0]["prompt"]], [rows[0]["privileged_context"]]
    )
    for said in ("H is a hole.", rows[0]["prompt"][-1]["content"]):
        assert said in seen[0][-1]["content"]

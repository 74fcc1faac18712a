"""A wrong type is told in a sentence by every step, before anything is played, read or trained."""

import json

import numpy as np
import pytest

from oelkit import Curation, distill, evaluate, extract, rollout
from oelkit.__main__ import main
from oelkit.records import ExperienceItem, State
from oelkit.steps.agreement import agreement
from oelkit.steps.evaluation import report_of
from oelkit.steps.rollouts import states

LAKE = "oelkit/FrozenLake-v0"
STATE = State("s", "t", 0, [{"role": "user", "content": "?"}])
ITEM = ExperienceItem("i", "H is a hole.", (), "m", 1, 0)


@pytest.mark.parametrize(
    "wrong, told",
    [
        (lambda p: distill(p, "one text", "notes"), "states: expected a list of State records"),
        (lambda p: distill(p, [STATE, {"prompt": []}], "notes"), "number 1 is the dict"),
        (lambda p: distill(p, STATE, "notes"), "states: .* got the State"),
        (lambda p: distill(p, [STATE], [ITEM]), "experiences: .* number 0 is the ExperienceItem"),
        (lambda p: distill(p, [STATE], None), "experiences: .* got the NoneType 'None'"),
        (lambda p: rollout(p, LAKE, "123"), "seeds: .* whole numbers, got the str '123'"),
        (lambda p: rollout(p, LAKE, 3), "seeds: .* got the int '3'"),
        (lambda p: rollout(p, LAKE, ["1"]), "seeds: .* number 0 is the str '1'"),
        (lambda p: rollout(p, LAKE, [1], {0: "notes"}), "experience: .* got the dict"),
        (lambda p: evaluate(p, LAKE, "12"), "seeds: .* got the str '12'"),
        (lambda p: evaluate(p, LAKE, [1], sampling_seeds="01"), "sampling_seeds: .* got the str"),
        (lambda p: evaluate(p, LAKE, [1], [ITEM]), "experience: .* number 0"),
        (lambda p: evaluate(p, LAKE, [0.5]), "seeds: .* number 0 is the float '0.5'"),
        (lambda p: extract(p, "a game"), "trajectories: .* got the str 'a game'"),
        (lambda p: extract(p, [STATE]), "trajectories: .* number 0 is the State"),
        (lambda p: agreement(p, [STATE], [ITEM]), "experience: .* number 0"),
        (lambda p: states("games"), "trajectories: .* got the str"),
        (lambda p: report_of([STATE]), "trajectories: .* number 0"),
        (lambda p: Curation("items.jsonl"), "items: .* got the str 'items.jsonl'"),
        (lambda p: Curation(["H is a hole."]), "items: .* number 0 is the str"),
        (
            lambda p: rollout("micro", LAKE, [1]),
            "policy: .* the str 'micro'; use oelkit.load_policy",
        ),
        (lambda p: distill("micro", [STATE], "notes"), "policy: expected a loaded model"),
    ],
)
def test_a_wrong_type_is_told_in_a_sentence(tiny, wrong, told):
    with pytest.raises(TypeError, match=told):
        wrong(tiny)


def test_what_is_meant_is_taken(tiny):
    """Ranges, arrays and one text for all."""
    for seeds in (range(2), np.arange(2), (np.int64(0), 1)):
        games = rollout(tiny, LAKE, seeds, "notes", max_new_tokens=2, prompt_set="brief")
        assert [game.seed for game in games] == [0, 1]
    assert len(states(tuple(games))) >= 2


def test_errors_on_the_command_line_are_in_its_words(tmp_path, monkeypatch, capsys):
    """Not in Python's, and a short name that is misspelt asks no hub."""
    monkeypatch.chdir(tmp_path)
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "chats.jsonl").write_text(json.dumps(good) + "\n{\n")
    (tmp_path / "items.jsonl").write_text('{"schema": 1}\n' * 2)
    for line, end in (
        ("import chats.jsonl", "Mend the lines, or leave them out with --bad skip"),
        (
            "extract --trajectories items.jsonl --out y",
            "(1 more bad lines). Mend or delete the line",
        ),
        ("play --model mirco --out y", "mirco (did you mean micro?): no such model folder"),
    ):
        assert main(line.split()) == 1
        assert capsys.readouterr().err.endswith(f"{end}\n")

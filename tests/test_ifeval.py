"""IF-Eval: verdicts agree with lm-eval, nothing is downloaded, and bad prompts are distinguished
from bad replies.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from oelkit import __main__ as cli
from oelkit import load_policy
from oelkit.config import Sampling
from oelkit.model.sampling import Reply
from oelkit.records import read_jsonl, write_jsonl
from oelkit.stats import wilson_interval
from oelkit.steps.ifeval import ifeval

ROOT = Path(__file__).parent.parent
STORED = ROOT / "tests/data/ifeval.jsonl"
MODULE = sys.modules["oelkit.steps.ifeval"]
NO_COMMA = {"prompt": "Say yes.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


def say(monkeypatch, texts):
    monkeypatch.setattr(
        MODULE, "generate", lambda policy, prompts, **_: [Reply([1, 2], t, False) for t in texts]
    )


@pytest.mark.slow
def test_verdicts_are_those_of_lm_eval_on_stored_replies(tiny, monkeypatch):
    rows = read_jsonl(STORED)
    theirs = [
        row["lm_eval"] for row in rows
    ]  # from lm-eval alone, with the sentence model that NLTK downloads
    assert len(rows) == 50
    assert len({name for row in rows for name in row["instruction_id_list"]}) == 25
    say(monkeypatch, [row["reply"] for row in rows])
    report = ifeval(tiny, STORED, max_new_tokens=6)
    assert [r["strict"] for r in report.replies] == [t["inst_level_strict_acc"] for t in theirs]
    assert [r["loose"] for r in report.replies] == [t["inst_level_loose_acc"] for t in theirs]
    found, aggregate = report.summary(), MODULE._checkers().agg_inst_level_acc
    for how in ("strict", "loose"):
        followed = sum(t[f"prompt_level_{how}_acc"] for t in theirs)
        assert 0 < followed < 50
        assert (found[f"prompt_{how}"], found["n"]) == (followed / 50, 50)
        interval = found[f"prompt_{how}_low"], found[f"prompt_{how}_high"]
        assert interval == wilson_interval(followed, 50)
        assert found[f"instruction_{how}"] == aggregate(
            [t[f"inst_level_{how}_acc"] for t in theirs]
        )
    assert found["instructions"] == sum(len(row["kwargs"]) for row in rows)
    assert found["prompt_loose"] > found["prompt_strict"]


def test_replies_do_not_get_on_the_screen_or_into_a_log(tiny, monkeypatch, tmp_path, caplog):
    """lm-eval logs the whole reply if it cannot detect the language."""
    row = {
        "prompt": "Say it in German.",
        "instruction_id_list": ["language:response_language"],
        "kwargs": [{"language": "de"}],
    }
    write_jsonl(tmp_path / "one.jsonl", [row])
    say(monkeypatch, ["\U0001f368 " * 9])
    (judged,) = ifeval(tiny, tmp_path / "one.jsonl", max_new_tokens=6).replies
    assert judged["strict"] == [True] and not caplog.records


@pytest.mark.slow
def test_nothing_is_downloaded_and_sentences_are_counted(tmp_path):
    """In a separate process without connections or NLTK data (an untrained model ends sentences at
    "Dr.").
    """
    code = (
        "import socket\ndef refuse(*a): raise AssertionError(f'connects to {a[1:]}')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import oelkit.steps.ifeval, sys\nutils = sys.modules['oelkit.steps.ifeval']._checkers()\n"
        "from lm_eval.tasks.ifeval.instructions_util import count_sentences, nltk\n"
        "print(count_sentences('Dr. Smith met Mr. Jones at 5 p.m. in St. Louis. He was late.'),"
        " len(nltk.word_tokenize('It IS late. NOW.')), *nltk.data.path)\n"
    )
    env = {**os.environ, **dict.fromkeys(("HOME", "NLTK_DATA", "TMPDIR"), str(tmp_path))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:2] == ["2", "6"] and "tokenizers" not in str(
        list(tmp_path.rglob("*"))
    )


def test_asks_the_policy_itself(tiny, tmp_path):
    path = tmp_path / "prompts.jsonl"
    write_jsonl(path, [{**NO_COMMA, "key": k, "prompt": f"Say {k}."} for k in (7, 8, 9)])
    report = ifeval(tiny, path, limit=2, max_new_tokens=6)
    assert [(r["key"], r["prompt"]) for r in report.replies] == [(7, "Say 7."), (8, "Say 8.")]
    assert all(0 < r["reply_tokens"] <= 6 for r in report.replies) and report.summary()["n"] == 2
    assert report == ifeval(tiny, str(path), limit=2, max_new_tokens=6)
    assert report != ifeval(tiny, path, limit=2, max_new_tokens=6, seed=1)
    given = Sampling(top_p=0.8, top_k=20, max_new_tokens=6, batch_tokens=4000)
    assert report == ifeval(tiny, path, given, limit=2)
    with pytest.raises(ValueError, match="no adapter 'other'"):
        ifeval(tiny, path, adapter="other", max_new_tokens=6)
    with pytest.raises(ValueError, match="prompts.jsonl: prompt 1 has .* lower max_new_tokens"):
        ifeval(tiny, path)


def test_judges_the_answer_and_not_the_thought(tiny, monkeypatch, tmp_path):
    path = tmp_path / "prompts.jsonl"
    write_jsonl(path, [NO_COMMA] * 4)
    say(
        monkeypatch,
        ["<think>well, yes</think>yes", "<think>well", "yes, but", "Sure, here it is:\nyes"],
    )
    report = ifeval(tiny, path, max_new_tokens=6)
    assert [r["strict"] for r in report.replies] == [[True], [False], [False], [False]]
    assert [r["loose"] for r in report.replies] == [[True], [False], [False], [True]]
    assert [r["key"] for r in report.replies] == [1, 2, 3, 4] and report.replies[0][
        "reply"
    ].startswith("<think>")


def test_a_thought_that_the_template_opens_is_not_judged(tiny_model, monkeypatch, tmp_path):
    path = tmp_path / "prompts.jsonl"
    write_jsonl(path, [NO_COMMA] * 2)
    say(monkeypatch, ["well, yes</think>yes", "a thought without end"])
    thinking = load_policy(tiny_model, enable_thinking=True)
    assert [r["strict"] for r in ifeval(thinking, path, max_new_tokens=6).replies] == [
        [True],
        [False],
    ]


def test_a_reply_that_breaks_the_checker_is_not_followed(tiny, monkeypatch, tmp_path):
    path = tmp_path / "prompts.jsonl"
    write_jsonl(path, [{**NO_COMMA, "instruction_id_list": ["detectable_format:json_format"]}] * 2)
    say(monkeypatch, ["[" * 100_000, "[[1]]"])
    assert [r["strict"] + r["loose"] for r in ifeval(tiny, path, max_new_tokens=6).replies] == [
        [False, False],
        [True, True],
    ]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"prompt": None}, "prompt 2 must have prompt, instruction_id_list and kwargs; it has"),
        ({"instruction_id_list": [[]]}, r"prompt 2: \[\] is not an IF-Eval instruction"),
        ({"kwargs": []}, "prompt 2: instruction_id_list and kwargs must be equally long"),
        ({"kwargs": [None]}, "prompt 2: instruction_id_list and kwargs must"),
        ({"instruction_id_list": [], "kwargs": []}, "and not empty"),
        (
            {"instruction_id_list": ["no:such"]},
            "prompt 2: 'no:such' is not an IF-Eval instruction; choose one of change_case",
        ),
        ({"kwargs": [{"num": 3}]}, r"prompt 2: punctuation:no_comma does not accept \{'num': 3\}"),
        (
            {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"num_words": 9, "relation": None}],
            },
            "prompt 2: length_constraints:number_words lacks relation",
        ),
    ],
)
def test_a_bad_prompt_is_named(tiny, tmp_path, change, message):
    path = tmp_path / "prompts.jsonl"
    write_jsonl(path, [NO_COMMA, {**NO_COMMA, **change}])
    with pytest.raises(ValueError, match=f"prompts.jsonl: .*{message}"):
        ifeval(tiny, path)


def test_a_bad_file_is_named(tiny, tmp_path):
    path = tmp_path / "prompts.jsonl"
    with pytest.raises(FileNotFoundError, match="prompts.jsonl"):
        ifeval(tiny, path)
    with pytest.raises(FileNotFoundError, match="prompts.jsonl"):
        ifeval(tiny, "prompts.jsonl")
    path.write_text("")
    with pytest.raises(ValueError, match="no prompts to sample for"):
        ifeval(tiny, path)
    path.write_text("{nonsense\n")
    with pytest.raises(ValueError, match="prompts.jsonl, line 1: not JSON"):
        ifeval(tiny, path)
    write_jsonl(path, [NO_COMMA])
    for limit in (0, -1):
        with pytest.raises(ValueError, match=f"no prompts to sample for .limit={limit}"):
            ifeval(tiny, path, limit=limit)


def test_hub_data_set(tiny, tmp_path, monkeypatch):
    """From the hub's cache, as for a user without network; otherwise one clear message."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    told = "google/IFEval: no such file here, .* pass a local .jsonl"
    with pytest.raises(ConnectionError, match=told):
        ifeval(tiny)
    folder = tmp_path / "datasets--google--IFEval"
    write_jsonl(folder / "snapshots" / ("a" * 40) / "input_data.jsonl", [NO_COMMA])
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    assert ifeval(tiny, max_new_tokens=4).summary()["n"] == 1
    write_jsonl(folder / "snapshots" / ("a" * 40) / "more.jsonl", [NO_COMMA])
    with pytest.raises(ValueError, match="google/IFEval: 2 .jsonl files"):
        ifeval(tiny)


def test_without_the_extra_the_error_says_what_to_install(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "punkt", None)
    MODULE._checkers.cache_clear()
    with pytest.raises(ImportError, match="pip install") as error:
        ifeval(tiny, STORED)
    MODULE._checkers.cache_clear()
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]["ifeval"]
    assert re.findall(r'"([^"]+)"', str(error.value)) == extra


def test_command(tiny_model, tmp_path, capsys):
    path, out, replies = (
        tmp_path / name for name in ("prompts.jsonl", "new/ifeval.json", "new/replies.jsonl")
    )
    write_jsonl(path, [NO_COMMA] * 3)
    command = [
        str(part)
        for part in (
            "ifeval",
            path,
            "--model",
            tiny_model,
            "--limit",
            2,
            "--max-new-tokens",
            4,
            "--out",
            out,
            "--replies",
            replies,
        )
    ]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    rates = r"\d+\.\d% \[.*%\] of 2 prompts, .*% of 2 instructions"
    assert re.match(rf"generate: 2 replies in \S+\nstrict: {rates}\nloose: ", said)
    row = json.loads(out.read_text())
    assert (row["n"], row["limit"], row["max_new_tokens"], row["seed"]) == (
        2,
        2,
        4,
        0,
    ) and "lm_eval" in row["versions"]
    assert row["command"].split()[:2] == ["oelkit", "ifeval"]
    assert [r["prompt"] for r in read_jsonl(replies)] == ["Say yes."] * 2
    assert cli.main(command) == 1 and "ifeval.json already exists" in capsys.readouterr().err
    assert cli.main(["ifeval", "--model", str(tiny_model), str(tmp_path / "no.jsonl")]) == 1
    assert "no.jsonl: No such file" in capsys.readouterr().err

"""Pass rates, intervals and the probe."""
import json

import numpy as np
import pytest

from oelkit.evaluate import evaluate, paired_bootstrap, probe, summarise, wilson
from oelkit.records import Outcome, Trajectory, Turn, write_jsonl

LAKE = {"prompts": "brief", "max_new_tokens": 4}


@pytest.mark.parametrize("k, n, low, high", [  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718),
    (20, 20, 0.8389, 1.0),
])
def test_wilson_interval(k, n, low, high):
    assert wilson(k, n) == pytest.approx((low, high), abs=6e-5)
    assert wilson(0, n)[0] == 0 and wilson(n, n)[1] == 1


def test_wilson_covers_and_refuses_what_is_no_rate():
    # the definition: both ends are the rates from which k is exactly z standard errors away
    for k, n in ((3, 17), (64, 128)):
        for end in wilson(k, n):
            assert abs(k / n - end) == pytest.approx(1.96 * (end * (1 - end) / n) ** 0.5)
    for k, n in ((1, 0), (3, 2), (-1, 5)):
        with pytest.raises(ValueError, match=f"{k} of {n} is not a rate"):
            wilson(k, n)


def test_paired_bootstrap():
    rng = np.random.default_rng(0)
    a = rng.random(128) < 0.3
    assert paired_bootstrap(a, a) == (0, 0, 0)
    difference, low, high = paired_bootstrap(a, rng.random(128) < 0.9)
    assert 0.3 < low < difference < high < 0.9
    assert paired_bootstrap(~a, a)[2] < 0
    assert paired_bootstrap(a, ~a, seed=1) == paired_bootstrap(a, ~a, seed=1)
    # paired: a constant gain on every episode is certain, however much the episodes differ
    x = rng.random(50)
    assert paired_bootstrap(x, x + 0.1) == pytest.approx((0.1, 0.1, 0.1))
    # and the width is that of the mean of the differences
    d = rng.normal(0, 1, 400)
    _, low, high = paired_bootstrap(np.zeros(400), d)
    assert high - low == pytest.approx(2 * 1.96 * d.std() / 20, rel=0.05)
    for pair in (([1], [1, 0]), ([], [])):
        with pytest.raises(ValueError, match="cannot be paired"):
            paired_bootstrap(*pair)


def game(outcome, *turns):
    turns = tuple(Turn("", [], "", None, "", 1, tokens, cut) for tokens, cut in turns)
    return Trajectory("t", "e", 0, "m", 0, turns, outcome, "")


def test_summary_of_games():
    report = summarise([game(Outcome.SUCCESS, (10, False), (20, True)), game(Outcome.FAILURE, (60, False)),
                        game(Outcome.UNKNOWN, (30, False))])
    assert (report.pass_rate, report.n, report.reply_tokens, report.truncated) == (1 / 3, 3, 30, 0.25)
    assert (report.low, report.high) == wilson(1, 3) and report.passes == [True, False, False]
    assert json.loads(json.dumps(report.summary())).keys() == {
        "pass_rate", "low", "high", "n", "reply_tokens", "truncated"}


def test_evaluate_reads_the_texts_in_turn(tiny):
    texts = ["TEXT0", "TEXT1", "TEXT2"]
    report = evaluate(tiny, "oelkit/FrozenLake3x3-v0", range(4), texts, sampling_seeds=(0, 1), **LAKE)
    asked = [g.turns[0].prompt[0]["content"] for g in report.trajectories]
    assert report.n == 8 and [g.seed for g in report.trajectories] == [0, 1, 2, 3] * 2
    assert all(f"TEXT{i % 3}" in text for i, text in enumerate(asked))
    first, second = report.trajectories[:4], report.trajectories[4:]
    assert [g.turns for g in first] != [g.turns for g in second] and len({g.id for g in report.trajectories}) == 8
    alone = evaluate(tiny, "oelkit/FrozenLake3x3-v0", range(2), "TEXT0", adapter=None, **LAKE)
    assert all("TEXT0" in g.turns[0].prompt[0]["content"] for g in alone.trajectories)
    assert alone.reply_tokens <= 4


def test_evaluate_of_nothing(tiny):
    for seeds, options, message in (([], {}, "seeds is empty"), ([1], {"experience": []}, "list of experiences"),
                                    ([1], {"sampling_seeds": ()}, "sampling seeds is empty")):
        with pytest.raises(ValueError, match=message):
            evaluate(tiny, "oelkit/FrozenLake3x3-v0", seeds, **options, **LAKE)


def test_probe_counts_exact_greedy_answers_by_kind(tiny, tmp_path):
    from oelkit.generation import generate

    asked = [[{"role": "user", "content": f"say {i}"}] for i in range(4)]
    said = generate(tiny, [tiny.encode(m) for m in asked], max_new_tokens=12, temperature=0)
    answers = ["".join(r.text).strip() for r in said]
    # the probe allows 8 tokens more than the longest answer: make all as long as what was said
    kinds = ["copy", "copy", "copy", "sum"]
    rows = [{"kind": k, "messages": m, "answer": a} for k, m, a in zip(kinds, asked, answers)]
    path = tmp_path / "probe.jsonl"
    write_jsonl(path, rows)
    full = probe(tiny, path)
    assert full["n"] == 4 and set(full) == {"all", "copy", "sum", "n"}
    assert full == probe(tiny, path, adapter=None)  # greedy, and an untrained student is the base
    wrong = [{**row, "answer": row["answer"] + "!"} for row in rows]
    write_jsonl(path, wrong)
    assert probe(tiny, path)["all"] == 0


def test_probe_right_and_wrong(tiny, tmp_path, monkeypatch):
    import importlib

    from oelkit.generation import Reply

    module = importlib.import_module("oelkit.evaluate")
    monkeypatch.setattr(module, "generate", lambda policy, prompts, **options: [
        Reply([1], text, False) for text in (" yes\n", "<think>no</think>yes", "yes.", "no")])
    path = tmp_path / "probe.jsonl"
    question = [{"role": "user", "content": "?"}]
    write_jsonl(path, [{"kind": kind, "messages": question, "answer": "yes"} for kind in "aabb"])
    assert probe(tiny, path) == {"all": 0.5, "a": 1.0, "b": 0.0, "n": 4}


def test_probe_file_errors(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.jsonl"):
        probe(tiny, tmp_path / "none.jsonl")
    path = tmp_path / "probe.jsonl"
    path.write_text("")
    with pytest.raises(ValueError, match="no questions"):
        probe(tiny, path)
    path.write_text('{"kind": "a", "messages": [], "answer": "x"}\n{"kind": "a", "answer": "x"}\n')
    with pytest.raises(ValueError, match="probe.jsonl: question 2 must have kind, messages and answer"):
        probe(tiny, path)
    path.write_text("{nonsense\n")
    with pytest.raises(ValueError, match="probe.jsonl, line 1: not JSON"):
        probe(tiny, path)

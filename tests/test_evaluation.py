"""Pass rates, intervals and the probe."""

import json

import pytest

from oelkit import load_policy
from oelkit.config import Sampling
from oelkit.model.sampling import Reply
from oelkit.records import Outcome, Trajectory, Turn, write_jsonl
from oelkit.stats import paired_bootstrap, wilson_interval
from oelkit.steps.evaluation import evaluate, probe, report_of
from oelkit.steps.rollouts import rollout

LAKE = {"prompt_set": "brief", "max_new_tokens": 4}


def test_paired_bootstrap_of_reports():
    def report(passes, seeds):
        return report_of(
            [
                game(Outcome.SUCCESS if p else Outcome.FAILURE, seed=s)
                for p, s in zip(passes, seeds * 2)
            ]
        )

    seeds = [5, 6, 7]
    a, b = report([0, 1, 0, 0, 1, 1], seeds), report([1, 1, 0, 1, 1, 1], seeds)
    assert a.passes_by_sample.tolist() == [[0, 1, 0], [0, 1, 1]]
    assert paired_bootstrap(a, b) == paired_bootstrap(a.passes_by_sample, b.passes_by_sample)
    with pytest.raises(ValueError, match="different maps"):
        paired_bootstrap(a, report([1] * 6, [5, 6, 8]))


def game(outcome, *turns, seed=0):
    turns = tuple(Turn("", [], "", None, "", 1, tokens, cut) for tokens, cut in turns)
    return Trajectory("t", "e", seed, "m", 0, turns, outcome, "")


def test_summary_of_games():
    report = report_of(
        [
            game(Outcome.SUCCESS, (10, False), (20, True)),
            game(Outcome.FAILURE, (60, False), seed=1),
            game(Outcome.UNKNOWN, (30, False), seed=2),
        ]
    )
    assert (report.pass_rate, report.n, report.reply_tokens, report.truncated) == (
        1 / 3,
        3,
        30,
        0.25,
    )
    assert (report.low, report.high) == wilson_interval(1, 3) and report.passes == [
        True,
        False,
        False,
    ]
    assert json.loads(json.dumps(report.summary())).keys() == {
        "pass_rate",
        "low",
        "high",
        "n",
        "maps",
        "samples_per_map",
        "reply_tokens",
        "truncated",
    }


def played(passes, seeds):
    outcomes = (Outcome.SUCCESS if p else Outcome.FAILURE for p in passes)
    return report_of([game(o, seed=s) for o, s in zip(outcomes, seeds, strict=True)])


def test_episodes_on_one_map_do_not_count_as_maps():
    # half of the maps are always passed: ten samples of each add nothing to one
    often = played([seed % 2 for seed in range(32)] * 10, [*range(32)] * 10)
    assert (often.n, often.maps, often.samples_per_map) == (320, 32, 10)
    assert often.summary()["maps"] == 32 and often.summary()["samples_per_map"] == 10
    once = played([seed % 2 for seed in range(32)], range(32))
    assert (once.low, once.high) == wilson_interval(16, 32) and once.samples_per_map == 1
    width = (
        wilson_interval(160, 320)[1] - wilson_interval(160, 320)[0]
    )  # as if the episodes were independent
    assert often.high - often.low == pytest.approx(once.high - once.low, rel=0.1)
    assert often.high - often.low > 2.5 * width
    for passed in (0, 1):  # bootstrap samples would all be equal
        same = played([passed] * 320, [*range(32)] * 10)
        assert (same.low, same.high) == wilson_interval(32 * passed, 32)


def test_many_games_on_one_map_say_nothing_about_others():
    report = played([1, 0] * 5, [0] * 10)
    assert (report.low, report.high) == wilson_interval(0, 1)


def test_a_map_given_twice_is_two_samples_of_one_map():
    report = played([1, 1, 0, 0], [5, 5, 6, 6])
    assert (report.maps, report.samples_per_map) == (2, 2)
    assert report.passes_by_sample.tolist() == [[1, 0], [1, 0]]
    assert report.passes_string == "1010" and report.passes == [True, True, False, False]
    blocks = played([1, 1, 0, 0], [5, 6, 5, 6])
    assert blocks.passes_by_sample.tolist() == [[1, 1], [0, 0]] and blocks.passes_string == "1100"
    assert played([1, 0], [None, None]).maps == 2
    with pytest.raises(ValueError, match="equally often; maps were played 1 to 2 times"):
        played([1, 0, 0], [5, 5, 6])
    with pytest.raises(ValueError, match="not at all"):
        played([], [])


def test_maps_that_are_not_given_equally_often_are_refused_before_a_game(tiny, monkeypatch):
    monkeypatch.setattr("oelkit.steps.evaluation.rollout", lambda *args, **options: pytest.fail())
    with pytest.raises(ValueError, match="equally often"):
        evaluate(tiny, "oelkit/FrozenLake3x3-v0", [5, 5, 6], **LAKE)


def test_evaluate_reads_the_texts_in_turn(tiny):
    texts = ["TEXT0", "TEXT1", "TEXT2"]
    report = evaluate(
        tiny, "oelkit/FrozenLake3x3-v0", range(4), texts, sampling_seeds=(0, 1), **LAKE
    )
    asked = [g.turns[0].prompt[0]["content"] for g in report.trajectories]
    assert report.n == 8 and [g.seed for g in report.trajectories] == [0, 1, 2, 3] * 2
    assert all(f"TEXT{i % 3}" in text for i, text in enumerate(asked))
    first, second = report.trajectories[:4], report.trajectories[4:]
    assert [g.turns for g in first] != [g.turns for g in second] and len(
        {g.id for g in report.trajectories}
    ) == 8
    alone = evaluate(tiny, "oelkit/FrozenLake3x3-v0", range(2), "TEXT0", adapter=None, **LAKE)
    assert all("TEXT0" in g.turns[0].prompt[0]["content"] for g in alone.trajectories)
    assert alone.reply_tokens <= 4


def test_evaluate_of_nothing(tiny):
    for seeds, options in (([], {}), ([1], {"experience": []}), ([1], {"sampling_seeds": ()})):
        with pytest.raises(ValueError, match="nothing to evaluate"):
            evaluate(tiny, "oelkit/FrozenLake3x3-v0", seeds, **options, **LAKE)


def test_probe_counts_exact_greedy_answers_by_kind(tiny, tmp_path):
    from oelkit.model.sampling import generate

    asked = [[{"role": "user", "content": f"say {i}"}] for i in range(4)]
    said = generate(tiny, [tiny.encode(m) for m in asked], max_new_tokens=12, temperature=0)
    answers = ["".join(r.text).strip() for r in said]
    # the probe allows 8 tokens more than the longest answer: make all as long as the replies
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

    module = importlib.import_module("oelkit.steps.evaluation")
    monkeypatch.setattr(
        module,
        "generate",
        lambda policy, prompts, **options: [
            Reply([1], text, False) for text in (" yes\n", "<think>no</think>yes", "yes.", "no")
        ],
    )
    path = tmp_path / "probe.jsonl"
    question = [{"role": "user", "content": "?"}]
    write_jsonl(path, [{"kind": kind, "messages": question, "answer": "yes"} for kind in "aabb"])
    assert probe(tiny, path) == {"all": 0.5, "a": 1.0, "b": 0.0, "n": 4}


@pytest.mark.parametrize("opens", [True, False])  # either the template or the model writes <think>
def test_probe_leaves_room_for_a_thought(tiny, tiny_model, tmp_path, monkeypatch, opens):
    thinking = load_policy(tiny_model, enable_thinking=True) if opens else tiny
    lengths = []

    def think(policy, prompts, *, max_new_tokens, **options):
        lengths.append((len(prompts), max_new_tokens))
        now = "</think>yes" if opens else "yes"
        text = ("" if opens else "<think>") + "it may be no, or it may be yes</think>yes"
        texts = [text if "aloud" in policy.decode(ids[:40]) else now for ids in prompts]
        return [Reply([1], text[:max_new_tokens], len(text) > max_new_tokens) for text in texts]

    monkeypatch.setattr("oelkit.steps.evaluation.generate", think)
    path, ask = tmp_path / "probe.jsonl", lambda text: [{"role": "user", "content": text}]
    rows = [{"kind": "a", "messages": ask(text), "answer": "yes"} for text in ("aloud", "now")]
    write_jsonl(path, rows)
    assert probe(thinking, path)["all"] == 1
    # only replies truncated within a thought are sampled again, within the context of 512
    assert lengths[0][0] == 2 and lengths[0][1] < 12
    assert lengths[1][0] == 1
    assert 400 < lengths[1][1] < 512
    assert probe(thinking, path, max_new_tokens=100)["all"] == 1 and lengths[-1][1] == 100
    write_jsonl(path, rows[1:])
    assert probe(tiny, path)["all"] == 1 and lengths[-1] == (1, lengths[0][1])


def test_evaluate_samples_as_asked(tiny, monkeypatch):
    calls = []

    def spy(policy, env_id, seeds, texts, sampling, **options):
        calls.append((sampling, options))
        return rollout(policy, env_id, seeds, texts, sampling, **options)

    monkeypatch.setattr("oelkit.steps.evaluation.rollout", spy)
    given = Sampling(temperature=0, batch_tokens=300)
    for options in ({}, {"sampling": given}, {"temperature": 0, "batch_tokens": 300}):
        evaluate(tiny, "oelkit/FrozenLake3x3-v0", [1], **options, **LAKE)
    assert [sampling for sampling, _ in calls] == [
        Sampling(top_p=0.8, top_k=20),
        given,
        Sampling(top_p=0.8, top_k=20),
    ]
    assert calls[2][1] == {"seed": 0, "temperature": 0, "batch_tokens": 300, **LAKE}


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"answer": 4}, "question 2: answer must be text"),
        ({"kind": "all"}, "question 2: all and n cannot be kinds"),
        ({"messages": [{"role": "user", "content": "go " * 999}]}, "question 2 has .* out"),
    ],
)
def test_a_probe_with_a_question_that_cannot_be_asked_is_named(tiny, tmp_path, wrong, told):
    good = {"kind": "copy", "messages": [{"role": "user", "content": "x"}], "answer": "x"}
    write_jsonl(tmp_path / "probe.jsonl", [good, good | wrong])
    with pytest.raises(ValueError, match=f"probe.jsonl: {told}"):
        probe(tiny, tmp_path / "probe.jsonl")


def test_probe_file_errors(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.jsonl"):
        probe(tiny, tmp_path / "none.jsonl")
    path = tmp_path / "probe.jsonl"
    path.write_text("")
    with pytest.raises(ValueError, match="no questions"):
        probe(tiny, path)
    path.write_text('{"kind": "a", "messages": [], "answer": "x"}\n{"kind": "a", "answer": "x"}\n')
    told = "probe.jsonl: question 2 must have kind, messages and answer"
    with pytest.raises(ValueError, match=told):
        probe(tiny, path)
    path.write_text('{"kind": "a", "messages": [], "answer": "x"}\n')
    with pytest.raises(ValueError, match="probe.jsonl: question 1: the prompt has no messages"):
        probe(tiny, path)
    path.write_text("{nonsense\n")
    with pytest.raises(ValueError, match="probe.jsonl, line 1: not JSON"):
        probe(tiny, path)

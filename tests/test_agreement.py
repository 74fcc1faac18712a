"""What logs alone say about a training."""

import pytest
import torch

from oelkit import agreement, distill, load_policy
from oelkit.prompts import load_prompt_set, with_experience
from oelkit.records import State

TEXT = "- EXPERIENCE ITEM: G is the goal.\n- EXPERIENCE ITEM: H is a hole."


def board(i):
    goal = "abcd"[i % 4] + "1234"[i // 4 % 4]
    content = f"Board:\n4x4\nP {'a1' if goal != 'a1' else 'b2'}\nG {goal}\nMove?"
    return State(f"s{i}", f"t{i}", 0, [{"role": "user", "content": content}])


def test_a_model_agrees_with_itself_where_the_experience_makes_no_difference(tiny, monkeypatch):
    monkeypatch.setattr(
        "oelkit.steps.agreement.with_experience", lambda p, messages, text: messages
    )
    found = agreement(tiny, [board(i) for i in range(4)], TEXT, max_new_tokens=6)
    assert abs(found["kl"]) < 1e-5 and found["agreement"] == 1 and found["n"] == 4
    assert found["low"] < 1 == found["high"]


def test_the_estimate_is_the_kl_of_the_definition(tiny):
    """Over many one-token replies, the mean is the KL of the two distributions."""
    state, prompts = board(1), load_prompt_set("brief")
    read = tiny.encode(with_experience(prompts, state.prompt, TEXT))
    with torch.no_grad(), tiny.adapter("teacher"):
        s, t = (
            tiny.base_lm(input_ids=torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
            for ids in (tiny.encode(state.prompt), read)
        )
    want = float((s.exp() * (s - t)).sum())
    spread = float((s.exp() * (s - t - want) ** 2).sum()) ** 0.5
    found = agreement(tiny, [state] * 400, TEXT, prompt_set=prompts, max_new_tokens=1)
    assert abs(found["kl"] - want) < 4 * spread / 400**0.5


def test_a_training_on_logs_brings_held_out_answers_nearer_to_those_with_experience():
    policy = load_policy("micro")
    states = [board(i) for i in range(16)]
    distill(policy, states[:12], TEXT, steps=8, batch_size=8, lr=1e-3, max_new_tokens=24)
    how = {"max_new_tokens": 24}
    before = agreement(policy, states[12:], TEXT, adapter="teacher", **how)
    after = agreement(policy, states[12:], TEXT, **how)
    assert after["kl"] < before["kl"]


@pytest.mark.parametrize("states, text", [([], TEXT), ([board(0)], " ")])
def test_nothing_to_compare_is_refused(tiny, states, text):
    with pytest.raises(ValueError, match="nothing to compare"):
        agreement(tiny, states, text)


def test_a_state_that_cannot_be_asked_is_left_out(tiny):
    long = State("long", "t", 0, [{"role": "user", "content": "x" * 600}])
    with pytest.warns(UserWarning, match="1 of 2 states are left out: state 'long'"):
        assert agreement(tiny, [long, board(0)], TEXT, max_new_tokens=2)["n"] == 1


def test_two_unfinished_thoughts_do_not_agree(tiny, monkeypatch):
    monkeypatch.setattr(type(tiny), "answer_text", lambda *_: "")
    assert agreement(tiny, [board(0), board(1)], TEXT, max_new_tokens=2)["agreement"] == 0

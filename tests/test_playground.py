"""Three answers to one state: how they are made, and the playground that shows them."""

import math

import pytest
from helpers import shake

from oelkit.model.sampling import generate
from oelkit.model.scoring import token_logprobs
from oelkit.prompts import load_prompt_set, with_experience
from oelkit.records import State
from oelkit.steps.compare import Answer, compare_answers
from oelkit.views.widgets import Playground

STATES = [
    State("a/0", "a", 0, [{"role": "user", "content": "Board <1>"}]),
    State("b/0", "b", 0, [{"role": "system", "content": "S"}, {"role": "user", "content": "Two"}]),
]
TEXT = "- EXPERIENCE ITEM: H is a hole."


def test_each_answer_is_its_arms_greedy_reply_scored_by_all_three(tiny):
    shake(tiny, "student", seed=1)
    shake(tiny, "teacher", seed=2)
    prompts = load_prompt_set("brief")
    answers = compare_answers(tiny, STATES[0].prompt, TEXT, prompt_set=prompts, max_new_tokens=6)
    plain = tiny.encode(STATES[0].prompt)
    read = tiny.encode(with_experience(prompts, STATES[0].prompt, TEXT))
    arms = {"base": (plain, None), "in_context": (read, "teacher"), "distilled": (plain, "student")}
    assert [answer.arm for answer in answers] == list(arms)
    for answer in answers:
        prompt, adapter = arms[answer.arm]
        how = {"temperature": 0, "max_new_tokens": 6, "adapter": adapter}
        (reply,) = generate(tiny, [prompt], **how)
        assert answer.text == reply.text and len(answer.tokens) == len(reply.ids)
        for arm, (prompt, adapter) in arms.items():
            want = token_logprobs(tiny, [prompt], [reply.ids], adapter=adapter)[0].tolist()
            assert answer.logprobs[arm] == pytest.approx(want, abs=1e-4)
    assert len({tuple(answer.tokens) for answer in answers}) > 1
    with pytest.raises(ValueError, match="the experience is empty"):
        compare_answers(tiny, STATES[0].prompt, " ")


def answers(messages):
    said = f"<b>{messages[-1]['content']}</b>"
    logprobs = {"base": [0.0, -9.0], "in_context": [0.0, -0.1], "distilled": [-0.1, -0.2]}
    return [Answer(arm, said, ["[", said], logprobs) for arm in logprobs]


def test_the_difference_of_a_token_is_to_the_arm_furthest_away():
    base, _, distilled = answers(STATES[0].prompt)
    assert base.differences() == pytest.approx([0.1, 8.9])
    assert distilled.differences() == pytest.approx([0.1, 8.8])


def test_the_playground_asks_for_what_is_picked_and_for_what_is_typed():
    asked = []

    def ask(messages):
        asked.append(messages)
        return answers(messages)

    playground = Playground(ask, STATES)
    state, text, button, shown = playground.children
    assert asked == [STATES[0].prompt] and text.value == "Board <1>"
    state.value = 1
    assert asked[1:] == [STATES[1].prompt]
    text.value = "Mine"
    button.click()
    assert asked[2] == [STATES[1].prompt[0], {"role": "user", "content": "Mine"}]
    assert "&lt;b&gt;Mine" in shown.value and "<b>Mine" not in shown.value
    assert shown.value in playground.static_html and f"{math.exp(-9.0):.1%}" in shown.value
    plain, _ = playground._repr_mimebundle_()
    assert "experience in context" in plain["text/html"]


def test_what_goes_wrong_is_said_in_place_of_the_answers():
    def ask(messages):
        raise ValueError("<too long>")

    assert Playground(ask, STATES).children[3].value == "<p>&lt;too long&gt;</p>"
    with pytest.raises(ValueError, match="no states"):
        Playground(ask, [])
    picture = [{"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(ValueError, match="state 'p': .* kind 'image_url', not text"):
        Playground(ask, [State("p", "p", 0, [{"role": "user", "content": picture}])])
    half = State("h", "h", 0, [{"role": "user", "content": "half \ud83d"}])
    assert Playground(ask, [half]).children[1].value == "half \ufffd"  # Jupyter can send it

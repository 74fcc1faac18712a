"""The memory plan against a real step, counted tensor by tensor. `make bench` measures the resident
memory of real models.
"""

import importlib
from pathlib import Path

import pytest
import torch
from helpers import some_prompts

from oelkit import distill, load_policy, memory_plan, rollout, states
from oelkit.model.memory import peak_bytes
from oelkit.model.prefix import SharedPrefix
from oelkit.model.scoring import reply_hidden
from oelkit.prompts import load_prompt_set, with_experience
from oelkit.text import truncate_to_budget

pytestmark = pytest.mark.slow

ROOT, MB = Path(__file__).parents[1], 2**20


@pytest.fixture(scope="module")
def micro():  # the lakes model, whose replies there are as long as the plan assumes
    return load_policy(ROOT / "data/micro_lakes")


@pytest.fixture(scope="module")
def found(micro):
    return states(rollout(micro, "oelkit/FrozenLake4x4-v0", range(8)))


def weights(policy):
    return [p.detach().clone() for p in policy.model.parameters()]


@pytest.mark.parametrize(
    "notes, options",
    [
        (20, {}),
        (400, {}),
        (400, {"batch_tokens": 200}),
        (400, {"retention": 0.5}),
        (20, {"batch_size": 4, "reply": 6}),
    ],
)
def test_a_step_holds_what_the_plan_says(micro, found, notes, options):
    prompt_set, reply = load_prompt_set(micro.default_prompt_set), options.pop("reply", 16)
    text = truncate_to_budget(
        "\n".join(f"- EXPERIENCE ITEM: the letter {i} wins." for i in range(notes // 8 + 8)),
        notes,
        micro.tokenizer,
    )
    state = max(len(micro.encode(s.prompt)) for s in found)
    told = max(len(micro.encode(with_experience(prompt_set, s.prompt, text))) for s in found)
    given = {"batch_size": 16, "retention": 0.0, **options}
    plan = memory_plan(micro, told - state, state_tokens=state, reply_tokens=reply, **given)
    micro.reset()
    held = peak_bytes(
        lambda: distill(micro, found, [text], steps=2, max_new_tokens=reply, **given), micro.device
    )
    print(f"{held / MB:.1f} MiB held, {plan.peak / MB:.1f} planned")
    assert held == pytest.approx(plan.peak, rel=0.15)
    assert plan.fits and not plan.gradient_checkpointing


def test_scores_behind_a_shared_beginning_are_in_the_plan(tiny):
    """They grow with the square of a state's length; the plan once left them out."""
    start, *prompts = some_prompts(5, low=250, high=251)
    tiny.base_lm.config.max_position_embeddings = 1024
    plan = memory_plan(tiny, 250, state_tokens=251, reply_tokens=8, batch_size=4)
    with torch.no_grad(), tiny.adapter("teacher"):
        beginning = SharedPrefix(tiny, start)
        asked, answers = [start + p for p in prompts], [[5] * 8] * 4
        held = peak_bytes(lambda: reply_hidden(tiny, asked, answers, beginning), tiny.device)
    print(f"{held / MB:.1f} MiB held, {plan.phases['scoring'] / MB:.1f} planned")
    # the count misses logsumexp's internal tensors, up to 8 of 12 bytes per score
    assert held < plan.phases["scoring"] < 2.5 * held


def test_a_plan_leaves_the_policy_alone(tiny):
    before, p = weights(tiny), tiny.trainable()[0]
    p.grad = torch.ones_like(p)
    memory_plan(tiny, 100)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(tiny), strict=True))
    assert torch.equal(p.grad, torch.ones_like(p))
    assert not tiny.model.training and tiny.trainable()[0].requires_grad


def test_little_memory_means_checkpointing_then_a_warning(tiny, found, monkeypatch):
    plenty = memory_plan(tiny, state_tokens=400, reply_tokens=20, batch_size=4)
    module = importlib.import_module("oelkit.model.memory")
    monkeypatch.setattr(
        module, "free_bytes", lambda device: plenty.peak // 4
    )  # 80 % of it: less than one of four sequences
    tight = memory_plan(tiny, state_tokens=400, reply_tokens=20, batch_size=4)
    assert tight.gradient_checkpointing and tight.batch_tokens < plenty.batch_tokens
    assert tight.phases["training"] < plenty.phases["training"]
    monkeypatch.setattr(module, "free_bytes", lambda device: MB // 8)
    none = memory_plan(tiny, state_tokens=400, reply_tokens=20, batch_size=4)
    assert not none.fits and "does NOT fit" in str(none)
    with pytest.warns(UserWarning, match="memory will probably run out"):
        distill(
            tiny,
            found[:2],
            ["- EXPERIENCE ITEM: left."],
            steps=1,
            batch_size=2,
            max_new_tokens=4,
            prompt_set="brief",
        )


def test_trial_runs_that_take_no_more_for_more_tokens(tiny, monkeypatch):
    """The first run can allocate memory that stays. The plan must work all the same."""
    monkeypatch.setattr("oelkit.model.memory.peak_bytes", lambda work, device: MB)
    plan = memory_plan(tiny, state_tokens=100, reply_tokens=8, batch_size=4)
    assert plan.fits and plan.batch_tokens == 4 * 108
    sizes = iter(range(MB, 0, -1000))
    monkeypatch.setattr("oelkit.model.memory.peak_bytes", lambda work, device: next(sizes))
    assert memory_plan(tiny, state_tokens=100, reply_tokens=8, batch_size=4).batch_tokens == 432


def test_the_table_names_every_part(tiny):
    plan = memory_plan(tiny, 300, state_tokens=100, reply_tokens=8)
    for name in (*plan.held, *plan.phases):
        assert name in str(plan)
    assert f"{plan.batch_tokens:,} tokens" in str(plan)
    assert plan.held["weights"] == sum(
        p.nbytes for n, p in tiny.model.named_parameters() if ".lora_" not in n
    )


def test_the_keys_and_values_of_all_texts_are_counted_or_left_out(tiny, monkeypatch):
    """On a 1.7B model, ten texts of 8,000 tokens once held 19 GB instead of the planned 1.9."""
    module = importlib.import_module("oelkit.model.memory")
    one, ten = (memory_plan(tiny, 300, reply_tokens=8, texts=n) for n in (1, 10))
    kv = "keys and values of experience"
    assert ten.held[kv] == 10 * one.held[kv] and (one.kept_texts, ten.kept_texts) == (1, 10)
    monkeypatch.setattr(module, "free_bytes", lambda device: 7 * one.held[kv])
    few = memory_plan(tiny, 300, reply_tokens=8, texts=10)
    assert few.kept_texts == 3 and few.held[kv] == 3 * one.held[kv]

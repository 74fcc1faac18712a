"""Other models and formats through every step: micro in NF4, and a real pretrained model (SmolLM2-135M) where one is named."""

import os

import pytest

from oelkit import Curation, auto_curate, distill, evaluate, extract, load_policy, rollout, states
from oelkit.envs import make
from oelkit.records import ExperienceItem, State

REAL = os.environ.get("OELKIT_TEST_MODEL", "")
NOTES = "- EXPERIENCE ITEM: H is a hole, never step on it.\n- EXPERIENCE ITEM: G is the goal, walk there."


def every_step(policy, *, lr: float, steps: int, games: int, tokens: int) -> list[dict]:
    """Rollout, extraction, curation, distillation and evaluation; the log of distillation on one fixed batch."""
    world = "oelkit/FrozenLake-v0"
    played = rollout(policy, world, range(games), max_new_tokens=tokens)
    assert len(played) == games and all(t.outcome and t.turns for t in played)
    items = extract(policy, played[:2], max_new_tokens=tokens, draws=2)
    assert all(isinstance(item, ExperienceItem) for item in items)
    auto_curate(Curation(items)).experience()
    found: list[State] = states(played)[:4]
    history = distill(policy, found, [NOTES], steps=steps, batch_size=4, lr=lr, max_new_tokens=tokens)
    report = evaluate(policy, world, range(games), NOTES, max_new_tokens=tokens)
    assert report.n == games and report.low <= report.pass_rate <= report.high
    assert make(world).reset(seed=0)[0]
    return history


def falls(history: list[dict]) -> bool:
    third = len(history) // 3
    first, last = history[:third], history[-third:]
    return sum(row["loss"] for row in last) / third < 0.7 * sum(row["loss"] for row in first) / third


def test_micro_in_nf4():
    policy = load_policy("micro", quantize="nf4")
    assert any(type(m).__name__ == "Linear4bit" for m in policy.causal.modules())
    assert falls(every_step(policy, lr=2e-3, steps=18, games=8, tokens=48))


@pytest.mark.skipif(not REAL, reason="set OELKIT_TEST_MODEL to the folder of SmolLM2-135M-Instruct")
@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_a_real_model(quantize):
    policy = load_policy(REAL, quantize=quantize)
    assert falls(every_step(policy, lr=3e-4, steps=12, games=4, tokens=32))

"""Other models and formats through every step: micro in NF4, and a real pretrained model
(SmolLM2-135M) if one is given.
"""

import os

import lora  # of tests/benchmarks
import pytest

from oelkit import Curation, auto_curate, distill, evaluate, extract, load_policy, rollout, states
from oelkit.model.sampling import generate
from oelkit.records import ExperienceItem, State

pytestmark = pytest.mark.slow

REAL = os.environ.get("OELKIT_TEST_MODEL", "")
NOTES = lora.NOTES


def gap(policy, found: list[State]) -> float:
    """Return KL(student without notes || teacher with notes), in nats per token, on four replies of
    the student to each state.
    """
    asked = [policy.encode(state.prompt) for state in found] * 4
    replies = [
        reply.ids for reply in generate(policy, asked, max_new_tokens=32, temperature=0.7, seed=3)
    ]
    return lora.gap(policy, found * 4, replies, 0.7)


def every_step(policy, *, lr: float, steps: int, games: int, tokens: int) -> tuple[float, float]:
    """Run rollout, extraction, curation, distillation and evaluation. Return the gap to the teacher
    before and after.
    """
    world = "oelkit/FrozenLake-v0"
    played = rollout(policy, world, range(games), max_new_tokens=tokens)
    assert len(played) == games and all(t.outcome and t.turns for t in played)
    items = extract(policy, played[:2], max_new_tokens=tokens, num_draws=2)
    assert all(isinstance(item, ExperienceItem) for item in items)
    auto_curate(Curation(items)).experience()
    found: list[State] = states(played)[:4]
    policy.sync_teacher()
    before = gap(policy, found)
    distill(
        policy,
        found,
        [NOTES],
        steps=steps,
        batch_size=4,
        lr=lr,
        retention=0.0,
        temperature=0.7,
        max_new_tokens=tokens,
    )
    after = gap(policy, found)
    report = evaluate(policy, world, range(games), NOTES, max_new_tokens=tokens)
    assert report.n == games and report.low <= report.pass_rate <= report.high
    print(f"{policy.name}: KL {before:.3f} before, {after:.3f} after {steps} steps")
    return before, after


def test_micro_in_nf4():
    policy = load_policy("micro", quantize="nf4")
    assert any(type(m).__name__ == "Linear4bit" for m in policy.base_lm.modules())
    before, after = every_step(policy, lr=2e-3, steps=18, games=8, tokens=48)
    assert after < 0.7 * before


@pytest.mark.skipif(not REAL, reason="set OELKIT_TEST_MODEL to the folder of SmolLM2-135M-Instruct")
@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_a_real_model(quantize):
    policy = load_policy(REAL, quantize=quantize)
    before, after = every_step(policy, lr=3e-4, steps=12, games=4, tokens=32)
    assert after < 0.9 * before

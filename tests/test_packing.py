"""Packing: prompts that begin alike are read once, with the hidden states and gradients of before,
and each on its own where a model's attention does not allow it.
"""

import pytest
import torch
from helpers import SLIDING, make_model, shake, some_prompts

import oelkit.model.packing as packing
from oelkit.model.loading import load_policy
from oelkit.model.memory import checkpointed
from oelkit.model.packing import can_pack, packed_batches, packed_hidden
from oelkit.model.scoring import reply_hidden
from oelkit.records import State
from oelkit.steps.distillation import distill

START = some_prompts(1, seed=5, low=200, high=201)[0]
ENDS = some_prompts(7, seed=6)
REPLIES = [[], [7], *some_prompts(5, seed=7, low=2, high=12)]
PROMPTS = [START + end for end in ENDS]


def gradients(policy, hidden):
    """Return the adapter's gradients of a loss that weighs all hidden states differently."""
    weights = torch.linspace(-1, 1, hidden.numel()).view_as(hidden)
    return torch.autograd.grad((hidden * weights).sum(), policy.trainable())


@pytest.mark.parametrize("again", [False, True], ids=["stored", "checkpointed"])
def test_same_hidden_states_and_gradients_as_row_by_row(tiny, again):
    shake(tiny)
    assert can_pack(tiny)
    with tiny.adapter("student"), tiny.train_mode():
        want = reply_hidden(tiny, PROMPTS, REPLIES)
        its = gradients(tiny, want)
        if again:
            with checkpointed(tiny):
                got = packed_hidden(tiny, PROMPTS, REPLIES, len(START))
                ours = gradients(tiny, got)
        else:
            got = packed_hidden(tiny, PROMPTS, REPLIES, len(START))
            ours = gradients(tiny, got)
    assert got.shape == want.shape and (got - want).norm() <= 1e-5 * want.norm()
    for a, b in zip(ours, its, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm() and b.norm() > 0


def test_batches_hold_each_row_once_and_no_more_tokens_than_they_may(tiny):
    prompts = [*PROMPTS, *some_prompts(3, seed=8)]
    lengths = [len(p) + 12 for p in prompts]
    for most in (250, 400, 10_000):
        batches = packed_batches(tiny, prompts, lengths, most)
        assert sorted(i for _, rows in batches for i in rows) == list(range(10))
        for shared, rows in batches:
            assert shared in (0, len(START)) and (shared == 0 or len(rows) > 1)
            own = [lengths[i] - shared for i in rows]
            held = shared + (sum(own) if shared else len(own) * max(own))
            assert held <= most or len(rows) == 1
    # all seven behind one prefix, the others in a batch of their own
    assert [(n, len(rows)) for n, rows in batches] == [(0, 3), (len(START), 7)]


def test_a_prefix_for_which_a_packed_row_has_no_room_is_read_in_each_row(tiny, monkeypatch):
    lengths = [len(p) + 12 for p in PROMPTS]
    monkeypatch.setattr(packing, "MAX_PACKED", len(START) + 10)
    assert packed_batches(tiny, PROMPTS, lengths, 10_000) == [
        (0, sorted(range(7), key=lambda i: -lengths[i]))
    ]


def test_models_with_windows_are_not_packed(tmp_path):
    policy = load_policy(make_model(tmp_path, **SLIDING))
    with pytest.warns(UserWarning, match="computed in full, because it has sliding windows"):
        assert not can_pack(policy)
    assert {n for n, _ in packed_batches(policy, PROMPTS, [300] * 7, 10_000)} == {0}


def test_a_mask_that_an_attention_ignores_turns_it_off(tiny, monkeypatch):
    real = type(tiny).hidden
    monkeypatch.setattr(
        type(tiny), "hidden", lambda self, ids, cache=None, **how: real(self, ids, cache)
    )
    assert not can_pack(tiny)


@pytest.mark.parametrize("retention", [0.0, 0.5])
def test_a_training_reads_a_shared_prefix_once_and_learns_the_same(
    tiny_model, monkeypatch, retention
):
    words = "The rules of this office are many and long. " * 6
    states = [
        State(
            f"s{i}",
            "t",
            i,
            [{"role": "system", "content": words}, {"role": "user", "content": f"Case {i}?"}],
        )
        for i in range(6)
    ]
    found = []
    for allowed in (True, False):
        policy, read = load_policy(tiny_model), []
        monkeypatch.setattr(
            packing, "can_pack", lambda policy, allowed=allowed: allowed and can_pack(policy)
        )
        real = policy.hidden

        def hidden(ids, *rest, **how):
            read.append(ids.numel() if torch.is_grad_enabled() else 0)
            return real(ids, *rest, **how)

        monkeypatch.setattr(policy, "hidden", hidden)
        rows = distill(
            policy,
            states,
            ["- EXPERIENCE ITEM: say yes."],
            steps=3,
            batch_size=6,
            max_new_tokens=4,
            lr=1e-3,
            warmup=0,
            retention=retention,
            seed=1,
        )
        found.append((sum(read), [row["loss"] for row in rows], [row["grad_norm"] for row in rows]))
    (few, *ours), (many, *theirs) = found
    assert few < many / 2 and ours[0][0] > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-4)

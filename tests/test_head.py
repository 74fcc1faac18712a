"""Heads with a bias, a scale or a soft-cap: the losses see the logits that the model makes."""

import pytest
import torch
from families import make_family
from helpers import shake

from oelkit.model.loading import load_policy
from oelkit.model.losses import cross_entropy, reverse_kl
from oelkit.model.sampling import generate
from oelkit.model.scoring import reply_hidden, token_logprobs

HEADS = {  # scale, cap, whether there is a bias
    "qwen3": (1.0, None, False),
    "cohere": (0.25, None, False),
    "gemma2": (1.0, 2.0, False),
    "granite": (0.125, None, False),
    "phi": (1.0, None, True),
    "falcon_h1": (0.3, None, False),
}
PROMPTS, REPLIES = [[5, 6, 7, 9], [20, 30, 40, 50]], [[8, 2, 11], [11, 12, 13]]


def whole_logits(policy):
    """Return the logits of both replies from one plain forward pass without padding."""
    ids = torch.tensor([p + r for p, r in zip(PROMPTS, REPLIES, strict=True)])
    return policy.model(input_ids=ids).logits[:, 3:-1].flatten(0, 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", HEADS)
def test_what_a_model_does_to_its_logits_is_found(tmp_path, name, dtype):
    head = load_policy(make_family(name, tmp_path), dtype=dtype).head
    assert (head.scale, head.cap, head.bias is not None) == HEADS[name]


@pytest.mark.parametrize("name", HEADS)
def test_losses_and_gradients_are_those_of_the_models_own_logits(tmp_path, name):
    """Against autograd on full logits, all of it in float64."""
    policy = load_policy(make_family(name, tmp_path), dtype=torch.float64)
    policy.model.double()
    shake(policy), shake(policy, "teacher", 2)
    sampled = torch.tensor(sum(REPLIES, []))
    with torch.no_grad(), policy.adapter("teacher"):
        teacher = reply_hidden(policy, PROMPTS, REPLIES)
        t = (whole_logits(policy) / 0.7).log_softmax(-1)
    s = (whole_logits(policy) / 0.7).log_softmax(-1)
    want = (s.exp() * (s - t)).sum(-1).mean() - s.gather(1, sampled[:, None]).mean()
    hidden = reply_hidden(policy, PROMPTS, REPLIES)
    got = reverse_kl(hidden, teacher, policy.head, temperature=0.7)
    got = got + cross_entropy(hidden, sampled, policy.head, temperature=0.7)
    torch.testing.assert_close(got, want, rtol=1e-7, atol=0)  # the mean's weights are float32
    pairs = zip(*(torch.autograd.grad(x, policy.trainable()) for x in (got, want)), strict=True)
    for mine, exact in pairs:
        assert exact.norm() > 0 and (mine - exact).norm() <= 1e-6 * exact.norm()


@pytest.mark.parametrize("name", HEADS)
def test_log_probabilities_are_of_the_distribution_that_is_sampled(tmp_path, name):
    policy = load_policy(make_family(name, tmp_path))
    shake(policy)
    got = torch.cat(token_logprobs(policy, PROMPTS, REPLIES, temperature=0.7))
    with torch.no_grad():
        s = (whole_logits(policy) / 0.7).log_softmax(-1)
    torch.testing.assert_close(got, s.gather(1, torch.tensor(sum(REPLIES, []))[:, None])[:, 0])
    first = s[0].exp()  # of the first token after the first prompt
    drawn = generate(policy, PROMPTS[:1] * 2000, max_new_tokens=1, temperature=0.7)
    share = torch.bincount(torch.tensor([r.ids[0] for r in drawn]), minlength=len(first)) / 2000
    assert (share - first).abs().max() < 5 * (first.max() / 2000).sqrt()


def test_heads_that_the_losses_cannot_use(tiny_model, tiny, monkeypatch):
    with pytest.raises(ValueError, match="its head is trained"):
        load_policy(tiny_model, lora={"target_modules": ["q_proj", "lm_head"]}).head
    whole = type(tiny.base_lm).forward

    for change in (torch.sin, lambda z: z.index_fill(-1, torch.tensor([7]), -torch.inf)):

        def odd(self, *args, change=change, **options):
            out = whole(self, *args, **options)
            out.logits = change(out.logits)
            return out

        monkeypatch.setattr(type(tiny.base_lm), "forward", odd)
        with pytest.raises(ValueError, match="its logits are neither the product of"):
            _ = tiny.head

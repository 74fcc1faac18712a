"""The losses against float64 autograd on full logits."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from oelkit.model.head import Head
from oelkit.model.losses import (
    TAILS,
    cross_entropy,
    entropy,
    forward_kl,
    jsd,
    reverse_kl,
    sampled_kl,
)


def logits_of(hidden, head):
    """Return logits as models compute them. `head` is a matrix or a Head."""
    if isinstance(head, Head):
        z = (hidden @ head.weight.T + head.bias) * head.scale
        return head.cap * torch.tanh(z / head.cap)
    return hidden @ head.T


def naive(
    kind, hidden, target, head, temperature, top_k, weights, tail="drop", beta=0.5, clip=None
):
    """Compute the loss by definition, on full logits.

    `target` is the teacher's hidden states or the target ids (both for sampled).
    """
    z = logits_of(hidden, head) / temperature
    s = z.log_softmax(-1)
    if kind == "sft":
        rows = torch.nn.functional.cross_entropy(z, target, reduction="none")
    elif kind == "sampled":
        teacher, ids = target
        t = (logits_of(teacher, head) / temperature).log_softmax(-1)
        own, theirs = (x.gather(-1, ids[:, None])[:, 0] for x in (s, t))
        at = own - theirs
        # value of the first, gradient of the second
        rows = at.detach() * own + (at - at * own).detach()
    else:
        t = (logits_of(target, head) / temperature).log_softmax(-1)
        if top_k:
            ids = z.detach().topk(min(top_k, z.shape[-1]), -1).indices
            s_k, t_k = s.gather(-1, ids), t.gather(-1, ids)
            if top_k < z.shape[-1] and tail == "renormalize":
                s_k, t_k = s_k.log_softmax(-1), t_k.log_softmax(-1)
            if top_k < z.shape[-1] and tail == "bucket":
                others = torch.ones_like(z, dtype=torch.bool).scatter(-1, ids, False)
                rest = [x.masked_fill(~others, -torch.inf).logsumexp(-1) for x in (s, t)]
                s_k = torch.cat([s_k, rest[0][:, None]], -1)
                t_k = torch.cat([t_k, rest[1][:, None]], -1)
            s, t = s_k, t_k
        m = ((1 - beta) * s.exp() + beta * t.exp()).log()
        rows = {
            "reverse": s.exp() * (s - t),
            "forward": t.exp() * (t - s),
            "jsd": beta * t.exp() * (t - m) + (1 - beta) * s.exp() * (s - m),
        }[kind].sum(-1)
    if clip:
        rows = rows * (clip / rows.detach().abs()).clamp(max=1)
    return (rows * weights).sum()


def ours(kind, hidden, target, head, temperature, top_k, weights, tail="drop", beta=0.5, **options):
    options |= dict(temperature=temperature, weights=weights)
    if kind == "sft":
        return cross_entropy(hidden, target, head, **options)
    if kind == "sampled":
        return sampled_kl(hidden, *target, head, **options)
    options |= dict(top_k=top_k, tail=tail)
    if kind == "jsd":
        return jsd(hidden, target, head, beta=beta, **options)
    loss = {"reverse": reverse_kl, "forward": forward_kl}[kind]
    return loss(hidden, target, head, **options)


KINDS = ["reverse", "forward", "jsd", "sampled", "sft"]


def cast(target, dtype):
    """Cast the teacher's hidden states to another dtype; ids stay."""
    if isinstance(target, tuple):
        return tuple(cast(x, dtype) for x in target)
    return target.to(dtype) if target.is_floating_point() else target


def draw(seed, n, d, v, kind, dtype):
    g = torch.Generator().manual_seed(seed)
    student, teacher, head = (
        torch.randn(*shape, generator=g).to(dtype) for shape in ((n, d), (n, d), (v, d))
    )
    ids = torch.randint(v, (n,), generator=g)
    target = {"sft": ids, "sampled": (teacher, ids)}.get(kind, teacher)
    return student, target, head / d**0.5, torch.rand(n, generator=g).to(dtype) + 0.1


SMALL_REST = dict(v=8, temperature=0.5, tail="bucket", beta=0.1, clip=None, chunk=None)


@example(kind="forward", n=2, d=2, top_k=5, seed=244, **SMALL_REST)
@example(kind="reverse", n=1, d=4, top_k=1, seed=4, **SMALL_REST)
@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(1, 9),
    d=st.integers(2, 24),
    v=st.integers(8, 80),
    temperature=st.sampled_from([0.5, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([None, 1, 5, 100]),
    tail=st.sampled_from(TAILS),
    beta=st.sampled_from([0.1, 0.5, 0.9]),
    clip=st.sampled_from([None, 0.3, 100.0]),
    chunk=st.sampled_from([None, 1, 2, 4]),
    seed=st.integers(0, 10**6),
)
def test_loss_and_gradient_equal_float64_autograd(
    kind, n, d, v, temperature, top_k, tail, beta, clip, chunk, seed
):
    student, target, head, weights = draw(seed, n, d, v, kind, torch.float32)
    wide, more = student.double().requires_grad_(), {"tail": tail, "beta": beta, "clip": clip}
    exact = naive(
        kind,
        wide,
        cast(target, torch.float64),
        head.double(),
        temperature,
        top_k,
        weights.double(),
        **more,
    )
    exact.backward()
    student.requires_grad_()
    loss = ours(kind, student, target, head, temperature, top_k, weights, chunk=chunk, **more)
    (3 * loss).backward()  # the factor checks that the upstream gradient is used
    # a top-k loss sums terms of both signs and can be near zero: then compare relative to a usual
    # loss
    size = max(abs(exact.item()), 0.1 * weights.sum().item())
    assert abs(loss.item() - exact.item()) <= 1e-5 * size
    # likewise a gradient p (gap - KL) near zero: float32 logits of about 10 carry an error of 1e-6
    # themselves
    assert (student.grad / 3 - wide.grad).norm() <= 1e-5 * max(wide.grad.norm().item(), 0.1)
    assert student.grad.dtype == torch.float32


@pytest.mark.parametrize(
    "top_k, tail", [(None, "drop"), (7, "drop"), (7, "bucket"), (7, "renormalize")]
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shaped", [False, True])
def test_gradient_is_exact_in_float64(kind, top_k, tail, shaped):
    student, target, head, weights = draw(1, 6, 8, 40, kind, torch.float64)
    if shaped:
        head = Head(head, torch.linspace(-1, 1, 40).double(), scale=1.7, cap=4.0)
    a, b = student.clone().requires_grad_(), student.clone().requires_grad_()
    ours(kind, a, target, head, 0.7, top_k, weights, tail, chunk=4).backward()
    naive(kind, b, target, head, 0.7, top_k, weights, tail).backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_as_close_as_the_naive_loss_in_bfloat16(kind):
    student, target, head, weights = draw(2, 32, 64, 500, kind, torch.bfloat16)

    def run(loss, hidden_dtype):
        hidden = student.to(hidden_dtype, copy=True).requires_grad_()
        value = loss(
            kind,
            hidden,
            cast(target, hidden_dtype),
            head.to(hidden_dtype),
            1.0,
            None,
            weights.to(hidden_dtype),
        )
        value.backward()
        return value.item(), hidden.grad.double()

    exact, exact_grad = run(naive, torch.float64)
    plain, plain_grad = run(naive, torch.bfloat16)
    value, grad = run(ours, torch.bfloat16)
    assert abs(value - exact) <= abs(plain - exact) + 1e-3 * abs(exact)
    assert (grad - exact_grad).norm() <= 1.2 * (plain_grad - exact_grad).norm()


def test_the_sampled_estimate_is_right_in_expectation():
    """Averaged over all ids with the student's probabilities, it equals the reverse KL, and so does
    its gradient.
    """
    student, teacher, head, _ = draw(9, 1, 8, 30, "reverse", torch.float64)
    a, b = student.clone().requires_grad_(), student.clone().requires_grad_()
    p = (student @ head.T).softmax(-1)[0]
    whole = sampled_kl(a.expand(30, -1), teacher.expand(30, -1), torch.arange(30), head, weights=p)
    exact = reverse_kl(b, teacher, head)
    whole.backward(), exact.backward()
    torch.testing.assert_close(whole, exact)
    torch.testing.assert_close(a.grad, b.grad)


def test_jsd_goes_over_into_the_two_kls():
    student, teacher, head, _ = draw(10, 4, 8, 30, "reverse", torch.float64)
    for beta, kl in ((1e-6, forward_kl), (1 - 1e-6, reverse_kl)):
        torch.testing.assert_close(
            jsd(student, teacher, head, beta=beta) / (beta * (1 - beta)),
            kl(student, teacher, head),
            rtol=1e-4,
            atol=0,
        )
    assert torch.equal(jsd(student, teacher, head, beta=0.0), forward_kl(student, teacher, head))
    assert torch.equal(jsd(student, teacher, head, beta=1.0), reverse_kl(student, teacher, head))


def test_identical_states_have_no_loss_and_no_gradient():
    student, _, head, weights = draw(3, 5, 8, 30, "reverse", torch.float32)
    for loss in (reverse_kl, forward_kl, jsd):
        hidden = student.clone().requires_grad_()
        value = loss(hidden, student, head, weights=weights)
        value.backward()
        assert abs(value.item()) < 1e-6 and hidden.grad.abs().max() < 1e-6


def test_without_weights_it_is_the_mean_and_only_the_student_gets_a_gradient():
    student, teacher, head, _ = draw(4, 5, 8, 30, "reverse", torch.float32)
    student.requires_grad_(), teacher.requires_grad_()
    value = reverse_kl(student, teacher, head)
    value.backward()
    assert teacher.grad is None
    fifths = reverse_kl(student, teacher, head, weights=torch.full((5,), 0.2))
    assert value.item() == pytest.approx(fifths.item(), rel=1e-6)


def test_reverse_and_forward_differ():
    student, teacher, head, _ = draw(5, 5, 8, 30, "reverse", torch.float32)
    assert abs(reverse_kl(student, teacher, head) - forward_kl(student, teacher, head)) > 1e-2
    assert torch.allclose(reverse_kl(student, teacher, head), forward_kl(teacher, student, head))


def test_entropy():
    student, _, head, _ = draw(6, 9, 8, 30, "reverse", torch.float32)
    want = torch.distributions.Categorical(logits=student @ head.T / 0.7).entropy()
    torch.testing.assert_close(entropy(student, head, temperature=0.7, chunk=4), want)


def test_no_tensor_of_all_logits_is_allocated():
    """The largest tensor of forward and backward is one chunk's [rows, V]."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, torch.Tensor) and x.shape[:1] != (
                    1000,
                ):  # not (a view of) the head
                    self.numel = max(self.numel, x.numel())
            return out

    student, teacher, head, weights = draw(7, 200, 8, 1000, "reverse", torch.float32)
    student.requires_grad_()
    for top_k in (None, 16):
        with Largest() as seen:
            reverse_kl(student, teacher, head, weights=weights, chunk=10, top_k=top_k).backward()
        assert seen.numel == 10 * 1000


def test_bad_input():
    student, teacher, head, weights = draw(8, 5, 8, 30, "reverse", torch.float32)
    with pytest.raises(ValueError, match="trainable"):
        reverse_kl(student, teacher, head.requires_grad_())
    head = head.detach()
    for args, kwargs in (
        ((student, teacher[:3], head), {}),
        ((student[:, :4], teacher, head), {}),
        ((student, teacher, head), {"weights": weights[:2]}),
        ((student[:0], teacher[:0], head), {}),
    ):
        with pytest.raises(ValueError, match="shapes do not fit"):
            reverse_kl(*args, **kwargs)
    with pytest.raises(ValueError, match="temperature"):
        reverse_kl(student, teacher, head, temperature=0)
    for bad in ({"clip": 0}, {"tail": "keep"}, {"beta": 2}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            jsd(student, teacher, head, **bad)

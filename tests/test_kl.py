"""The losses against float64 autograd on full logits."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oelkit.kl import cross_entropy, entropy, forward_kl, reverse_kl


def naive(kind, hidden, target, head, temperature, top_k, weights):
    """The definition, on full logits; `target` is the teacher's hidden states or the target ids."""
    z = hidden @ head.T / temperature
    s = z.log_softmax(-1)
    if kind == "sft":
        rows = torch.nn.functional.cross_entropy(z, target, reduction="none")
    else:
        t = (target @ head.T / temperature).log_softmax(-1)
        terms = s.exp() * (s - t) if kind == "reverse" else t.exp() * (t - s)
        if top_k:
            terms = terms.gather(-1, z.detach().topk(min(top_k, z.shape[-1]), -1).indices)
        rows = terms.sum(-1)
    return (rows * weights).sum()


def ours(kind, hidden, target, head, temperature, top_k, weights, chunk=None):
    common = dict(temperature=temperature, weights=weights, chunk=chunk)
    if kind == "sft":
        return cross_entropy(hidden, target, head, **common)
    return {"reverse": reverse_kl, "forward": forward_kl}[kind](hidden, target, head, top_k=top_k, **common)


def draw(seed, n, d, v, kind, dtype):
    g = torch.Generator().manual_seed(seed)
    student, teacher, head = (torch.randn(*shape, generator=g).to(dtype) for shape in ((n, d), (n, d), (v, d)))
    target = torch.randint(v, (n,), generator=g) if kind == "sft" else teacher
    return student, target, head / d**0.5, torch.rand(n, generator=g).to(dtype) + 0.1


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(["reverse", "forward", "sft"]), n=st.integers(1, 9), d=st.integers(2, 24),
       v=st.integers(8, 80), temperature=st.sampled_from([0.5, 0.7, 1.0, 2.0]),
       top_k=st.sampled_from([None, 1, 5, 100]), chunk=st.sampled_from([None, 1, 2, 4]), seed=st.integers(0, 10**6))
def test_loss_and_gradient_equal_float64_autograd(kind, n, d, v, temperature, top_k, chunk, seed):
    student, target, head, weights = draw(seed, n, d, v, kind, torch.float32)
    wide = student.double().requires_grad_()
    wide_target = target if kind == "sft" else target.double()
    exact = naive(kind, wide, wide_target, head.double(), temperature, top_k, weights.double())
    exact.backward()
    student.requires_grad_()
    loss = ours(kind, student, target, head, temperature, top_k, weights, chunk)
    (3 * loss).backward()  # the factor shows that the upstream gradient is used
    # a top-k loss is a sum of terms of both signs and can come out near zero: then relative to a usual loss
    size = max(abs(exact.item()), 0.1 * weights.sum().item())
    assert abs(loss.item() - exact.item()) <= 1e-5 * size
    # likewise a gradient p (gap - KL) near zero: float32 logits of about 10 carry an error of 1e-6 themselves
    assert (student.grad / 3 - wide.grad).norm() <= 1e-5 * max(wide.grad.norm().item(), 0.1)
    assert student.grad.dtype == torch.float32


@pytest.mark.parametrize("top_k", [None, 7])
@pytest.mark.parametrize("kind", ["reverse", "forward", "sft"])
def test_gradient_is_exact_in_float64(kind, top_k):
    student, target, head, weights = draw(1, 6, 8, 40, kind, torch.float64)
    a, b = student.clone().requires_grad_(), student.clone().requires_grad_()
    ours(kind, a, target, head, 0.7, top_k, weights, 4).backward()
    naive(kind, b, target, head, 0.7, top_k, weights).backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ["reverse", "forward", "sft"])
def test_bfloat16_is_as_close_as_the_naive_loss_in_bfloat16(kind):
    student, target, head, weights = draw(2, 32, 64, 500, kind, torch.bfloat16)

    def run(loss, hidden_dtype):
        hidden = student.to(hidden_dtype, copy=True).requires_grad_()
        other = target if kind == "sft" else target.to(hidden_dtype)
        value = loss(kind, hidden, other, head.to(hidden_dtype), 1.0, None, weights.to(hidden_dtype))
        value.backward()
        return value.item(), hidden.grad.double()

    exact, exact_grad = run(naive, torch.float64)
    plain, plain_grad = run(naive, torch.bfloat16)
    value, grad = run(ours, torch.bfloat16)
    assert abs(value - exact) <= abs(plain - exact) + 1e-3 * exact
    assert (grad - exact_grad).norm() <= 1.2 * (plain_grad - exact_grad).norm()


def test_identical_states_have_no_loss_and_no_gradient():
    student, _, head, weights = draw(3, 5, 8, 30, "reverse", torch.float32)
    for loss in (reverse_kl, forward_kl):
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
    """The largest tensor made on the way is one chunk's [rows, V], in forward and backward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, torch.Tensor) and x.shape[:1] != (1000,):  # not (a view of) the head
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
    for args, kwargs in (((student, teacher[:3], head), {}), ((student[:, :4], teacher, head), {}),
                         ((student, teacher, head), {"weights": weights[:2]}), ((student[:0], teacher[:0], head), {})):
        with pytest.raises(ValueError, match="shapes do not fit"):
            reverse_kl(*args, **kwargs)
    with pytest.raises(ValueError, match="temperature"):
        reverse_kl(student, teacher, head, temperature=0)

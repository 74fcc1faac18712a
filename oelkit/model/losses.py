"""Distillation losses on hidden states, which never hold the logits of all tokens at once.

There are reverse KL (the method), forward KL, Jensen-Shannon, an estimate from the sampled tokens
alone, and cross-entropy (SFT). Student and teacher share one frozen head, which turns their final
hidden states into distributions, a chunk of rows at a time. Because the head is frozen, the
gradient with respect to the student's hidden states is computed in the forward pass, and no chunk's
logits outlive it.

Departure from the paper: the default is the full vocabulary. top_k=256 gives the paper's loss: the
full distributions' terms, summed over the student's top-k ids, neither renormalised nor completed
by a tail term.

Each loss takes hidden states [N, D] of N reply tokens and the frozen head (a `Head`, or only its
matrix [V, D]), and returns the weighted sum over rows (scalar). Only the student's hidden states
get a gradient. With s, t the log-softmax of both logits z / temperature, a row's reverse KL is
sum_v p_s (s - t) and its forward KL is sum_v p_t (t - s). All losses raise ValueError for a
trainable head, shapes that do not match and invalid settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from .head import Head

TAILS = ("drop", "bucket", "renormalize")
# (logits [n, V] / temperature, targets) -> (losses [n], their gradient [n, V] by the logits)
LossAndDLogits = Callable[..., tuple[Tensor, Tensor]]


class Options(TypedDict, total=False):
    """Keywords of every loss."""

    temperature: float
    """Divides the logits of both; default 1.0."""
    weights: Tensor | None
    """[N], e.g. 1 / (reply length * batch size); None is the mean over rows."""
    clip: float | None
    """Upper limit of a row's loss; a larger one is scaled down to it, with its gradient."""
    chunk: int | None
    """Rows per chunk; None gives a few buffers of 16 MB (CUDA: 128 MB)."""


class DivergenceOptions(Options, total=False):
    """Keywords of the divergences."""

    top_k: int | None
    """Use only the student's k most likely ids, with gradients through the full softmax."""
    tail: str
    """The other ids' mass: "drop" (paper), "bucket" (one more bin), "renormalize" (k sum to 1)."""


def reverse_kl(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    head: Head | Tensor,
    **options: Unpack[DivergenceOptions],
) -> Tensor:
    """KL(student || teacher); arXiv 2602.12275."""
    return jsd(student_hidden, teacher_hidden, head, beta=1.0, **options)


def forward_kl(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    head: Head | Tensor,
    **options: Unpack[DivergenceOptions],
) -> Tensor:
    """KL(teacher || student)."""
    return jsd(student_hidden, teacher_hidden, head, beta=0.0, **options)


def jsd(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    head: Head | Tensor,
    *,
    beta: float = 0.5,
    top_k: int | None = None,
    tail: str = "drop",
    **options: Unpack[Options],
) -> Tensor:
    """Generalised Jensen-Shannon divergence; arXiv 2306.13649.

    beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student. At
    the ends this vanishes; there beta = 0 is the forward and beta = 1 the reverse KL (as in TRL).
    """
    if not 0 <= beta <= 1 or tail not in TAILS:
        raise ValueError(f"beta={beta}, tail={tail!r}: need 0 to 1, and one of {', '.join(TAILS)}")
    if top_k is not None and top_k < 0:
        raise ValueError(f"top_k={top_k}: need 0 or more; None is all ids")
    loss_and_dlogits = partial(_divergence, beta=beta, top_k=top_k, tail=tail)
    return _loss(student_hidden, (teacher_hidden,), head, loss_and_dlogits, **options)


def sampled_kl(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    ids: Tensor,
    head: Head | Tensor,
    **options: Unpack[Options],
) -> Tensor:
    """Estimate reverse KL as log p_student - log p_teacher of ids [N] that the student sampled.

    The gradient is a policy gradient with this estimate as the cost, correct in expectation. A
    row's loss can be negative; clip then bounds its absolute value.
    """
    return _loss(student_hidden, (teacher_hidden, ids), head, _sampled, **options)


def cross_entropy(
    student_hidden: Tensor, target_ids: Tensor, head: Head | Tensor, **options: Unpack[Options]
) -> Tensor:
    """Return -log p_student of target_ids [N], for SFT."""
    return _loss(student_hidden, (target_ids,), head, _negative_log, **options)


@torch.no_grad()
def entropy(
    hidden: Tensor, head: Head | Tensor, *, temperature: float = 1.0, chunk: int | None = None
) -> Tensor:
    """Return the entropy [N], in nats, of each row's next-token distribution; hidden is [N, D]."""
    parts, head = [], _as_head(head)
    for h in hidden.split(chunk or head.chunk_rows):
        s = head.logits(h, temperature).log_softmax(1)
        parts.append(-(s.exp() * s).sum(1))
    return torch.cat(parts)


def _divergence(
    z: Tensor, t: Tensor, beta: float, top_k: int | None, tail: str
) -> tuple[Tensor, Tensor]:
    s = z.log_softmax(1)
    if top_k and top_k < z.shape[1]:
        return _top_k_divergence(s, t, z.topk(top_k, 1).indices, beta, tail)
    if beta == 0:
        p_t = t.exp()
        return (p_t * t.sub_(s)).sum(1), s.exp_().sub_(p_t)
    if beta < 1:
        loss, p, t = _divergence_terms(s, t, beta).sum(1), s.exp(), _mixture(s, t, beta)
        gap = s.sub_(t)
        return loss, gap.sub_((p * gap).sum(1, keepdim=True)).mul_(p).mul_(1 - beta)
    p, gap = s.exp(), s.sub_(t)
    loss = (p * gap).sum(1)
    return loss, gap.sub_(loss[:, None]).mul_(p)


def _top_k_divergence(
    s: Tensor, t: Tensor, ids: Tensor, beta: float, tail: str
) -> tuple[Tensor, Tensor]:
    s_k, t_k = s.gather(1, ids), t.gather(1, ids)
    if tail == "bucket":
        # log(1 - sum p_k) would lose all digits of a small rest
        rest, t_rest = (x.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True) for x in (s, t))
        s_k, t_k = torch.cat([s_k, rest], 1), torch.cat([t_k, t_rest], 1)
    with torch.enable_grad():  # through [n, k] tensors only
        s_k.requires_grad_()
        pair = s_k, t_k
        if tail == "renormalize":
            pair = [x - x.logsumexp(1, keepdim=True) for x in pair]
        loss = _divergence_terms(*pair, beta).sum(1)
        (inner,) = torch.autograd.grad(loss.sum(), s_k)
    total = -inner.sum(1, keepdim=True)
    if tail == "bucket":  # the other ids share its gradient
        shares = (s - s_k[:, -1:]).exp_().mul_(inner[:, -1:]).scatter_(1, ids, 0)
        grad = s.exp_().mul_(total).add_(shares)
    else:
        grad = s.exp_().mul_(total)
    return loss.detach(), grad.scatter_add_(1, ids, inner[:, : ids.shape[1]])


def _divergence_terms(s: Tensor, t: Tensor, beta: float) -> Tensor:
    """Return a divergence's terms for each entry of the log-probabilities s and t."""
    if beta in (0, 1):
        return s.exp() * (s - t) if beta else t.exp() * (t - s)
    m = _mixture(s, t, beta)
    return (1 - beta) * s.exp() * (s - m) + beta * t.exp() * (t - m)


def _mixture(s: Tensor, t: Tensor, beta: float) -> Tensor:
    return torch.logaddexp(s + math.log(1 - beta), t + math.log(beta))


def _sampled(z: Tensor, t: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    s = z.log_softmax(1)
    cost = s.gather(1, ids) - t.gather(1, ids)
    return cost[:, 0], s.exp_().mul_(-cost).scatter_add_(1, ids, cost)


def _negative_log(z: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    s = z.log_softmax(1)
    loss = -s.gather(1, ids)[:, 0]
    return loss, s.exp_().scatter_add_(1, ids, s.new_full(ids.shape, -1.0))


def _as_head(head: Head | Tensor) -> Head:
    return head if isinstance(head, Head) else Head(head)


def _loss(
    hidden: Tensor,
    targets: tuple[Tensor, ...],
    head: Head | Tensor,
    loss_and_dlogits: LossAndDLogits,
    temperature: float = 1.0,
    weights: Tensor | None = None,
    clip: float | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Return the weighted sum of row losses; targets: the teacher's hidden states, ids or both."""
    n, head = len(hidden), _as_head(head)
    if head.weight.requires_grad:
        raise ValueError(
            "the head is trainable, but these losses give it no gradient: freeze it (head.detach())"
        )
    if weights is None:
        weights = torch.full((n,), 1 / max(n, 1), device=hidden.device)
    rows = {n, weights.numel(), *map(len, targets)}
    if n == 0 or len(rows) > 1 or hidden.ndim != 2 or hidden.shape[1] != head.weight.shape[1]:
        got = [tuple(x.shape) for x in (hidden, *targets, head.weight, weights)]
        raise ValueError(
            f"shapes do not fit: hidden states, targets, head and weights are {got}; "
            "need [N, D], [N, ...], [V, D], [N] with N > 0"
        )
    if not temperature > 0 or not (clip is None or clip > 0):
        raise ValueError(f"temperature={temperature}, clip={clip}: must be above 0")
    wide, chunk = torch.promote_types(hidden.dtype, torch.float32), chunk or head.chunk_rows
    total, grad = torch.zeros((), dtype=wide, device=hidden.device), None
    if hidden.requires_grad and torch.is_grad_enabled():
        grad = torch.empty_like(hidden, dtype=wide)
    with torch.no_grad():
        for i in range(0, n, chunk):
            part, w = slice(i, i + chunk), weights[i : i + chunk].to(wide)
            z, given = head.logits(hidden[part], temperature), list[Tensor]()
            for x in targets:
                if x.is_floating_point():
                    given.append(head.logits(x[part], temperature).log_softmax(1))
                else:
                    given.append(x[part, None])
            loss, dz = loss_and_dlogits(z, *given)
            if clip is not None:
                w = w * (clip / loss.abs()).clamp(max=1)
            total += (loss * w).sum()
            if grad is not None:
                # weights after the product: in float16 small weights would underflow before it
                grad[part] = head.gradient(dz, z, temperature) * w[:, None]
    return total if grad is None else _WithGradient.apply(hidden, total, grad)


class _WithGradient(torch.autograd.Function):
    """A loss whose gradient with respect to the hidden states is known."""

    @staticmethod
    def forward(ctx, hidden, loss, grad):
        ctx.save_for_backward(grad)
        ctx.dtype = hidden.dtype
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        (grad,) = ctx.saved_tensors
        return (grad * upstream).to(ctx.dtype), None, None

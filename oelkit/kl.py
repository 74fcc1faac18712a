"""The losses of distillation, on hidden states, without ever holding logits of all tokens.

What it does: reverse KL (the method), forward KL and cross-entropy (the off-policy arms) between what a student's and
a teacher's final hidden states say through one frozen head, chunk of rows by chunk of rows. As the head is frozen, the
gradient with respect to the student's hidden states is formed in the forward pass: no chunk's logits outlive it. What
it does not: run the model, or know about prompts and replies.

Departure from the paper: the default is the full vocabulary; top_k=256 gives the paper's loss (the sum over the
student's top-k ids of the full distributions' terms, neither renormalised nor completed by a tail term).

With s, t the log-softmax of both logits z/T, a row's reverse KL is sum_v p_s (s - t), its forward KL sum_v p_t (t - s).
"""
from __future__ import annotations

from collections.abc import Callable

import torch


def reverse_kl(student_hidden: torch.Tensor, teacher_hidden: torch.Tensor, head: torch.Tensor, *,
               temperature: float = 1.0, top_k: int | None = None, weights: torch.Tensor | None = None,
               chunk: int | None = None) -> torch.Tensor:
    """KL(student || teacher), weighted sum over rows (scalar); arXiv 2602.12275.

    student_hidden, teacher_hidden: [N, D], rows of the same N reply tokens; only the first gets a gradient.
    head: [V, D], frozen. weights: [N], e.g. 1 / (reply length * batch size); None is the mean over rows. temperature
    divides both logits. top_k: only the student's k likeliest ids, gradient through their full-softmax probabilities.
    chunk: rows at a time; None keeps the working memory at a few buffers of 16 MB (CUDA: 128 MB).
    Raises ValueError for a trainable head, a temperature that is not above 0 and shapes that do not fit.
    """
    def rows(z: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ids = z.topk(min(top_k, z.shape[1]), 1).indices if top_k else None
        s, t = z.log_softmax(1), _logits(teacher, head, temperature).log_softmax(1)
        p = s.exp()
        if ids is None:
            gap = s.sub_(t)
            loss = (p * gap).sum(1)
            return loss, gap.sub_(loss[:, None]).mul_(p)
        p_k, gap = p.gather(1, ids), s.gather(1, ids) - t.gather(1, ids)
        loss, inner = (p_k * gap).sum(1), p_k * (gap + 1)  # the +1 cancels only where the probabilities sum to one
        return loss, p.mul_(-inner.sum(1, keepdim=True)).scatter_add_(1, ids, inner)

    return _loss(student_hidden, teacher_hidden, head, temperature, weights, chunk, rows)


def forward_kl(student_hidden: torch.Tensor, teacher_hidden: torch.Tensor, head: torch.Tensor, *,
               temperature: float = 1.0, top_k: int | None = None, weights: torch.Tensor | None = None,
               chunk: int | None = None) -> torch.Tensor:
    """KL(teacher || student), weighted sum over rows (scalar); arguments as in reverse_kl (top_k: the student's)."""
    def rows(z: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ids = z.topk(min(top_k, z.shape[1]), 1).indices if top_k else None
        s, t = z.log_softmax(1), _logits(teacher, head, temperature).log_softmax(1)
        if ids is None:
            p_t = t.exp()
            return (p_t * t.sub_(s)).sum(1), s.exp_().sub_(p_t)
        t = t.gather(1, ids)
        p_t, gap = t.exp(), t - s.gather(1, ids)
        return (p_t * gap).sum(1), s.exp_().mul_(p_t.sum(1, keepdim=True)).scatter_add_(1, ids, -p_t)

    return _loss(student_hidden, teacher_hidden, head, temperature, weights, chunk, rows)


def cross_entropy(student_hidden: torch.Tensor, target_ids: torch.Tensor, head: torch.Tensor, *,
                  temperature: float = 1.0, weights: torch.Tensor | None = None,
                  chunk: int | None = None) -> torch.Tensor:
    """-log p_student of target_ids [N], weighted sum over rows (scalar), for SFT; arguments as in reverse_kl."""
    def rows(z: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        s, targets = z.log_softmax(1), targets[:, None]
        loss = -s.gather(1, targets)[:, 0]
        return loss, s.exp_().scatter_add_(1, targets, s.new_full(targets.shape, -1.0))

    return _loss(student_hidden, target_ids, head, temperature, weights, chunk, rows)


@torch.no_grad()
def entropy(hidden: torch.Tensor, head: torch.Tensor, *, temperature: float = 1.0,
            chunk: int | None = None) -> torch.Tensor:
    """Entropy in nats of the next-token distribution of each row of hidden [N, D] -> [N]; no gradient."""
    parts = []
    for h in hidden.split(chunk or _rows(head)):
        s = _logits(h, head, temperature).log_softmax(1)
        parts.append(-(s.exp() * s).sum(1))
    return torch.cat(parts)


def _loss(student_hidden: torch.Tensor, target: torch.Tensor, head: torch.Tensor, temperature: float,
          weights: torch.Tensor | None, chunk: int | None, rows: Callable) -> torch.Tensor:
    n = len(student_hidden)
    if head.requires_grad:
        raise ValueError("the head is trainable, but these losses give it no gradient: freeze it (head.detach())")
    if student_hidden.ndim != 2 or n == 0 or len(target) != n or student_hidden.shape[1] != head.shape[1] \
            or (weights is not None and weights.shape != (n,)):
        got = [None if x is None else tuple(x.shape) for x in (student_hidden, target, head, weights)]
        raise ValueError(f"shapes do not fit: hidden states, target, head and weights are {got}; "
                         "need [N, D], [N, ...], [V, D], [N] with N > 0")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be above 0")
    if weights is None:
        weights = torch.full((n,), 1 / n, device=student_hidden.device)
    return _Chunked.apply(student_hidden, target.detach(), head, temperature, weights, chunk or _rows(head), rows)


class _Chunked(torch.autograd.Function):
    """Weighted sum of rows(logits, target) -> (loss [n], its gradient with respect to the logits / T [n, V])."""

    @staticmethod
    def forward(ctx, hidden, target, head, temperature, weights, chunk, rows):
        total, wide = 0.0, torch.promote_types(hidden.dtype, torch.float32)
        grad = hidden.new_empty(hidden.shape, dtype=wide) if ctx.needs_input_grad[0] else None
        for i in range(0, len(hidden), chunk):
            part, w = slice(i, i + chunk), weights[i:i + chunk].to(wide)
            loss, dz = rows(_logits(hidden[part], head, temperature), target[part])
            total = total + (loss * w).sum()
            if grad is not None:  # weights after the product: in float16 small weights would underflow before it
                grad[part] = (dz.to(head.dtype) @ head).to(wide) * (w / temperature)[:, None]
        ctx.save_for_backward(grad)
        ctx.dtype = hidden.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        grad, = ctx.saved_tensors
        return (grad * upstream).to(ctx.dtype), None, None, None, None, None, None


def _logits(hidden: torch.Tensor, head: torch.Tensor, temperature: float) -> torch.Tensor:
    """[n, V], the product in the head's dtype, the rest at least in float32."""
    z = hidden.to(head.dtype) @ head.T
    return z.to(torch.promote_types(z.dtype, torch.float32)) / temperature


def _rows(head: torch.Tensor) -> int:
    """Rows a chunk: few enough that one [rows, V] float32 buffer stays small, more where a GPU wants large products."""
    return max(1, (2**25 if head.is_cuda else 2**22) // len(head))

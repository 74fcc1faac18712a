"""The losses of distillation, on hidden states, without ever holding logits of all tokens.

What it does: reverse KL (the method), forward KL, Jensen-Shannon, an estimate from the sampled
tokens alone, and cross-entropy (SFT), between what a student's and a teacher's final hidden states
say through one frozen head, chunk of rows by chunk of rows. As the head is frozen, the gradient
with respect to the student's hidden states is formed in the forward pass: no chunk's logits outlive
it. What it does not: run the model, or know about prompts and replies.

Departure from the paper: the default is the full vocabulary; top_k=256 gives the paper's loss (the
sum over the student's top-k ids of the full distributions' terms, neither renormalised nor
completed by a tail term).

With s, t the log-softmax of both logits z/T, a row's reverse KL is sum_v p_s (s - t), its forward
KL sum_v p_t (t - s)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

TAILS = ("drop", "bucket", "renormalize")


def reverse_kl(
    student_hidden: torch.Tensor,
    teacher_hidden: torch.Tensor,
    head: torch.Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    tail: str = "drop",
    clip: float | None = None,
    weights: torch.Tensor | None = None,
    chunk: int | None = None,
    beta: float = 1.0,
) -> torch.Tensor:
    """KL(student || teacher), weighted sum over rows (scalar); arXiv 2602.12275.

    student_hidden, teacher_hidden: [N, D], rows of the same N reply tokens; only the first gets a
    gradient. head: [V, D], frozen. weights: [N], e.g. 1 / (reply length * batch size); None is the
    mean over rows. temperature divides both logits. top_k: only the student's k likeliest ids,
    gradient through their full-softmax probabilities; tail: what becomes of the other ids' mass:
    "drop" (as in the paper), "bucket" (one more bin), "renormalize" (the k sum to one). clip: a row
    whose loss is above it is scaled down, with its gradient, to that loss. chunk: rows at a time;
    None keeps the working memory at a few buffers of 16 MB (CUDA: 128 MB). beta: see `jsd`. Raises
    ValueError for a trainable head, a temperature that is not above 0 and shapes that do not fit.
    """
    if not 0 <= beta <= 1 or tail not in TAILS:
        raise ValueError(f"beta={beta}, tail={tail!r}: need 0 to 1, and one of {', '.join(TAILS)}")

    def rows(z: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        s, t = z.log_softmax(1), _logits(teacher, head, temperature).log_softmax(1)
        if top_k and top_k < z.shape[1]:
            ids = z.topk(top_k, 1).indices
            with torch.enable_grad():  # through [n, k] tensors only
                s_k = s.gather(1, ids).requires_grad_()
                loss = _terms(_tail(s_k, tail), _tail(t.gather(1, ids), tail), beta).sum(1)
                (inner,) = torch.autograd.grad(loss.sum(), s_k)
            return loss.detach(), s.exp_().mul_(-inner.sum(1, keepdim=True)).scatter_add_(
                1, ids, inner
            )
        if beta == 0:
            p_t = t.exp()
            return (p_t * t.sub_(s)).sum(1), s.exp_().sub_(p_t)
        if beta < 1:
            loss, p, t = _terms(s, t, beta).sum(1), s.exp(), _mixture(s, t, beta)
            gap = s.sub_(t)
            return loss, gap.sub_((p * gap).sum(1, keepdim=True)).mul_(p).mul_(1 - beta)
        p, gap = s.exp(), s.sub_(t)
        loss = (p * gap).sum(1)
        return loss, gap.sub_(loss[:, None]).mul_(p)

    return _loss(student_hidden, (teacher_hidden,), head, temperature, weights, chunk, rows, clip)


def forward_kl(
    student_hidden: torch.Tensor, teacher_hidden: torch.Tensor, head: torch.Tensor, **options
) -> torch.Tensor:
    """KL(teacher || student), weighted sum over rows (scalar); options as in reverse_kl (top_k: the
    student's).
    """
    return reverse_kl(student_hidden, teacher_hidden, head, **options, beta=0.0)


def jsd(
    student_hidden: torch.Tensor,
    teacher_hidden: torch.Tensor,
    head: torch.Tensor,
    *,
    beta: float = 0.5,
    **options,
) -> torch.Tensor:
    """Generalised Jensen-Shannon divergence (arXiv 2306.13649), weighted sum over rows; options as
    in reverse_kl.

    beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student; at
    the ends, where that vanishes, beta = 0 is the forward and beta = 1 the reverse KL (as in TRL).
    """
    return reverse_kl(student_hidden, teacher_hidden, head, **options, beta=beta)


def sampled_kl(
    student_hidden: torch.Tensor,
    teacher_hidden: torch.Tensor,
    ids: torch.Tensor,
    head: torch.Tensor,
    *,
    temperature: float = 1.0,
    clip: float | None = None,
    weights: torch.Tensor | None = None,
    chunk: int | None = None,
) -> torch.Tensor:
    """Log p_student - log p_teacher of ids [N], which the student sampled: the reverse KL's
    estimate from one token.

    Its gradient is that of a policy gradient with this as the cost, right in expectation; a row's
    loss may be negative (clip then bounds its size). Other arguments as in reverse_kl."""

    def rows(
        z: torch.Tensor, teacher: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        s, t, y = z.log_softmax(1), _logits(teacher, head, temperature).log_softmax(1), y[:, None]
        cost = s.gather(1, y) - t.gather(1, y)
        return cost[:, 0], s.exp_().mul_(-cost).scatter_add_(1, y, cost)

    return _loss(
        student_hidden, (teacher_hidden, ids), head, temperature, weights, chunk, rows, clip
    )


def cross_entropy(
    student_hidden: torch.Tensor,
    target_ids: torch.Tensor,
    head: torch.Tensor,
    *,
    temperature: float = 1.0,
    clip: float | None = None,
    weights: torch.Tensor | None = None,
    chunk: int | None = None,
) -> torch.Tensor:
    """-log p_student of target_ids [N], weighted sum over rows (scalar), for SFT; arguments as in
    reverse_kl.
    """

    def rows(z: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        s, targets = z.log_softmax(1), targets[:, None]
        loss = -s.gather(1, targets)[:, 0]
        return loss, s.exp_().scatter_add_(1, targets, s.new_full(targets.shape, -1.0))

    return _loss(student_hidden, (target_ids,), head, temperature, weights, chunk, rows, clip)


@torch.no_grad()
def entropy(
    hidden: torch.Tensor, head: torch.Tensor, *, temperature: float = 1.0, chunk: int | None = None
) -> torch.Tensor:
    """Entropy in nats of the next-token distribution of each row of hidden [N, D] -> [N]; no
    gradient.
    """
    parts = []
    for h in hidden.split(chunk or chunk_rows(head)):
        s = _logits(h, head, temperature).log_softmax(1)
        parts.append(-(s.exp() * s).sum(1))
    return torch.cat(parts)


def _terms(s: torch.Tensor, t: torch.Tensor, beta: float) -> torch.Tensor:
    """The divergence's terms, entry by entry of the log-probabilities s and t."""
    if beta in (0, 1):
        return s.exp() * (s - t) if beta else t.exp() * (t - s)
    m = _mixture(s, t, beta)
    return (1 - beta) * s.exp() * (s - m) + beta * t.exp() * (t - m)


def _mixture(s: torch.Tensor, t: torch.Tensor, beta: float) -> torch.Tensor:
    return torch.logaddexp(s + math.log(1 - beta), t + math.log(beta))


def _tail(logprobs: torch.Tensor, tail: str) -> torch.Tensor:
    """Top-k log-probabilities [n, k] with the mass of all other ids dropped, in one more bin, or
    spread over the k.
    """
    if tail == "drop":
        return logprobs
    total = logprobs.logsumexp(1, keepdim=True)
    if tail == "renormalize":
        return logprobs - total
    return torch.cat([logprobs, (-torch.expm1(total.clamp(max=-1e-7))).log()], 1)


def _loss(
    student_hidden: torch.Tensor,
    targets: tuple[torch.Tensor, ...],
    head: torch.Tensor,
    temperature: float,
    weights: torch.Tensor | None,
    chunk: int | None,
    rows: Callable,
    clip: float | None,
) -> torch.Tensor:
    n = len(student_hidden)
    if head.requires_grad:
        raise ValueError(
            "the head is trainable, but these losses give it no gradient: freeze it (head.detach())"
        )
    if (
        student_hidden.ndim != 2
        or n == 0
        or any(len(x) != n for x in targets)
        or student_hidden.shape[1] != head.shape[1]
        or (weights is not None and weights.shape != (n,))
    ):
        got = [
            None if x is None else tuple(x.shape) for x in (student_hidden, *targets, head, weights)
        ]
        raise ValueError(
            f"shapes do not fit: hidden states, targets, head and weights are {got}; "
            "need [N, D], [N, ...], [V, D], [N] with N > 0"
        )
    if not temperature > 0 or not (clip is None or clip > 0):
        raise ValueError(f"temperature={temperature}, clip={clip}: must be above 0")
    if weights is None:
        weights = torch.full((n,), 1 / n, device=student_hidden.device)
    targets = tuple(x.detach() for x in targets)
    return _Chunked.apply(
        student_hidden, targets, head, temperature, weights, chunk or chunk_rows(head), rows, clip
    )


class _Chunked(torch.autograd.Function):
    """Weighted sum of rows(logits, *targets) -> (loss [n], its gradient with respect to the logits
    / T [n, V]).
    """

    @staticmethod
    def forward(ctx, hidden, targets, head, temperature, weights, chunk, rows, clip):
        total, wide = 0.0, torch.promote_types(hidden.dtype, torch.float32)
        grad = hidden.new_empty(hidden.shape, dtype=wide) if ctx.needs_input_grad[0] else None
        for i in range(0, len(hidden), chunk):
            part, w = slice(i, i + chunk), weights[i : i + chunk].to(wide)
            loss, dz = rows(_logits(hidden[part], head, temperature), *(x[part] for x in targets))
            if clip is not None:
                w = w * (clip / loss.abs()).clamp(max=1)
            total = total + (loss * w).sum()
            if (
                grad is not None
            ):  # weights after the product: in float16 small weights would underflow before it
                grad[part] = (dz.to(head.dtype) @ head).to(wide) * (w / temperature)[:, None]
        ctx.save_for_backward(grad)
        ctx.dtype = hidden.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        (grad,) = ctx.saved_tensors
        return (grad * upstream).to(ctx.dtype), *(None,) * 7


def _logits(hidden: torch.Tensor, head: torch.Tensor, temperature: float) -> torch.Tensor:
    """[n, V], the product in the head's dtype, the rest at least in float32."""
    z = hidden.to(head.dtype) @ head.T
    return z.to(torch.promote_types(z.dtype, torch.float32)) / temperature


def chunk_rows(head: torch.Tensor) -> int:
    """Rows a chunk: few enough that one [rows, V] float32 buffer stays small, more where a GPU
    wants large products.
    """
    return max(1, (2**25 if head.is_cuda else 2**22) // len(head))

"""Distill: on-policy context distillation. The whole method is on this page.

A state is a stored prompt without experience. The student answers it as it is. The teacher, the
same model frozen at the start of the round, sees the experience in front of the state and scores
the student's own tokens. The loss is the mean over those tokens of KL(student || teacher), and only
the student's LoRA adapter learns (arXiv 2602.12275; 2603.16856, section 3). No environment and no
reward are needed.

Teacher prompts with the same experience text begin alike, and the teacher is frozen: this prefix is
computed once per round and text (`teacher`). The student's is read once per batch (`packing`).

Departures from the paper: a LoRA adapter is trained instead of all weights, with a larger
learning rate, and the loss uses the full vocabulary by default (top_k=256 is the paper's).
`forward_kl` and `sft` are off-policy: they learn from the teacher's replies. On its own replies, a
student hardly learns what it never says; `off_policy_steps` of forward KL can come first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .. import given
from ..config import DistillConfig, also_takes
from ..model import losses, ranks
from ..model.lora import seeded
from ..model.memory import checkpointed
from ..model.packing import packed_batches, packed_hidden
from ..model.policy import Policy
from ..model.sampling import Reply, generate
from ..progress import Bar
from ..prompts import PromptSet
from ..records import State
from . import teacher
from .checkpoint import Checkpoint, interrupt_deferred, remember, warn_if_again
from .training import ON_POLICY, Training, oom_hint, prepare, update, warn_of

CHECKPOINT_EVERY = 5  # steps


# why: ten, because a caller has states, texts and settings, and a run drives it with the rest
@also_takes(DistillConfig)
def distill(
    policy: Policy,
    states: Sequence[State],
    experiences: str | Sequence[str],
    config: DistillConfig | None = None,
    *,
    rehearsal: Sequence[State] = (),
    prompt_set: str | PromptSet | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    on_step: Callable[[dict], None] | None = None,
    progress: bool = False,
    **changes: Any,
) -> list[dict]:
    """Train the student on `states` towards the teacher that reads one of `experiences`.

    Args:
        policy: its student learns; its teacher becomes the student as it is now.
        states: prompts to answer; each is used once before any is used again. States that are too
            long or that the chat template rejects are left out, and a warning counts them.
        experiences: one text, or K texts from which each sample draws one.
        config: settings of the training.
        rehearsal: general prompts, from which each step draws half as many as states. The student
            is held to the untrained model on its own answers to them, so that it forgets less.
        prompt_set: places the experience in the prompt (None: the policy's own).
        seed: fixes batches, texts and replies.
        checkpoint: a file, saved every few steps and on Ctrl+C, from which the same call resumes
            with the same bytes. It is not deleted; nor is a saved batch whose loss is not finite.
        on_step: called with the row of each step taken by this call.
        progress: show a progress bar.
        **changes: fields of the config (`oelkit.config.DistillConfig`: steps, batch_size, lr,
            warmup, loss, temperature, retention, max_new_tokens and more), as keywords.

    Returns:
        One row per step: step, loss (nats per token), entropy (nats, of the student), replies,
        reply_tokens (per reply), truncated (share of them), grad_norm (before clipping to 1),
        skipped (a gradient overflowed in float16, nothing was learned), lr, seconds, and with
        `rehearsal` its own loss, rehearsal_loss (nats per token).

    Raises:
        ValueError: no states or no experience left, or invalid settings.
        TypeError: states or texts have the wrong type.
        RuntimeError: loss or gradient is not finite, or memory ran out; no step is half done.
        KeyboardInterrupt: Ctrl+C was pressed; raised once step and checkpoint are complete.
    """
    given.function("on_step", on_step)
    checkpoint = checkpoint and given.path("checkpoint", checkpoint)
    training = prepare(policy, states, experiences, config, prompt_set, seed, changes, rehearsal)
    warn_if_again(training)
    config, history = training.config, training.history
    policy.sync_teacher()
    if saved := checkpoint and Checkpoint(training, checkpoint):
        saved.restore()
    bar = Bar("distill", range(len(history), config.steps), "step", progress)
    with interrupt_deferred() as interrupted:
        for step in bar:
            history.append(distill_step(training, step))
            bar.set_postfix(loss=f"{history[-1]['loss']:.4f}", refresh=False)
            warn_of(training)
            if on_step:
                on_step(history[-1])
            stop = any(ranks.total([interrupted()], policy.device))
            last = stop or step + 1 == config.steps
            if saved and ranks.rank() == 0 and (last or (step + 1) % CHECKPOINT_EVERY == 0):
                saved.save()
            if stop:
                raise KeyboardInterrupt(f"stopped after {step + 1} of {config.steps} steps")
    training.optimizer.zero_grad(set_to_none=True)
    remember(training)
    return history


def distill_step(training: Training, step: int) -> dict[str, Any]:
    """One optimiser step: draw a batch, sample replies, score them with the teacher, learn.

    With several processes, each draws and samples the same, then scores and learns from its share.
    """
    began, t = time.perf_counter(), training
    if step < t.config.off_policy_steps and t.config.loss in ON_POLICY:
        t = replace(t, config=replace(t.config, loss="forward_kl"))
    c, policy = t.config, t.policy
    batch, texts, student_ids, teacher_ids = _draw(t, step)

    # the student answers (on-policy) or the teacher (off-policy); ids are never decoded on the way
    on_policy = c.loss in ON_POLICY
    prompts, adapter = (student_ids, "student") if on_policy else (teacher_ids, "teacher")
    replies = _sample(t, step, prompts, adapter)
    kept = _rehearse(t, step) if t.rehearsal else ()
    counts = [sum(len(r.ids) for r in replies), sum(r.truncated for r in replies)]
    batch, texts, replies = ranks.share(batch), ranks.share(texts), ranks.share(replies)
    student_ids, teacher_ids = ranks.share(student_ids), ranks.share(teacher_ids)

    for group in t.optimizer.param_groups:
        group["lr"] = _rate(c, step)
    t.optimizer.zero_grad(set_to_none=True)  # gradients left by an interrupted call must not count
    with oom_hint(f"step {step}: training", batch_tokens=t.plan.batch_tokens):
        teacher_hidden = None
        if c.loss != "sft":  # the teacher's forward is finished before the student's begins
            groups = teacher.group_by_prefix(t, texts, teacher_ids)
            teacher_hidden = teacher.hidden_states(t, teacher_ids, replies, groups)
        parts = [(t, student_ids, replies, teacher_hidden)]
        if kept:
            untrained = teacher.hidden_states(t, *kept, [(None, [*range(len(kept[0]))])], None)
            parts.append((replace(t, config=replace(c, loss="reverse_kl")), *kept, untrained))
        checkpoints = checkpointed(policy) if t.plan.gradient_checkpointing else nullcontext()
        with checkpoints, seeded(t.seed * 100_003 + step, policy.device):  # LoRA's dropout
            sums = [_backward(*part) for part in parts]
        ranks.add_gradients(policy.trainable())
        (loss, entropy), *held = [ranks.total([*one], policy.device) for one in sums]
    grad_norm, skipped = update(t, step, loss, zip(batch, texts, student_ids, teacher_ids, replies))
    row = {
        "step": step,
        "loss": loss,
        "entropy": entropy,
        "lr": t.optimizer.param_groups[0]["lr"],
        "replies": c.batch_size,
        "reply_tokens": counts[0] / c.batch_size,
        "truncated": counts[1] / c.batch_size,
        "grad_norm": grad_norm,
        "skipped": skipped,
        "seconds": time.perf_counter() - began,
    }
    if held:
        row["rehearsal_loss"] = held[0][0] * c.batch_size / _rehearsed(c)
    return row


def _rate(c: DistillConfig, step: int) -> float:
    """Return the learning rate of a step."""
    falling = (c.steps - step) / max(1, c.steps - c.warmup) if c.lr_schedule == "linear" else 1.0
    return c.lr * min(1.0, (step + 1) / (c.warmup + 1), falling)


def _sample(t: Training, step: int, prompts: list[list[int]], adapter: str) -> list[Reply]:
    """Return a reply to each prompt."""
    c, longest = t.config, t.config.max_new_tokens or t.prompt_set.max_new_tokens
    with oom_hint(f"step {step}: sampling", max_new_tokens=longest, batch_size=c.batch_size):
        return generate(
            t.policy,
            prompts,
            adapter=adapter,
            seed=t.seed * 100_003 + step,
            max_new_tokens=longest,
            temperature=c.temperature,
        )


def _rehearsed(config: DistillConfig) -> int:
    """Return how many prompts a step rehearses; no process may have none."""
    return max(ranks.count(), config.batch_size // 2)


def _rehearse(t: Training, step: int) -> tuple[list[list[int]], list[Reply]]:
    """Draw prompts of the rehearsal and let the student answer; return this process's share."""
    states = t.rng.choices(t.rehearsal, k=_rehearsed(t.config))
    prompts = [t.policy.encode(state.prompt) for state in states]
    return ranks.share(prompts), ranks.share(_sample(t, step, prompts, "student"))


def _draw(
    t: Training, step: int
) -> tuple[list[State], list[str], list[list[int]], list[list[int]]]:
    """Draw a batch: its states, the text that the teacher reads with each, both prompts' ids."""
    size, share = t.config.batch_size, t.config.retention
    while len(t.pending) < size:
        t.pending += t.rng.sample(range(len(t.states)), len(t.states))
    batch = [t.states[i] for i in t.pending[:size]]
    del t.pending[:size]
    texts = [t.rng.choice(t.experiences) for _ in batch]
    teacher_ids = [teacher.prompt_ids(t, *pair) for pair in zip(batch, texts, strict=True)]
    student_ids = [t.policy.encode(state.prompt) for state in batch]
    # spread over the steps, so that small batches keep to the share too
    retained = int(share * size * (step + 1) + 1e-9) - int(share * size * step + 1e-9)
    for i in t.rng.sample(range(size), retained):
        student_ids[i] = teacher_ids[i]
    return batch, texts, student_ids, teacher_ids


def _backward(
    t: Training,
    student_ids: list[list[int]],
    replies: list[Reply],
    teacher_hidden: list[torch.Tensor] | None,
) -> tuple[float, float]:
    """Accumulate a gradient; return these replies' part of the step's (loss, student's entropy)."""
    total, entropy, policy, head = 0.0, 0.0, t.policy, t.policy.head
    lengths = [len(p) + len(r.ids) for p, r in zip(student_ids, replies, strict=True)]
    for shared, rows in packed_batches(policy, student_ids, lengths, t.plan.batch_tokens):
        ids = [replies[i].ids for i in rows]
        per_token = [1 / len(y) / t.config.batch_size for y in ids for _ in y]
        weights = torch.tensor(per_token, device=policy.device)
        sampled = torch.tensor([token for y in ids for token in y], device=policy.device)
        taught = torch.cat([teacher_hidden[i] for i in rows]) if teacher_hidden else None
        with policy.adapter("student"), policy.train_mode():
            hidden = packed_hidden(policy, [student_ids[i] for i in rows], ids, shared)
            value = _loss(hidden, taught, sampled, head, weights, t.config)
            t.scaler.scale(value).backward()
        total += value.item()
        spread = losses.entropy(hidden.detach(), head, temperature=t.config.temperature)
        entropy += float(spread @ weights)
    return total, entropy


def _loss(
    hidden: torch.Tensor,
    taught: torch.Tensor | None,
    sampled: torch.Tensor,
    head: losses.Head,
    weights: torch.Tensor,
    config: DistillConfig,
) -> torch.Tensor:
    """Return the configured loss, summed over reply tokens with the weights (scalar)."""
    common = {"temperature": config.temperature, "clip": config.clip, "weights": weights}
    if taught is None:
        return losses.cross_entropy(hidden, sampled, head, **common)
    if config.loss == "sampled_kl":
        return losses.sampled_kl(hidden, taught, sampled, head, **common)
    kinds = {"reverse_kl": losses.reverse_kl, "jsd": losses.jsd, "forward_kl": losses.forward_kl}
    options = {**common, "top_k": config.top_k, "tail": config.tail}
    return kinds[config.loss](hidden, taught, head, **options)

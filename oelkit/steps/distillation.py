"""Distill: on-policy context distillation (arXiv 2602.12275; 2603.16856, section 3). The whole
method is on this page.

A state is a stored prompt without experience. The student answers it as it is; the teacher, the
same model frozen at the start of the round, sees the experience in front of the state and scores
the student's own tokens; the loss is the mean over those tokens of KL(student || teacher), and only
the student's LoRA adapter learns. No environment, no reward.

All teacher prompts that tell the same experience begin alike, and the teacher is frozen: that
beginning is computed once a round for each text (`prefix`), and after it only state and reply are
run.

Departures from the paper: a LoRA adapter in place of all weights, hence a larger learning rate; the
full vocabulary by default (top_k=256 is the paper's); one optimiser step a batch as there. The
off-policy arms (`forward_kl`, `sft`) learn from the teacher's replies instead of the student's, to
show what being on-policy is worth."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from tqdm import tqdm

from ..model import losses as kl
from ..model.memory import checkpointed, memory_plan
from ..model.policy import Policy, reply_hidden, token_batches
from ..model.prefix import SharedPrefix, can_share, min_shared_prefix
from ..model.sampling import Reply, generate
from ..prompts import Prompts, load_prompts, with_experience
from ..records import State

LOSSES = ("reverse_kl", "jsd", "sampled_kl", "forward_kl", "sft")
OFF_POLICY = ("forward_kl", "sft")


def distill(
    policy: Policy,
    states: Sequence[State],
    experiences: Sequence[str],
    *,
    steps: int = 40,
    batch_size: int = 32,
    lr: float = 3e-4,
    warmup: int = 0,
    loss: str = "reverse_kl",
    top_k: int | None = None,
    rest: str = "drop",
    clip: float | None = None,
    temperature: float = 1.0,
    retain: float = 0.0,
    max_new_tokens: int | None = None,
    batch_tokens: int | None = None,
    prompts: str | Prompts | None = None,
    seed: int = 0,
    on_step: Callable[[dict], None] | None = None,
    progress: bool = False,
) -> list[dict]:
    """Train the student on `states` towards the teacher that reads one of `experiences`; returns
    one dict a step.

    loss: "reverse_kl", "jsd" or "sampled_kl" on the student's samples, or "forward_kl" / "sft" on
    the teacher's; top_k, rest (of the mass outside the top k) and clip (of a token's loss) as in
    `kl.reverse_kl`. temperature: of the sampling and of both distributions. lr: of the adapter;
    3e-4 suits `micro` and SmolLM2 (data/results/lora.jsonl). warmup: steps of linear warm-up, then
    lr is constant. retain: share of the batch on which the student too reads the experience, so
    that it does not forget how. batch_tokens: of a micro-batch, padding included; None leaves it,
    and gradient checkpointing, to `memory_plan`. Each dict: step, loss (nats a token), entropy
    (nats, the student's), replies, reply_tokens (a reply), truncated (share of them), grad_norm
    (before clipping to 1), lr, seconds. ValueError where there is nothing to learn from (no states,
    no experience), for a state or experience over the context and for wrong arguments; RuntimeError
    where the gradient is not finite or memory runs out (it says what to lower; no step is left half
    done)."""
    experiences = [text for text in experiences if text.strip()]
    if not states:
        raise ValueError("nothing to distill on: there are no states")
    if not experiences:
        raise ValueError(
            "nothing to distill: no experience is left (no items were extracted, or all were rejected)"
        )
    if loss not in LOSSES:
        raise ValueError(f"loss={loss!r}: say one of {', '.join(LOSSES)}")
    if batch_size < 1 or not temperature > 0 or not 0 <= retain <= 1:
        raise ValueError(
            f"batch_size={batch_size}, temperature={temperature}, retain={retain}: "
            "need at least 1, above 0, and 0 to 1"
        )
    prompts = (
        prompts
        if isinstance(prompts, Prompts)
        else load_prompts(prompts or policy.default_prompt_set)
    )
    sampling = {
        "max_new_tokens": max_new_tokens or prompts.max_new_tokens,
        "temperature": temperature,
    }
    state, told = _lengths(policy, states, experiences, prompts, sampling["max_new_tokens"])
    plan = memory_plan(
        policy,
        told - state,
        state_tokens=state,
        reply_tokens=sampling["max_new_tokens"],
        batch_size=batch_size,
        retain=retain > 0,
        batch_tokens=batch_tokens,
    )
    if not plan.fits:
        warnings.warn(f"{policy.name}: memory will probably run out.\n{plan}", stacklevel=2)
    rng, head = random.Random(seed), policy.head_weight
    options = {"temperature": temperature, "clip": clip}
    if loss in ("reverse_kl", "jsd", "forward_kl"):
        options |= {"top_k": top_k, "rest": rest}
    beginnings: dict[str, SharedPrefix] = {}
    policy.sync_teacher()
    optimizer = _adamw(policy, lr)
    history, deck = [], []
    for step in tqdm(
        range(steps), desc="distill", unit="step", disable=not progress, mininterval=1
    ):
        began = time.perf_counter()
        while len(deck) < batch_size:
            deck += rng.sample(list(states), len(states))  # every state once before any comes again
        batch, deck = deck[:batch_size], deck[batch_size:]
        texts = [rng.choice(experiences) for _ in batch]
        told = [with_experience(prompts, state.prompt, text) for state, text in zip(batch, texts)]
        teacher_ids = [policy.encode(messages) for messages in told]
        student_ids = [policy.encode(state.prompt) for state in batch]
        for i in rng.sample(range(batch_size), round(retain * batch_size)):
            student_ids[i] = teacher_ids[i]

        # who speaks: the student (on-policy) or the teacher (off-policy); the token ids are never
        # decoded on their way
        speaker, asked = (
            ("teacher", teacher_ids) if loss in OFF_POLICY else ("student", student_ids)
        )
        with _says_what_to_lower(
            f"step {step}: sampling",
            max_new_tokens=sampling["max_new_tokens"],
            batch_size=batch_size,
        ):
            replies = generate(
                policy, asked, adapter=speaker, seed=seed * 100_003 + step, **sampling
            )

        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / (warmup + 1))
        optimizer.zero_grad(
            set_to_none=True
        )  # before, not after: what an interrupted call left must not count
        with _says_what_to_lower(f"step {step}: training", batch_tokens=plan.batch_tokens):
            told = None
            if loss != "sft":  # the teacher's forward is finished before the student's begins
                groups = _by_beginning(policy, texts, teacher_ids, beginnings)
                told = _score(policy, teacher_ids, replies, groups, plan.scored_tokens)
            with checkpointed(policy) if plan.gradient_checkpointing else nullcontext():
                total, entropy = _backward(
                    policy, student_ids, replies, told, head, loss, options, plan.batch_tokens
                )
        grad_norm = torch.nn.utils.clip_grad_norm_(policy.trainable(), 1.0)
        if not torch.isfinite(grad_norm):
            raise RuntimeError(
                f"step {step}: the gradient is {grad_norm.item()}; lower lr, or train in another dtype"
            )
        optimizer.step()

        history.append(
            {
                "step": step,
                "loss": total,
                "entropy": entropy,
                "lr": optimizer.param_groups[0]["lr"],
                "replies": batch_size,
                "reply_tokens": sum(len(r.ids) for r in replies) / batch_size,
                "truncated": sum(r.truncated for r in replies) / batch_size,
                "grad_norm": float(grad_norm),
                "seconds": time.perf_counter() - began,
            }
        )
        if on_step:
            on_step(history[-1])
    optimizer.zero_grad(set_to_none=True)
    return history


def _adamw(policy: Policy, lr: float) -> torch.optim.Optimizer:
    """AdamW; on CUDA with 8-bit states that move to main memory when the card is full."""
    if policy.device.type == "cuda":
        import bitsandbytes  # only here: it prints and takes a second

        return bitsandbytes.optim.PagedAdamW8bit(policy.trainable(), lr=lr, weight_decay=0.0)
    return torch.optim.AdamW(policy.trainable(), lr=lr, weight_decay=0.0)


@contextmanager
def _says_what_to_lower(what: str, **settings: int) -> Iterator[None]:
    """Turn "out of memory" into the settings that decide; what was computed so far stays as it is."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        lower = " or ".join(f"{name} (now {value})" for name, value in settings.items())
        raise RuntimeError(
            f"{what} ran out of memory: lower {lower}; oelkit.memory_plan says what takes how much. "
            "The steps before are done"
        ) from error


def _lengths(
    policy: Policy,
    states: Sequence[State],
    experiences: Sequence[str],
    prompts: Prompts,
    max_new_tokens: int,
) -> tuple[int, int]:
    """Tokens of the longest state, alone and with the longest experience; says before the first
    step, not when chance draws the pair, that they are too long."""
    longest, lengths = max(states, key=lambda state: len(policy.encode(state.prompt))), []
    for text in ("", *experiences):
        lengths.append(len(policy.encode(with_experience(prompts, longest.prompt, text))))
        if lengths[-1] + max_new_tokens > policy.context_length:
            what = f"the experience that begins {text[:60]!r}, in front of " if text else ""
            todo = "lower budget_tokens or reject items" if text else "leave such states out"
            raise ValueError(
                f"{what}state {longest.id!r} makes {lengths[-1]} tokens: with a reply of {max_new_tokens} "
                f"that is more than the context of {policy.context_length}; {todo}"
            )
    return lengths[0], max(lengths)


def _by_beginning(
    policy: Policy,
    texts: list[str],
    teacher_ids: list[list[int]],
    beginnings: dict[str, SharedPrefix],
) -> list[tuple[SharedPrefix | None, list[int]]]:
    """Rows by the beginning that their teacher prompts share, computed when a text first comes and
    kept for the round.
    """
    groups: dict[str | None, list[int]] = {}
    least = min_shared_prefix(policy)
    for text in dict.fromkeys(texts):
        rows = [i for i, other in enumerate(texts) if other == text]
        shared = min(map(len, (teacher_ids[i] for i in rows))) > least and can_share(policy)
        if (
            shared and text not in beginnings
        ):  # a GPU holds the one in use, the others wait in main memory
            with torch.no_grad(), policy.adapter("teacher", merge=True):
                beginnings[text] = SharedPrefix(policy, teacher_ids[rows[0]], "cpu")
        shared = shared and beginnings[text].crop([teacher_ids[i] for i in rows]) >= least
        groups.setdefault(text if shared else None, []).extend(rows)
    return [(beginnings.get(text), sorted(rows)) for text, rows in groups.items()]


@torch.no_grad()
def _score(
    policy: Policy,
    teacher_ids: list[list[int]],
    replies: list[Reply],
    groups: list[tuple[SharedPrefix | None, list[int]]],
    batch_tokens: int,
) -> list[torch.Tensor]:
    """The teacher's hidden states [reply tokens, D] for each reply."""
    told: list[torch.Tensor | None] = [None] * len(replies)
    with policy.adapter("teacher", merge=True):
        for prefix, group in groups:
            skip = len(prefix.ids) if prefix else 0
            lengths = [len(teacher_ids[i]) - skip + len(replies[i].ids) for i in group]
            for batch in token_batches(lengths, batch_tokens):
                rows = [group[i] for i in batch]
                ids = [replies[i].ids for i in rows]
                hidden = reply_hidden(policy, [teacher_ids[i] for i in rows], ids, prefix)
                for i, part in zip(rows, hidden.split([len(y) for y in ids])):
                    told[i] = part
    return told


def _backward(
    policy: Policy,
    student_ids: list[list[int]],
    replies: list[Reply],
    told: list[torch.Tensor] | None,
    head: torch.Tensor,
    loss: str,
    options: dict,
    batch_tokens: int,
) -> tuple[float, float]:
    """Accumulate the gradient of one batch; (loss, student entropy) as means over tokens, then over
    replies.
    """
    total = entropy = 0.0
    for rows in token_batches(
        [len(p) + len(r.ids) for p, r in zip(student_ids, replies)], batch_tokens
    ):
        ids = [replies[i].ids for i in rows]
        weights = torch.cat([torch.full((len(y),), 1 / len(y) / len(replies)) for y in ids]).to(
            head.device
        )
        sampled = torch.tensor([token for y in ids for token in y], device=head.device)
        teacher = told and torch.cat([told[i] for i in rows])
        with policy.adapter("student"):
            policy.model.train()  # LoRA dropout and gradient checkpointing
            try:
                hidden = reply_hidden(policy, [student_ids[i] for i in rows], ids)
                if loss == "sft":
                    value = kl.cross_entropy(hidden, sampled, head, weights=weights, **options)
                elif loss == "sampled_kl":
                    value = kl.sampled_kl(
                        hidden, teacher, sampled, head, weights=weights, **options
                    )
                else:
                    value = getattr(kl, loss)(hidden, teacher, head, weights=weights, **options)
                value.backward()
            finally:
                policy.model.eval()
        total += value.item()
        entropy += float(
            kl.entropy(hidden.detach(), head, temperature=options["temperature"]) @ weights
        )
    return total, entropy

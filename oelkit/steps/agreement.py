"""How close a model without the experience is to itself with it, on states not used for training.

This needs logs but no world. The KL is estimated on sampled replies, as the mean difference of
log-probabilities over their tokens. It estimates what training lowers, and is slightly biased
where the length of a reply depends on what it says.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .. import given
from ..model.policy import Policy
from ..model.sampling import Reply, generate
from ..model.scoring import token_logprobs
from ..prompts import PromptSet, load_prompt_set, with_experience
from ..records import State
from ..stats import wilson_interval
from .training import fitting


def agreement(
    policy: Policy,
    states: Sequence[State],
    experience: str,
    *,
    adapter: str | None = "student",
    prompt_set: str | PromptSet | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Compare the answers of `adapter` without the experience with those of the teacher with it.

    Args:
        policy: the model; after `distill` its teacher is the student as it was before.
        states: states not used for training.
        experience: what the teacher reads.
        adapter: "student" (after training), "teacher" (before it), or None for the base model.
        prompt_set: places the experience in the prompt (None: the policy's own).
        max_new_tokens: most tokens of a reply (None: the prompt set's).
        seed: for sampling the replies on which the KL is estimated.

    Returns:
        kl (nats per token), agreement (share of equal greedy answers; two empty ones, such as of
        unfinished thoughts, are not equal), low and high (its 95% interval), and n (number of
        states). States that `distill` would leave out are left out, and a warning counts them.

    Raises:
        ValueError: no states or no experience left.
    """
    given.a_policy(policy, adapters=True)
    states, seed = given.records("states", states, State), given.whole("seed", seed)
    (experience,) = given.texts("experience", given.one("experience", experience, str))
    if not states or not experience.strip():
        raise ValueError("nothing to compare: there are no states or no experience")
    prompt_set = load_prompt_set(prompt_set or policy.default_prompt_set)
    longest = prompt_set.max_new_tokens
    if max_new_tokens is not None:
        longest = given.count("max_new_tokens", max_new_tokens)
    states, *_ = fitting(policy, states, [experience], prompt_set, longest)
    plain = [policy.encode(s.prompt) for s in states]
    read = [policy.encode(with_experience(prompt_set, s.prompt, experience)) for s in states]

    def replies(prompts: list[list[int]], adapter: str | None, temperature: float) -> list[Reply]:
        how = {"temperature": temperature, "max_new_tokens": longest}
        return generate(policy, prompts, adapter=adapter, seed=seed, **how)

    ids = [reply.ids for reply in replies(plain, adapter, 1)]
    own = token_logprobs(policy, plain, ids, adapter=adapter)
    theirs = token_logprobs(policy, read, ids, adapter="teacher")
    kl = [float((a - b).mean()) for a, b in zip(own, theirs, strict=True)]
    answers = [
        [
            policy.answer_text(reply.text, prompt).strip()
            for prompt, reply in zip(prompts, replies(prompts, arm, 0), strict=True)
        ]
        for prompts, arm in ((plain, adapter), (read, "teacher"))
    ]
    same, n = sum(a == b != "" for a, b in zip(*answers, strict=True)), len(states)
    low, high = wilson_interval(same, n)
    return {"kl": float(np.mean(kl)), "agreement": same / n, "low": low, "high": high, "n": n}

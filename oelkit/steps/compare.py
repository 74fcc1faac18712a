"""One state, three answers: from the base, from the model that reads the experience, and from the
trained one, with the log-probability that each gives to the others' tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .. import given
from ..model.policy import Policy
from ..model.sampling import generate
from ..model.scoring import token_logprobs
from ..prompts import PromptSet, load_prompt_set, with_experience
from ..records import Message

ARMS = {"base": None, "in_context": "teacher", "distilled": "student"}  # and their adapters


@dataclass(frozen=True)
class Answer:
    """The greedy answer of one arm."""

    arm: str
    """One of ARMS."""
    text: str
    tokens: list[str]
    """The answer token by token."""
    logprobs: dict[str, list[float]]
    """By arm, the log-probability of each token (nats)."""

    def differences(self) -> list[float]:
        """Return for each token the largest difference between this arm and another, in nats."""
        own, others = self.logprobs[self.arm], [self.logprobs[a] for a in ARMS if a != self.arm]
        return [max(abs(p - q[i]) for q in others) for i, p in enumerate(own)]


def compare_answers(
    policy: Policy,
    messages: list[Message],
    experience: str,
    *,
    prompt_set: str | PromptSet | None = None,
    max_new_tokens: int | None = None,
) -> list[Answer]:
    """Return the greedy answers of all ARMS to one state.

    Args:
        policy: the model after training; its teacher is the model before it.
        messages: the state, without experience.
        experience: what the in-context arm reads.
        prompt_set: places the experience in the prompt (None: the policy's own).
        max_new_tokens: most tokens of an answer (None: the prompt set's).

    Raises:
        ValueError: no experience, or a prompt that exceeds the context.
    """
    given.a_policy(policy, adapters=True)
    (experience,) = given.texts("experience", given.one("experience", experience, str))
    if not experience.strip():
        raise ValueError("nothing to compare: the experience is empty")
    prompt_set = load_prompt_set(prompt_set or policy.default_prompt_set)
    plain = policy.encode(messages)
    read = policy.encode(with_experience(prompt_set, messages, experience))
    prompts = {arm: read if arm == "in_context" else plain for arm in ARMS}
    longest = prompt_set.max_new_tokens if max_new_tokens is None else max_new_tokens
    how: dict[str, Any] = {"temperature": 0, "max_new_tokens": longest}
    replies = {
        arm: generate(policy, [prompts[arm]], adapter=adapter, **how)[0]
        for arm, adapter in ARMS.items()
    }
    ids = [reply.ids for reply in replies.values()]
    logprobs = {  # of all three replies, by each arm
        arm: token_logprobs(policy, [prompts[arm]] * len(ARMS), ids, adapter=adapter)
        for arm, adapter in ARMS.items()
    }
    return [
        Answer(
            arm,
            reply.text,
            [policy.tokenizer.decode([token]) for token in reply.ids],
            {other: logprobs[other][i].tolist() for other in ARMS},
        )
        for i, (arm, reply) in enumerate(replies.items())
    ]

"""Chat templates: what they make of messages, and where a reply's thought begins."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from .messages import in_parts, json_text, plain
from .records import Fields, Message
from .text import MARKS, THOUGHTS, answer_text, begun_thought, in_marks

MARK = "xyzzy"  # a word that no template contains


def rendered(name: str, messages: Sequence[Message], apply: Callable[[Any], Any]) -> Any:
    """Return what `apply`, a chat template, makes of messages; ValueError if it rejects them."""
    try:
        return apply(messages)
    except Exception as error:  # a template can raise anything, such as on a system message
        if (texts := text_arguments(messages)) != list(messages):
            return rendered(name, texts, apply)
        raise ValueError(
            f"{name}: its chat template rejects these messages ({error}); use roles that it knows, "
            f"not {[m['role'] for m in messages]}"
        ) from error


def text_arguments(messages: Sequence[Message]) -> list[Message]:
    """Return messages whose tool calls have their arguments as text, as servers and DeepSeek's
    templates need. Other templates need objects.
    """

    def told(call: Any) -> Any:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or isinstance(function.get("arguments"), str):
            return call
        text = json_text(function.get("arguments", {}))
        return {**call, "function": {**function, "arguments": text}}

    return [
        {**m, "tool_calls": [*map(told, m["tool_calls"])]} if m.get("tool_calls") else m
        for m in messages
    ]


def behind_mark(text: str) -> str:
    """Return what a template wrote after the last `MARK`, in upper or lower case."""
    return re.split(MARK, text, flags=re.IGNORECASE)[-1]


def wants_parts(render: Callable[[list[Message]], str]) -> bool:
    """Whether a chat template reads content only in parts, as some multimodal models' do.

    Raises:
        ValueError: the template shows nothing of what a user says.
    """
    asked, silent = [{"role": "user", "content": MARK}], False
    for messages in (asked, in_parts(asked)):
        try:
            text = render(messages)
        except Exception:  # a template can raise anything on what it does not take
            continue
        if MARK in text.lower():
            return messages is not asked
        silent = True
    if silent:
        raise ValueError("its chat template shows nothing of what a user says; take another")
    return False


class Templated:
    """What takes messages by a tokenizer's chat template, here as Transformers alone applies it.

    Args:
        name: name of the model, for errors.
        tokenizer: the tokenizer with the template.
        enable_thinking: passed to the template (None: the template's own default).

    Raises:
        ValueError: the template shows nothing of what a user says.
    """

    def __init__(self, name: str, tokenizer: Any, enable_thinking: bool | None = None):
        self.name, self.tokenizer, self.enable_thinking = name, tokenizer, enable_thinking
        _ = self._asked

    @cached_property
    def _in_parts(self) -> bool:
        try:
            return wants_parts(lambda messages: self._apply(messages, tokenize=False))
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt ids of chat messages; ValueError if the chat template rejects them."""
        return self.render(messages, tokenize=True, return_dict=False)

    def render(self, messages: Sequence[Message], tokenize: bool = False, **options: Any) -> Any:
        """Return the prompt as text; ValueError if the chat template rejects the messages."""
        messages = plain(messages)
        messages = in_parts(messages) if self._in_parts else messages
        options |= {"tools": tools_of(messages), "tokenize": tokenize}
        return rendered(self.name, messages, lambda given: self._apply(given, **options))

    def _apply(self, messages: Sequence[Message], **options: Any) -> Any:
        options |= {"add_generation_prompt": True, **thinking(self.enable_thinking)}
        return self.tokenizer.apply_chat_template(messages, **options)

    @cached_property
    def _asked(self) -> str:
        return self.render([{"role": "user", "content": MARK}])

    def begun(self, prompt: Sequence[int] | None = None) -> str:
        """Return the mark of the thought that a prompt leaves open, or ""; None: any question."""
        opening = behind_mark(self._asked).rstrip()
        if prompt is None:
            return begun_thought(opening)
        before = self.tokenizer.decode(list(prompt[-32 - len(opening) :])).rstrip()
        if opening and before.endswith(opening):
            return begun_thought(opening)
        return next((begin for begin, _ in THOUGHTS if before.endswith(begin)), "")

    def marked(self, reply: str, prompt: Sequence[int] | None = None) -> str:
        """Return a reply with the marks of its thought, which the prompt may have begun."""
        reply = in_marks(reply) if in_marks(self._asked) != self._asked else reply
        begun = self.begun(prompt)
        return reply if reply.startswith(begun) else begun + reply

    def answer_text(self, reply: str, prompt: Sequence[int] | None = None) -> str:
        """Return the answer in a reply to a prompt (None: to any question); "" if its thought,
        which the prompt may have begun (Qwen3-Thinking, R1 distils), never ended.
        """
        return answer_text(self.marked(reply, prompt))


def unsaid(tokenizer: Any, ends: Sequence[int] = ()) -> set[int]:
    """Return special tokens and `ends`, which are not text; those that mark a thought are text."""
    added = tokenizer.added_tokens_decoder.items()
    special = {*ends, *tokenizer.all_special_ids, *(i for i, token in added if token.special)}
    return {i for i in special if str(tokenizer.convert_ids_to_tokens(i)) not in MARKS}


def tools_of(messages: Sequence[Message]) -> list[Fields] | None:
    """Return the tools that a prompt offers; None if there are none."""
    return next((m["tools"] for m in messages if m.get("tools")), None)


def thinking(enabled: bool | None) -> dict[str, bool]:
    """Return options of a chat template; some templates use the shorter name."""
    return {} if enabled is None else {"enable_thinking": enabled, "thinking": enabled}

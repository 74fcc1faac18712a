"""The policy: one language model with a student and a teacher, and its tokenizer.

It turns messages into token ids and replies into answers, and provides the final hidden states and
the head that the losses work on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

import torch
from transformers import Cache

from ..config import ModelConfig
from ..messages import plain
from ..tables import Brief, Shown
from ..templates import MARK, Templated, behind_mark, thinking, unsaid
from ..text import MARKS
from .adapters import Adapters
from .base import cache_argument, context_length, padding_id
from .head import Head, head_of

DATE_CODES = "%-d %-m %a %A %b %B %c %d %D %e %F %H %I %j %m %M %p %S %T %x %X %y %Y %Z"


@dataclass(eq=False, repr=False)
class Policy(Shown, Adapters, Templated):
    """A model with its tokenizer; `model` is the PeftModel with student and teacher."""

    tokenizer: Any
    """The tokenizer, with a chat template; Any, because Transformers declares unions."""
    default_prompt_set: str = "paper"
    """Name of a prompt set (the model folder's oelkit.json can name another)."""
    enable_thinking: bool | None = None
    """Passed to the chat template; None leaves it to the template's own default."""
    source: str = ""
    """The model folder, or the hub id again; a folder can hold an oelkit.json and a probe.jsonl."""
    date: str = ModelConfig.date
    """The date that chat templates print as today's."""

    def brief(self) -> Brief:
        """Return name, size and device, and a row for each setting."""
        trained = sum(p.numel() for p in self.trainable())
        size = self.base_lm.num_parameters() - 2 * trained  # without student and teacher
        where = f"{str(self._embedding.dtype).removeprefix('torch.')} on {self.device}"
        line = f"Policy {self.name}: {size / 1e6:.3g} M parameters, "
        line += f"{trained / 1e6:.3g} M more trained, {where}"
        rows = [("architecture", type(self.base_lm).__name__)]
        rows += [("context", f"{self.context_length:,} tokens"), ("source", self.source)]
        rows += [("prompt set", self.default_prompt_set), ("thinking", str(self.enable_thinking))]
        return line, ("setting", "value"), rows

    @property
    def context_length(self) -> int:
        """Longest prompt + reply, in tokens."""
        return context_length(self.base_lm.config, self.tokenizer)

    @cached_property
    def cache_argument(self) -> str:
        """Name of the model's argument that takes a KV cache."""
        return cache_argument(self.base_lm)

    @property
    def eos_ids(self) -> list[int]:
        """Token ids that end a reply, from tokenizer, generation_config and chat template."""
        ids = self.base_lm.generation_config.eos_token_id
        ids = [ids] if isinstance(ids, int) else ids or []
        known = {*ids, self.tokenizer.eos_token_id, *self._turn_ends} - {None}
        return sorted(i for i in known if 0 <= i < len(self._embedding))

    @cached_property
    def _turn_ends(self) -> list[int]:
        """The tokens that the template writes after an assistant's turn, or begins the next with.

        The last turn is tried first: gpt-oss ends a thought with the token that ends earlier turns.
        """
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": MARK}]
        added = self.tokenizer.added_tokens_decoder
        call = {"id": "123456789", "type": "function", "function": {"name": MARK, "arguments": {}}}
        called = {"role": "assistant", "content": "", "tool_calls": [call]}
        # a call can have an end of its own, as in gpt-oss
        last = [i for i in self._behind_mark([turns[0], called])[-1:] if i in added]
        own = [i for i in last if added[i].special and "tool" not in added[i].content]
        for messages in (turns, [*turns, turns[0]]):
            ids = self._behind_mark(messages)
            ids = [i for i in ids if i not in added or added[i].content not in MARKS]
            # there can be text in between, such as </answer>
            ends = [i for n, i in enumerate(ids) if i in added and (n == 0 or added[i].special)]
            if ends:
                return [*ends[:1], *own]
        return own

    def _behind_mark(self, messages: list[dict[str, Any]]) -> list[int]:
        """Return the ids of what the template writes behind the last `MARK` in messages."""
        text = self._text(messages, False)
        behind = behind_mark(text).strip() if MARK in text.lower() else ""
        return self.tokenizer(behind, add_special_tokens=False)["input_ids"] if behind else []

    def _text(self, messages: list[dict[str, Any]], opening: bool = True) -> str:
        """Return what the template writes for messages; "" if it rejects them."""
        try:
            return self.render(messages, add_generation_prompt=opening)
        except ValueError:
            return ""

    @property
    def pad_id(self) -> int:
        """Token id of padding; the embedding always has it."""
        return padding_id(self.tokenizer, self.eos_ids, len(self._embedding))

    def encode(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Return the prompt ids of chat messages, including the template's start of a reply.

        Raises:
            ValueError: the chat template rejects or drops messages, or an id is not the model's.
        """
        messages = plain(messages)
        if not messages:
            raise ValueError("the prompt has no messages")
        # a template writes names of fields as they are, where content is made harmless
        for name in _names([[m.get("tools"), m.get("tool_calls")] for m in messages]):
            if token := next((token for token in self._special if token in name), None):
                raise ValueError(
                    f"{self.name}: a tool's field is named {name!r}, which contains the special "
                    f"token {token}; rename the field"
                )
        prompt = self.render(messages, tokenize=True)
        if lost := self._left_out(messages, prompt):
            raise ValueError(
                f"{self.name}: its chat template {lost}; take a model whose template shows "
                "them, or write them into the messages as text"
            )
        if max(prompt, default=0) >= len(self._embedding):
            raise ValueError(
                f"{self.name}: its tokenizer gives id {max(prompt)}, but the model knows "
                f"{len(self._embedding)}; take the tokenizer that belongs to the model"
            )
        return prompt

    @cached_property
    def _special(self) -> list[str]:
        return [t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special]

    def _left_out(self, messages: list[dict[str, Any]], prompt: Any) -> str:
        """Say what the template silently drops; "" if nothing."""

        def but(key: str, kept: int | None) -> list[dict[str, Any]]:
            fewer = ({**m, key: m[key][:kept]} if m.get(key) else m for m in messages)
            return [{k: m[k] for k in m if k != key or m[k]} for m in fewer]

        for key, what in (("tools", "tool"), ("tool_calls", "tool call")):
            for kept, lost in enumerate((f"{what}s", f"more than one {what}")):
                if (rest := but(key, kept)) != but(key, None) and self._try(rest) == prompt:
                    return f"shows no {lost}"
        # many templates, such as Llama's, have no place for what is said beside a tool call
        marks = [
            f"{MARK}{i}." if m["content"] and not m.get("tool_calls") else m["content"]
            for i, m in enumerate(messages)
        ]
        text = self._text([{**m, "content": x} for m, x in zip(messages, marks, strict=True)])
        lost = [i for i, x in enumerate(marks) if MARK in x and text and x not in text.lower()]
        if not lost:
            return ""
        if messages[lost[0]]["role"] == "system":
            return "shows no later system messages" if lost[0] else "leaves system messages out"
        results = messages[lost[0]]["role"] == "tool"
        return "shows no tool results" if results else "leaves earlier turns out"

    def _try(self, messages: Sequence[dict[str, Any]]) -> Any:
        with suppress(ValueError):  # such as of a tool's result without its call
            return self.render(messages, tokenize=True)

    def _apply(
        self, messages: Sequence[dict[str, Any]], tools: list[dict] | None = None, **options: Any
    ) -> Any:
        """Apply the template; special tokens in the content of messages are treated as text."""
        template = self.tokenizer.get_chat_template(tools=tools)
        options = {"add_generation_prompt": True, **thinking(self.enable_thinking), **options}
        if options["tokenize"]:  # older Transformers do not know the first one
            options |= {"sanitize_control_tokens": True, "return_dict": False}
        if "strftime_now" in template:  # the macro hides the function of the same name
            today = date.fromisoformat(self.date)
            filled = "".join(f"|replace('{c}', '{today.strftime(c)}')" for c in DATE_CODES.split())
            template = (
                f"{{% macro strftime_now(f) %}}{{{{ f{filled} }}}}{{% endmacro +%}}{template}"
            )
        options["chat_template"] = template
        if tools:
            options["tools"] = tools
        return self.tokenizer.apply_chat_template(list(messages), **options)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def reply_text(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """Return the text of a reply with the marks of its thought, even if the prompt began it.

        Args:
            prompt: token ids of the prompt.
            ids: token ids of the reply.
        """
        known = [i for i in ids if i not in self._unsaid]
        return self.marked(self.tokenizer.decode(known, skip_special_tokens=False), prompt)

    @cached_property
    def _asked(self) -> str:
        return self._text([{"role": "user", "content": MARK}])

    @cached_property
    def _unsaid(self) -> set[int]:
        return unsaid(self.tokenizer, self.eos_ids)

    def hidden(
        self, input_ids: torch.Tensor, cache: Cache | None = None, **how: torch.Tensor
    ) -> torch.Tensor:
        """Return final hidden states [B, T, D] under the current adapter and grad mode.

        By default there is no attention mask: attention is causal, so real tokens never see the
        padding to their right, and without a mask SDPA takes its fast path. Hidden states at padded
        positions are meaningless.

        Args:
            input_ids: right-padded token ids [B, T].
            cache: keys and values of the tokens before them.
            **how: attention_mask or position_ids.
        """
        cached = {"use_cache": cache is not None, self.cache_argument: cache}
        return self.base_lm.base_model(input_ids=input_ids, **how, **cached).last_hidden_state

    @torch.no_grad()
    def check_hidden(self) -> None:
        """Run a short prompt and its first half, and refuse a model that no step could use.

        Raises:
            ValueError: hidden states are not finite, as when activations exceed float16's largest
                number, 65,504 (Gemma 3), or they depend on later tokens (as in encoders).
        """
        ids = self.encode([{"role": "user", "content": "The quick brown fox. 1 + 1 = ?"}])
        prompt = torch.tensor([ids], device=self.device)
        with self.eval_mode():
            whole, half = (self.hidden(x)[0] for x in (prompt, prompt[:, : len(ids) // 2]))
        if not whole.isfinite().all():
            what, todo = "are not finite numbers", "its weight files are damaged"
            if whole.dtype == torch.float16:
                what, todo = "overflow in float16", 'load it with dtype="float32", or "bfloat16" '
                todo += "on a card of compute capability 8 or more"
            raise ValueError(f"{self.name}: its hidden states {what}; {todo}")
        off = (whole[: len(half)] - half).norm(dim=-1) > 0.05 * half.norm(dim=-1)
        if off.float().mean() > 0.5:  # in 16 bits a few tokens can take another expert
            told = "its hidden states depend on later tokens"
            raise ValueError(f"{self.name}: not a causal language model: {told}")

    @cached_property
    def head(self) -> Head:
        """The frozen head, for the losses.

        Raises:
            ValueError: the head is trained, or of a kind that the losses do not support.
        """
        with self.eval_mode():  # no dropout in the trial
            return head_of(self.base_lm, self.name)


def _names(value: Any) -> Iterator[str]:
    """Yield the names of all fields in a JSON value."""
    if isinstance(value, dict):
        yield from value
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, dict | list):
            yield from _names(part)

"""The policy: one language model with a student and a teacher, and its tokenizer.

What it does: turns messages into token ids and replies into answers, and gives the final hidden
states and the head that the losses work on. What it does not: switch adapters (inherited from
`adapters`), load models (see `loading`), sample (see `sampling`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from jinja2 import TemplateError
from peft.tuners.lora import LoraLayer
from transformers import Cache, PreTrainedTokenizerBase

from ..text import answer_text, content_text, well_formed
from .adapters import Adapters


@dataclass(eq=False)
class Policy(Adapters):
    """A model with its tokenizer; `model` is the PeftModel with student and teacher."""

    tokenizer: PreTrainedTokenizerBase
    """With a chat template."""
    default_prompt_set: str = "paper"
    """Name of a prompt set (the model folder's oelkit.json may say another)."""
    enable_thinking: bool | None = None
    """Passed to the chat template; None leaves it to the template's own default."""
    source: str = ""
    """The model folder, or the hub id again; a folder may hold an oelkit.json and a probe.jsonl."""

    @property
    def context_length(self) -> int:
        """Longest prompt + reply, in tokens."""
        positions = getattr(self.base_lm.config.get_text_config(), "max_position_embeddings", None)
        return positions or self.tokenizer.model_max_length

    @property
    def eos_ids(self) -> list[int]:
        """Token ids that end a reply: the tokenizer's and those of the generation_config."""
        ids = self.base_lm.generation_config.eos_token_id
        ids = [ids] if isinstance(ids, int) else ids or []
        return sorted({*ids, cast(Any, self.tokenizer).eos_token_id} - {None})

    @property
    def pad_id(self) -> int:
        """Token id of padding."""
        pad = cast(Any, self.tokenizer).pad_token_id
        return pad if pad is not None else (self.eos_ids or [0])[0]

    def encode(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Prompt ids of chat messages, with the template's beginning of a reply.

        Raises:
            ValueError: the chat template does not take these messages.
        """
        # the template writes the special tokens already
        return self.tokenizer(self._prompt(messages), add_special_tokens=False)["input_ids"]

    def _prompt(self, messages: Sequence[dict[str, Any]]) -> str:
        messages = [{**m, "content": well_formed(content_text(m.get("content")))} for m in messages]
        tools = next((m["tools"] for m in messages if m.get("tools")), None)
        prompt = self._render(messages, tools)
        without = {  # templates leave out in silence what they do not know
            "tools": (messages, None),
            "tool calls": ([{**m, "tool_calls": None} for m in messages], tools),
            "tool results": ([m for m in messages if m["role"] != "tool"], tools),
        }
        there = bool(tools), any(m.get("tool_calls") for m in messages), len(messages)
        there = *there[:2], there[2] > len(without["tool results"][0])
        for (what, parts), is_there in zip(without.items(), there):
            if is_there and self._render(*parts) == prompt:
                raise ValueError(
                    f"{self.name}: its chat template shows no {what}; take a model whose template "
                    "does, or write them into the messages as text"
                )
        return prompt

    def _render(self, messages: Sequence[dict[str, Any]], tools: list[dict] | None) -> str:
        options: dict[str, Any] = {"add_generation_prompt": True, "tokenize": False}
        if self.enable_thinking is not None:
            options["enable_thinking"] = self.enable_thinking
        if tools:
            options["tools"] = tools
        try:
            return cast(str, self.tokenizer.apply_chat_template(list(messages), **options))
        except (TemplateError, TypeError) as error:  # say, of a template that knows no system role
            raise ValueError(
                f"{self.name}: its chat template does not take these messages ({error}); give it "
                f"roles that it knows, not {[m['role'] for m in messages]}"
            ) from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return cast(str, self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def answer_text(self, reply: str) -> str:
        """The answer in a reply to a prompt of this policy: what follows `</think>`.

        It is "" where the thinking never ended, also where not the model but the chat template
        wrote `<think>`, at the end of the prompt (Qwen3-Thinking, R1 distils).
        """
        prompt = self._prompt([{"role": "user", "content": "?"}])
        return answer_text(("<think>" if prompt.rstrip().endswith("<think>") else "") + reply)

    def hidden(self, input_ids: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        """Final hidden states [B, T, D] of right-padded ids [B, T]; adapter and grad mode as set.

        No attention mask: attention is causal, so that a real token never sees the padding to its
        right, and without a mask SDPA takes its fast path. What stands at padded positions means
        nothing.

        Args:
            input_ids: [B, T].
            cache: keys and values of what comes before them.
        """
        return self.base_lm.base_model(
            input_ids=input_ids, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state

    @torch.no_grad()
    def check_finite(self) -> None:
        """Refuse float16 where activations exceed its largest number, 65,504 (as in Gemma 3).

        Raises:
            ValueError: hidden states of a short prompt are not finite.
        """
        if self._embedding.dtype != torch.float16:
            return
        ids = self.encode([{"role": "user", "content": "The quick brown fox. 1 + 1 = ?"}])
        if not self.hidden(torch.tensor([ids], device=self.device)).isfinite().all():
            raise ValueError(
                f"{self.name}: its hidden states overflow in float16; load it with "
                'dtype="float32", or "bfloat16" on a card of compute capability 8 or more'
            )

    @cached_property
    def head_weight(self) -> torch.Tensor:
        """The frozen output matrix [V, D].

        Raises:
            ValueError: logits are not just hidden states times this matrix.
        """
        head = self.base_lm.get_output_embeddings()
        want = "the losses need logits that are the hidden states times one frozen matrix"
        unfit = f"{self.name}: {want}, but "
        if isinstance(head, LoraLayer) or any(p.requires_grad for p in head.parameters()):
            leave = "leave lm_head out of target_modules and modules_to_save"
            raise ValueError(f"{unfit}its head is trained; {leave}")
        if not isinstance(head, torch.nn.Linear) or head.bias is not None:
            raise ValueError(
                f"{unfit}its head is a {type(head).__name__} with a bias or another form"
            )
        ids = torch.arange(8, device=self.device)[None] % len(head.weight)
        training = self.model.training
        self.model.eval()  # no dropout between the two
        with torch.no_grad():
            logits = self.base_lm(input_ids=ids, use_cache=False).logits
            plain = head(self.hidden(ids))
        self.model.train(training)
        # catches soft-caps, logit scales and whatever comes next without naming an architecture
        if (logits - plain).abs().max() > 1e-4 * plain.abs().max():
            scaled = "it scales or caps them (soft-cap, logit scale); this model is not supported"
            raise ValueError(unfit + scaled)
        return head.weight.detach()

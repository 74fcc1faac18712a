"""A model behind an OpenAI-compatible server (vLLM, llama.cpp, `transformers serve`).

Rollout, extraction and evaluation accept it as a policy; it cannot be trained. Requests run
concurrently, and the `openai` package retries a failed one, waiting longer each time. If a request
still fails, the error belongs to that reply alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from .. import given
from ..config import Sampling
from ..messages import json_text, plain
from ..records import Message
from ..templates import Templated, text_arguments, thinking, tools_of
from ..text import THOUGHTS, content_text
from .sampling import Reply
from .source import clear_errors, model_folder


class ServedModel(Templated):
    """A model on a server, by its name there."""

    # why: nine, because three say which model, and servers differ in the rest
    def __init__(
        self,
        base_url: str,
        model: str,
        tokenizer: str | Path,
        *,
        prompt_set: str = "paper",
        context_length: int = 8192,
        enable_thinking: bool | None = None,
        concurrency: int = 16,
        retries: int = 5,
        timeout: float = 600,
        api_key: str = "none",
    ):
        """Connect, and check that the model answers.

        Args:
            base_url: for example "http://localhost:8000/v1".
            model: its name on the server; in vLLM, adapters have names too.
            tokenizer: folder or hub id of the model, to count tokens as the server does.
            prompt_set: default prompt set of the steps.
            context_length: in tokens, as set when the server was started.
            enable_thinking: passed to the chat template (None: the template's own default).
            concurrency: number of requests at once.
            retries: how often a request is resent if the server is busy or fails.
            timeout: seconds per request.
            api_key: key, if the server needs one.

        Raises:
            ImportError: no `openai` package (pip install 'oelkit[server]').
            ConnectionError: no server answers.
            ValueError: the server does not answer as this model.
        """
        try:
            import openai  # an optional extra
        except ImportError as error:
            raise ImportError("a served model needs: pip install 'oelkit[server]'") from error
        options = {"max_retries": retries, "timeout": timeout, "api_key": api_key}
        self.errors, self.client = openai.OpenAIError, openai.OpenAI(base_url=base_url, **options)
        self.model, self.default_prompt_set = model, prompt_set
        self.context_length, self.concurrency = context_length, concurrency
        with clear_errors(str(tokenizer)):
            loaded = AutoTokenizer.from_pretrained(model_folder(tokenizer), trust_remote_code=False)
        super().__init__(model, loaded, enable_thinking)
        asked = self.encode([{"role": "user", "content": "?"}])
        refused, error = (openai.BadRequestError, openai.UnprocessableEntityError), None
        for self._beyond in (True, False):  # some servers reject fields that OpenAI does not have
            error = self._ask(asked, Sampling(max_new_tokens=1), 0).error
            if not isinstance(error, refused):
                break
        if not (self._beyond or error):
            said = "accepts no top_k, min_p and repetition_penalty: its own defaults apply"
            warnings.warn(f"{base_url} {said}", stacklevel=2)
        if error:
            if isinstance(error, openai.APIConnectionError):
                raise ConnectionError(f"{base_url}: no server there ({error})") from error
            raise ValueError(f"{base_url} does not answer as {model!r}: {error}") from error

    def use_adapter(self, folder: str | Path, name: str) -> None:
        """Make the server load a PEFT folder under a name, and use it from now on.

        Needs vLLM, started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True. The folder
        is read on the server's machine. Set `self.model` to switch to another name.

        Raises:
            ValueError: the server did not load it; the model stays as it was.
        """
        body = {"lora_name": name, "lora_path": str(given.path("folder", folder).resolve())}
        try:
            self.client.post("/load_lora_adapter", body=body, cast_to=object)
        except self.errors as error:
            told = f"the server did not load it ({error}); it must be vLLM, started for adapters"
            raise ValueError(f"{folder}: {told}") from error
        self.model = name

    def encode(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Return the prompt ids of chat messages, along with the messages to send.

        Raises:
            ValueError: the chat template rejects messages.
        """
        prompt, messages = _Prompt(super().encode(messages)), plain(messages)
        prompt.sent = {"messages": _as_sent(messages)}
        if tools := tools_of(messages):
            prompt.sent["tools"] = tools
        return prompt

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, seed: int) -> list[Reply]:
        """Return one reply per prompt; a failed request gives an empty one with its error."""
        n = len(prompts)
        with ThreadPoolExecutor(self.concurrency) as pool:
            seeds = range(seed * 1009, seed * 1009 + n)
            replies = list(pool.map(self._ask, prompts, [sampling] * n, seeds))
        if failed := [reply.error for reply in replies if reply.error]:
            why = f"{type(failed[0]).__name__}: {failed[0]}"
            warnings.warn(f"{len(failed)} of {n} requests failed, first {why}", stacklevel=3)
        return replies

    def _ask(self, prompt: Any, sampling: Sampling, seed: int) -> Reply:
        """Send one request; the client retries failures that can pass."""
        extra: dict[str, Any] = {"top_k": sampling.top_k, "min_p": 0, "repetition_penalty": 1}
        extra = extra if self._beyond else {}
        if self.enable_thinking is not None:
            extra["chat_template_kwargs"] = thinking(self.enable_thinking)
        how = {name: getattr(sampling, name) for name in ("temperature", "top_p")}
        how |= {"max_tokens": sampling.max_new_tokens, "seed": seed % 2**31, "extra_body": extra}
        try:
            answer = self.client.chat.completions.create(model=self.model, **prompt.sent, **how)
            choice = answer.choices[0]
            said = choice.message.model_dump(warnings=False)
            text = content_text(said.get("content")) + _written(said.get("tool_calls"))
        except self.errors as error:
            return Reply([], "", False, error)
        except (LookupError, TypeError, AttributeError, ValueError) as error:  # as of a web page
            return Reply([], "", False, ValueError(f"the answer holds no reply ({error})"))
        thought = said.get("reasoning_content", said.get("reasoning"))  # servers name it either way
        if thought is not None:
            begin = self.begun(prompt) or THOUGHTS[0][0]
            text = f"{begin}{thought}{dict(THOUGHTS)[begin]}{text}"
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return Reply(ids, self.marked(text, prompt), choice.finish_reason == "length")


def _as_sent(messages: Sequence[Message]) -> list[Message]:
    """Return messages in OpenAI's form: a call has an id and its arguments as JSON text, and a
    tool's result has the id of its call."""
    sent, ids = list[Message](), list[str]()
    for n, m in enumerate(text_arguments(messages)):
        m = {k: m[k] for k in m if k != "tools"}
        if calls := m.get("tool_calls"):
            ids = [call.get("id") or f"call_{n}_{i}" for i, call in enumerate(calls)]
            m["tool_calls"] = [
                {"id": id, "type": "function", "function": call["function"]}
                for id, call in zip(ids, calls, strict=True)
            ]
        elif m["role"] == "tool" and ids:
            first = ids.pop(0)
            m.setdefault("tool_call_id", first)
        sent.append(m)
    return sent


def _written(calls: Any) -> str:
    """Return the calls in a server's answer as a model writes them."""
    said = [(json_text(c["function"]["name"]), c["function"]["arguments"]) for c in calls or []]
    return "".join(
        f'\n<tool_call>\n{{"name": {name}, "arguments": {arguments or "{}"}}}\n</tool_call>'
        for name, arguments in said
    ).lstrip()


class _Prompt(list[int]):
    """Token ids, and the part of the request that asks for them."""

    sent: dict[str, Any]

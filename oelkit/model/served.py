"""A model behind an OpenAI-compatible server (vLLM, llama.cpp, `transformers serve`): rollout,
extraction and evaluation take it as a policy. It plays and writes; it is not trained.

Requests run side by side, and the `openai` package sends a failed one again, waiting longer each
time. What fails all the same is the error of that reply alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ..config import Sampling
from ..messages import MARK, behind_mark, plain
from ..text import THOUGHTS, answer_text, begun_thought, in_marks
from .sampling import Reply
from .source import clear_errors, model_folder


class ServedModel:
    """A model that a server answers for, by its name there."""

    # why: nine, for the first three say which model, the rest are what servers differ in
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
        """Connect, and see that the model answers.

        Args:
            base_url: "http://localhost:8000/v1", say.
            model: its name on the server; in vLLM an adapter has a name as well.
            tokenizer: folder or hub id of the model, to count tokens as the server will.
            prompt_set: the default of the steps.
            context_length: in tokens, as the server was started.
            enable_thinking: handed to the chat template (None: its own default).
            concurrency: requests at once.
            retries: how often a request is sent again after a busy or broken server.
            timeout: seconds for a request.
            api_key: where the server wants one.

        Raises:
            ImportError: no `openai` package (pip install 'oelkit[server]').
            ConnectionError: no server there.
            ValueError: it does not answer as this model.
        """
        try:
            import openai  # an optional extra
        except ImportError as error:
            raise ImportError("a served model needs: pip install 'oelkit[server]'") from error
        options = {"max_retries": retries, "timeout": timeout, "api_key": api_key}
        self.errors, self.client = openai.OpenAIError, openai.OpenAI(base_url=base_url, **options)
        self.name = self.model = model
        self.default_prompt_set, self.enable_thinking = prompt_set, enable_thinking
        self.context_length, self.concurrency = context_length, concurrency
        with clear_errors(str(tokenizer)):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model_folder(tokenizer))
        asked = self.encode([{"role": "user", "content": MARK}])
        shown = self.tokenizer.decode(asked)
        begun, self._in_words = begun_thought(behind_mark(shown)), in_marks(shown) != shown
        self._marks = next((marks for marks in THOUGHTS if marks[0] == begun), None)
        refused, error = (openai.BadRequestError, openai.UnprocessableEntityError), None
        for self._beyond in (True, False):  # not all servers take fields that OpenAI has not
            error = self._ask(asked, Sampling(max_new_tokens=1), 0).error
            if not isinstance(error, refused):
                break
        if not (self._beyond or error):
            said = "takes no top_k, min_p and repetition_penalty: its own defaults hold"
            warnings.warn(f"{base_url} {said}", stacklevel=2)
        if error:
            if isinstance(error, openai.APIConnectionError):
                raise ConnectionError(f"{base_url}: no server there ({error})") from error
            raise ValueError(f"{base_url} does not answer as {model!r}: {error}") from error

    def use_adapter(self, folder: str | Path, name: str) -> None:
        """Let the server load a PEFT folder under a name, and answer with it from now on.

        vLLM's, started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True; the folder is
        read where the server runs. `self.model = ...` goes back to another name.
        """
        body = {"lora_name": name, "lora_path": str(Path(folder).resolve())}
        self.client.post("/load_lora_adapter", body=body, cast_to=object)
        self.model = name

    def encode(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Prompt ids of chat messages, with the messages that are sent."""
        tools = next((m["tools"] for m in messages if m.get("tools")), None)
        messages = plain(messages)
        how: dict[str, Any] = {"add_generation_prompt": True, "return_dict": False}
        if self.enable_thinking is not None:
            how["enable_thinking"] = self.enable_thinking
        prompt = _Prompt(self.tokenizer.apply_chat_template(messages, tools=tools, **how))
        prompt.sent = {"messages": [{k: m[k] for k in m if k != "tools"} for m in messages]}
        prompt.sent |= {"tools": tools} if tools else {}
        return prompt

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, seed: int) -> list[Reply]:
        """A reply per prompt; of a request that failed, an empty one with its error."""
        n = len(prompts)
        with ThreadPoolExecutor(self.concurrency) as pool:
            seeds = range(seed * 1009, seed * 1009 + n)
            replies = list(pool.map(self._ask, prompts, [sampling] * n, seeds))
        if failed := [reply.error for reply in replies if reply.error]:
            why = f"{type(failed[0]).__name__}: {failed[0]}"
            warnings.warn(f"{len(failed)} of {n} requests failed, first {why}", stacklevel=3)
        return replies

    def _ask(self, prompt: Any, sampling: Sampling, seed: int) -> Reply:
        """One request, and again after failures that may pass."""
        extra: dict[str, Any] = {"top_k": sampling.top_k, "min_p": 0, "repetition_penalty": 1}
        extra = extra if self._beyond else {}
        if self.enable_thinking is not None:
            extra["chat_template_kwargs"] = {"enable_thinking": self.enable_thinking}
        how = {name: getattr(sampling, name) for name in ("temperature", "top_p")}
        how |= {"max_tokens": sampling.max_new_tokens, "seed": seed % 2**31, "extra_body": extra}
        try:
            answer = self.client.chat.completions.create(model=self.model, **prompt.sent, **how)
            choice = answer.choices[0]
        except (self.errors, LookupError, TypeError) as error:  # a server may send no choice
            return Reply([], "", False, error)
        text, said = choice.message.content or "", choice.message.model_dump()
        thought = said.get("reasoning_content", said.get("reasoning"))  # servers name it either way
        if thought is not None:
            begin, end = self._marks or THOUGHTS[0]
            text = f"{begin}{thought}{end}{text}"
        text = in_marks(text) if self._in_words else text
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return Reply(ids, text, choice.finish_reason == "length")

    def answer_text(self, reply: str) -> str:
        """The answer in a reply, whose thought the template may have begun."""
        begun = self._marks[0] if self._marks else ""
        return answer_text(reply if reply.startswith(begun) else begun + reply)


class _Prompt(list[int]):
    """Token ids, and the part of the request that asks for them."""

    sent: dict[str, Any]

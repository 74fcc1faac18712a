"""Models that need no oelkit: merge an adapter into its base, and load an export with Transformers
and PEFT alone, to play it as others will."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ..config import Sampling
from ..templates import Templated, unsaid
from .base import context_length, padding_id
from .loading import load_policy
from .lora import seeded
from .quantised import quantised_with
from .sampling import Reply
from .source import clear_errors, model_folder

ROWS = 32  # replies sampled at once


def merge_adapter(model: str, adapter: Path, out: Path) -> None:
    """Write the base with an adapter merged into it, in 16 bits, with tokenizer and chat template.

    Args:
        model: the base as `load_policy` takes it; loaded dense even if training used 4 bits.
        adapter: a PEFT folder.
        out: the output folder.

    Raises:
        ValueError: the base is stored quantised, so nothing can be merged into it; or the adapter
            has parts that cannot be merged.
    """
    policy = load_policy(model, quantize=None, adapter=adapter)
    stored = AutoConfig.from_pretrained(policy.source, trust_remote_code=False)
    # also of weights that were made dense on loading (fp8, mxfp4): they are stored as codes again
    if quantised_with(stored):
        raise ValueError(
            f"{model}: its weights are quantised, and no adapter can be merged into them; export "
            "to peft, or name the dense model"
        )
    held = Counter(p for _, p in policy.base_lm.named_parameters(remove_duplicate=False))
    if any(held[getattr(x.get_base_layer(), "weight", None)] > 1 for x in policy.lora_layers):
        raise ValueError(
            f"{adapter}: it adapts weights that several layers of this model share (such as the "
            "embedding and the head), so merging would change all of them; export to peft"
        )
    config, eos = policy.base_lm.generation_config, policy.eos_ids
    half = torch.float16 if stored.dtype == torch.float16 else torch.bfloat16
    try:
        merged = policy.model.merge_and_unload(adapter_names=["student"]).to(half)
    except RuntimeError as error:  # LoRA biases on layers that have none
        raise ValueError(f"{adapter}: {error} Export to peft") from error
    config.eos_token_id = eos or None  # only the chat template may know what ends a turn
    try:
        merged.save_pretrained(out)
    except SafetensorError as error:
        raise OSError(f"{out}: not written ({error})") from error
    policy.tokenizer.save_pretrained(out)


def add_tokenizer(model: str, folder: Path) -> str:
    """Write a base's tokenizer and chat template into a folder; return where the base is."""
    source = model_folder(model)
    with clear_errors(model):
        AutoTokenizer.from_pretrained(source, trust_remote_code=False).save_pretrained(folder)
    return str(Path(source).resolve()) if Path(source).is_dir() else source


class PlainModel(Templated):
    """A PEFT folder, a whole model or a GGUF file; the steps that play accept it as a policy."""

    def __init__(self, path: Path, base: str, prompt_set: str, enable_thinking: bool | None = None):
        """Load it with Transformers and PEFT alone.

        Args:
            path: the exported folder or file.
            base: the model that was trained; with a PEFT folder also the one that is loaded.
            prompt_set: name of the prompt set that it plays with.
            enable_thinking: passed to the chat template (None: the template's own default).
        """
        self.source, self.default_prompt_set = model_folder(base), prompt_set
        gguf = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
        folder = path.parent if gguf else path
        options: Any = gguf or {"dtype": "auto", "use_safetensors": True}  # never a pickle
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if (path / "adapter_config.json").is_file():
            dense = AutoModelForCausalLM.from_pretrained(
                self.source, trust_remote_code=False, **options
            )
            model: Any = PeftModel.from_pretrained(dense, str(path))
        else:
            model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **options)
        self.model: Any = model.to(device).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **gguf)
        super().__init__(base, tokenizer, enable_thinking)
        self._unsaid = unsaid(self.tokenizer)
        # without the folder's own penalties and cut-offs, as in training and in evaluation
        ends = self.model.generation_config.eos_token_id
        ends = self.tokenizer.eos_token_id if ends is None else ends
        some = ends if isinstance(ends, list) else [ends]
        pad = padding_id(self.tokenizer, some, len(self.model.get_input_embeddings().weight))
        self.model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=pad)
        self.context_length = context_length(self.model.config, self.tokenizer)

    @torch.no_grad()
    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, seed: int) -> list[Reply]:
        """Sample replies with Transformers' `generate`, batch by batch."""
        how: dict[str, Any] = {"do_sample": sampling.temperature > 0}
        how["max_new_tokens"] = sampling.max_new_tokens
        if sampling.temperature:
            how |= {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k")}
        replies: list[Reply] = []
        with seeded(seed, self.model.device):
            for start in range(0, len(prompts), ROWS):
                batch = prompts[start : start + ROWS]
                wide, pad = max(map(len, batch)), self.model.generation_config.pad_token_id
                rows = [[pad] * (wide - len(p)) + [*p] for p in batch]
                real = [[0] * (wide - len(p)) + [1] * len(p) for p in batch]
                ids, mask = (torch.tensor(x, device=self.model.device) for x in (rows, real))
                out = self.model.generate(input_ids=ids, attention_mask=mask, **how)
                replies += [*map(self._reply, out[:, wide:].tolist(), batch)]
        return replies

    def _reply(self, ids: list[int], prompt: list[int]) -> Reply:
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        last = next((i for i, token in enumerate(ids) if token in ends), None)
        said = [i for i in ids[:last] if i not in self._unsaid]
        text = self.marked(self.tokenizer.decode(said), prompt)
        return Reply(ids if last is None else ids[: last + 1], text, last is None)

"""Load a policy: the embedded model, a folder or a hub id, dense or in NF4.

This module chooses quantisation and dtype for the device, adds the two adapters, and reports each
way in which that can fail in one clear sentence. It fetches only the model that the user named,
runs no code that comes with a model, and reads no pickle.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import enable_progress_bars
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from .. import given
from ..config import ModelConfig
from . import ranks
from .attention import repeat_key_heads
from .base import cache_argument, check_weights, warn_of_slow
from .lora import attach, check_stranger, warn_of_names
from .lora_settings import adapter_config, lora_config, plain_lora
from .policy import Policy
from .quantised import (
    check_gradients,
    four_bits,
    keep_gradients,
    quantised_with,
    say_what_stays_dense,
)
from .source import clear_errors, model_folder, notes
from .targets import no_adapter

# Ranks 4 and 64 hardly come closer to the teacher in any setting, and 64 diverges first
# (data/results/lora.jsonl). PEFT's "all-linear" leaves the head out.
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"  # as Transformers calls it
# smaller models are dense float32: 16-bit or 4-bit weights would save nothing that matters
SMALL_MODEL_PARAMS = 300_000_000
# smaller models use one CPU thread, because threads wait for each other longer than they compute:
# a round of the embedded model (1.1 M) took 96 s with two threads and 70 s with one
ONE_THREAD_PARAMS = 20_000_000
_threads = torch.get_num_threads()  # for larger models


# why: half of it documents the arguments
def load_policy(
    name_or_path: str | Path,
    *,
    quantize: str | None = "auto",
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    lora: dict[str, Any] | None = None,
    adapter: str | Path | None = None,
    revision: str | None = None,
    enable_thinking: bool | None = None,
) -> Policy:
    """Load a model in eval mode, with a fresh student (= teacher = base).

    On a CPU, a model of less than 20 M parameters sets torch to one thread and a larger one
    restores the original number, unless OMP_NUM_THREADS is set.

    Args:
        name_or_path: "micro", a local model folder or a hub id.
        quantize: "nf4", None (dense), or "auto": NF4 on CUDA from 0.3 B parameters on, else dense.
            An already quantised folder stays as it is.
        dtype: dtype of the dense weights, or of the computation with NF4. "auto": float32 on a CPU
            (exact; fastest on most) and for dense models below 0.3 B; else bfloat16, or float16 on
            CUDA cards below compute capability 8. Adapters are always float32.
        device: "auto" is CUDA if available, else the CPU.
        lora: peft.LoraConfig arguments; default r=16, lora_alpha=32, all linear layers but head.
        adapter: a PEFT folder to start from, with its own LoRA settings; the teacher is its copy.
        revision: revision of a hub id.
        enable_thinking: passed to the chat template (None: the template's own default).

    Raises:
        FileNotFoundError: there is no such folder or hub id.
        ConnectionError: the hub is needed but cannot be reached.
        ValueError: not a model, no chat template, an adapter of another base, an unknown option.
        RuntimeError: CUDA was requested but is not available.
    """
    if quantize not in ("auto", "nf4", None):
        raise ValueError(f'quantize={quantize!r}: choose "auto", "nf4" or None')
    device = _pick_device(device)
    given.one("lora", lora or {}, dict, ' such as {"r": 8}')
    if adapter is None:
        options = {**LORA, **(lora or {}), "task_type": "CAUSAL_LM"}
        lora_settings = lora_config(options, "lora=")
    else:
        lora_settings = plain_lora(adapter_config(given.path("adapter", adapter)))
    given.path("name_or_path", name_or_path)
    name, source = str(name_or_path), model_folder(name_or_path)
    with clear_errors(name):
        # without this, Transformers asks on the terminal whether to run a model's own code
        found = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        config = _settled(found)
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
        # callers report prompts that exceed the context, and can say which prompt it is
        tokenizer.deprecation_warnings[TOO_LONG] = True
        with torch.device("meta"):
            empty: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise ValueError(
            f"{name}: its tokenizer has no chat template; use an instruction-tuned model, or put a "
            "chat_template.jinja into the model folder"
        )
    if adapter is not None:
        check_stranger(Path(adapter), empty, lora_settings)
    small = empty.num_parameters() < SMALL_MODEL_PARAMS
    if quantize == "auto":
        quantize = "nf4" if device.type == "cuda" and not small else None
    dtype = _pick_dtype(dtype, device, exact=small and quantize is None)
    if device.type == "cpu" and empty.num_parameters() >= ONE_THREAD_PARAMS:
        warn_of_slow(dtype, name)
    nf4 = quantize == "nf4" and not quantised_with(config)
    packed = four_bits(empty, dtype) if nf4 else None
    base = _load_base(name, source, revision, config, device, dtype, packed)
    prompts = str(notes(Path(source)).get("prompts", "paper"))
    if adapter is None:
        lora_settings.exclude_modules = no_adapter(base, lora_settings.exclude_modules)
    model = attach(base, lora_settings, name, f"{adapter}: its LoRA" if adapter else "lora=")
    if adapter is None:
        warn_of_names(model, (lora or {}).get("target_modules"), name)
    if (method := quantised_with(config)) not in ("", "bitsandbytes"):
        check_gradients(model, name, method)
    policy = Policy(model, name, tokenizer, prompts, enable_thinking, source)
    if adapter is not None:
        policy.load_adapter(adapter)
    policy.sync_teacher()
    policy.check_hidden()
    _check_ends(policy)
    _check_thinking(policy)
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1 if empty.num_parameters() < ONE_THREAD_PARAMS else _threads)
    return policy


def policy_from_config(config: ModelConfig, **options: Any) -> Policy:
    """Load the policy of a ModelConfig (or Settings); options as in `load_policy`."""
    policy = load_policy(
        config.model,
        quantize=None if config.quantize == "none" else config.quantize,
        dtype=config.dtype,
        lora={"r": config.lora_rank, "lora_alpha": 2 * config.lora_rank},
        enable_thinking=config.enable_thinking,
        **options,
    )
    policy.date = config.date
    return policy


def _check_ends(policy: Policy) -> None:
    """Refuse end-of-reply tokens that are not ids; warn if no token ends a reply."""
    said = policy.base_lm.generation_config.eos_token_id
    ids = said if isinstance(said, list) else [said]
    if not all(i is None or type(i) is int for i in ids):
        raise ValueError(
            f"{policy.name}: its generation_config.json has eos_token_id={said!r}; write an id, or "
            "a list of ids"
        )
    if not policy.eos_ids:
        warnings.warn(
            f"{policy.name}: no token ends its replies (tokenizer, generation_config and chat "
            "template name none), so every reply runs to max_new_tokens",
            stacklevel=3,
        )


def _check_thinking(policy: Policy) -> None:
    """Warn if the chat template does not know `enable_thinking`."""
    thinks, asked = policy.enable_thinking, [{"role": "user", "content": "?"}]
    if thinks is None:
        return
    if policy.encode(asked) == replace(policy, enable_thinking=not thinks).encode(asked):
        told = "changes nothing, because its chat template has no such switch"
        warnings.warn(f"{policy.name}: enable_thinking={thinks} {told}", stacklevel=3)


@contextmanager
def _no_bar() -> Iterator[None]:
    """Hide Transformers' progress bar for loading weights; keep those for downloads."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        if shown:
            enable_progress_bars()
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _pick_device(device: str | torch.device) -> torch.device:
    cuda = torch.cuda.is_available()
    if device == "auto" and (own := ranks.join()):
        return own
    try:
        device = torch.device(("cuda" if cuda else "cpu") if device == "auto" else device)
    except (TypeError, RuntimeError):  # None, or not a kind of device
        raise ValueError(f'device={device!r}: choose "auto", "cpu" or "cuda"') from None
    if device.type == "cuda" and not cuda:
        raise RuntimeError('no usable CUDA device on this machine; pass device="cpu" or "auto"')
    return device


def _pick_dtype(dtype: str | torch.dtype, device: torch.device, exact: bool) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise ValueError(f'dtype={dtype!r}: choose "auto", "float32", "bfloat16" or "float16"')
    if dtype != "auto":
        return getattr(torch, dtype)
    if exact or device.type == "cpu":
        return torch.float32
    old = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 8
    return torch.float16 if old else torch.bfloat16


def _settled(config: PreTrainedConfig) -> PreTrainedConfig:
    """Disable dropout in the config, so that student and teacher are measured alike.

    Also remove a padding id outside the embedding, with which Transformers cannot build the model.
    """
    for part in (config, config.get_text_config()):
        for key, value in vars(part).items():
            if "drop" in key and type(value) in (int, float):
                setattr(part, key, 0.0)
        pad, size = getattr(part, "pad_token_id", None), getattr(part, "vocab_size", None)
        if isinstance(pad, int) and size and not 0 <= pad < size:
            part.pad_token_id = None
    return config


def _load_base(
    name: str,
    source: str,
    revision: str | None,
    config: PreTrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    packed: BitsAndBytesConfig | None,
) -> PreTrainedModel:
    """Load the frozen base model onto its device; refuse an incomplete one."""
    with clear_errors(name), _no_bar():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            revision=revision,
            dtype=dtype,
            device_map={"": device},
            trust_remote_code=False,
            use_safetensors=True,  # the other format is a pickle
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_weights reports them by name
            quantization_config=packed,
        )
    base, info = loaded
    if base.base_model is base:
        raise ValueError(
            f"{name}: a {config.model_type} model exposes no hidden states; it is not supported"
        )
    if not cache_argument(base):
        raise ValueError(
            f"{name}: a {config.model_type} model keeps its state in a format of its own, with "
            "which replies would depend on the rest of their batch; it is not supported"
        )
    check_weights(base, info, name)
    if packed or "bitsandbytes" in quantised_with(config):
        keep_gradients(base)
        say_what_stays_dense(base, name)
        for module in base.modules():  # the folder may name a dtype for another card
            if hasattr(module, "compute_dtype"):
                module.compute_dtype = dtype
    repeat_key_heads(base)
    # generate passes a slice of [B, T, D], for which torch would copy the whole head B times
    head = base.get_output_embeddings()
    head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(),))
    return base.requires_grad_(False)

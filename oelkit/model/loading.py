"""Loading a policy: the embedded model, a folder or a hub id, dense or in NF4, on a CPU or a CUDA
card.

What it does: chooses quantisation and dtype for the device, adds the two adapters, and turns the
many ways in which that can fail into one clear sentence each. What it does not: fetch anything but
the model that the user named, run code that comes with a model, or read a pickle."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import errors as hub
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from .policy import Policy, adapter_config  # before PEFT, whose import it keeps quiet

# data/results/lora.jsonl: ranks 4 and 64 hardly come closer to the teacher in any setting, and 64
# diverges first
LORA = {
    "r": 16,
    "lora_alpha": 32,
    "target_modules": "all-linear",
}  # PEFT's "all-linear" leaves the head out
# fewer parameters than this: 16-bit or 4-bit weights save nothing that matters, so dense float32
SMALL_MODEL_PARAMS = 300_000_000


def load_policy(
    name_or_path: str | Path,
    *,
    quantize: str | None = "auto",
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    lora: dict | None = None,
    adapter: str | Path | None = None,
    revision: str | None = None,
    enable_thinking: bool | None = None,
) -> Policy:
    """Load "micro", a local model folder or a hub id, in eval mode, with a fresh student (= teacher
    = base).

    quantize: "nf4", None (dense), or "auto": NF4 on CUDA from 0.3 B parameters on, else dense.
    dtype: of the dense weights or of the NF4 computation. "auto": float32 on a CPU (exact; fastest
    on most; 4 bytes a parameter) and for dense models below 0.3 B; else bfloat16, or float16 on
    cards below compute capability 8. The adapters are float32 always. lora: arguments of
    peft.LoraConfig over r=16, lora_alpha=32, all linear layers but the head. adapter: a PEFT folder
    to start from, with its own LoRA settings; the teacher starts as its copy. enable_thinking:
    handed to the chat template (None: its own default). Raises FileNotFoundError (no such folder or
    id), ConnectionError (hub id, no network), ValueError (not a model, no chat template, adapter of
    another base, unknown option), RuntimeError (no CUDA here)."""
    if quantize not in ("auto", "nf4", None):
        raise ValueError(f'quantize={quantize!r}: say "auto", "nf4" or None')
    if isinstance(dtype, str) and dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise ValueError(f'dtype={dtype!r}: say "auto", "float32", "bfloat16" or "float16"')
    device = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    )
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            'device="cuda", but this machine has no usable CUDA device; pass device="cpu" or "auto"'
        )
    settings = {**LORA, **(lora or {}), "task_type": "CAUSAL_LM"}
    lora_config = LoraConfig(**settings) if adapter is None else adapter_config(Path(adapter))
    name, source = str(name_or_path), model_folder(name_or_path)
    with _clear_errors(name):
        config = AutoConfig.from_pretrained(source, revision=revision)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        with torch.device("meta"):
            small = AutoModelForCausalLM.from_config(config).num_parameters() < SMALL_MODEL_PARAMS
    if not tokenizer.chat_template:
        raise ValueError(
            f"{name}: its tokenizer has no chat template; use an instruction-tuned model, or put a "
            "chat_template.jinja into the model folder"
        )
    if quantize == "auto":
        quantize = "nf4" if device.type == "cuda" and not small else None
    if dtype == "auto":
        exact = device.type == "cpu" or (small and quantize is None)
        modern = not exact and torch.cuda.get_device_capability(device)[0] >= 8
        dtype = torch.float32 if exact else torch.bfloat16 if modern else torch.float16
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    bits = (
        BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        if quantize == "nf4"
        else None
    )
    with _clear_errors(name):  # safetensors only: the other format is a pickle
        causal, info = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=dtype,
            device_map={"": device},
            use_safetensors=True,
            output_loading_info=True,
            **({"quantization_config": bits} if bits else {}),
        )
    if info["missing_keys"]:
        raise ValueError(
            f"{name}: its weight files lack {sorted(info['missing_keys'])[0]} and perhaps more"
        )
    if quantize == "nf4":
        _keep_gradients(causal)
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(
            0
        )  # LoRA's A is random: the same in each process, and the caller's generator untouched
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # PEFT asks Transformers by names that are about to go
        lora_config.inference_mode, lora_config.base_model_name_or_path = (
            False,
            None,
        )  # PEFT warns of any but the path
        model = get_peft_model(causal.requires_grad_(False), lora_config, adapter_name="student")
        lora_config.base_model_name_or_path = name
        model.add_adapter("teacher", lora_config)
    model.set_adapter("student")
    notes = Path(source) / "oelkit.json"
    prompts = json.loads(notes.read_text()).get("prompts", "paper") if notes.is_file() else "paper"
    policy = Policy(model.eval(), tokenizer, name, prompts, enable_thinking, source)
    if adapter is not None:
        policy.load_adapter(adapter)
    policy.sync_teacher()
    return policy


def model_folder(name_or_path: str | Path) -> str:
    """The folder of "micro" or of a path, or the hub id as it is."""
    if name_or_path == "micro":
        for root in (Path.cwd(), *Path.cwd().parents, *Path(__file__).resolve().parents):
            if (root / "data/micro/config.json").is_file():
                return str(root / "data/micro")
        raise FileNotFoundError(
            "micro: found no data/micro above the working directory or the oelkit package; "
            "start from a clone of the repository"
        )
    path, text = Path(name_or_path).expanduser(), str(name_or_path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{text}: not a model folder, there is no config.json in it")
        return str(path)
    if isinstance(name_or_path, Path) or text.startswith((".", "~", os.sep)) or text.count("/") > 1:
        raise FileNotFoundError(f"{text}: no such model folder")
    return text


@contextmanager
def _clear_errors(name: str) -> Iterator[None]:
    """Transformers' many errors about a model that cannot be loaded, turned into one clear sentence
    each.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        chain, e = [], error
        while e is not None and e not in chain:
            chain.append(e)
            e = e.__cause__ or e.__context__
        kinds = tuple(map(type, chain))
        if hub.GatedRepoError in kinds:
            raise FileNotFoundError(
                f"{name}: a gated model; accept its terms on the hub and log in to it"
            ) from error
        if hub.RepositoryNotFoundError in kinds:
            raise FileNotFoundError(
                f"{name}: neither a folder here nor a (public) model on the hub"
            ) from error
        if hub.LocalEntryNotFoundError in kinds or hub.OfflineModeIsEnabled in kinds:
            raise ConnectionError(
                f"{name}: no such folder here, and the hub cannot be reached to look for that id; "
                "check the name, the network, or pass a local folder"
            ) from error
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(f"{name}: not a usable causal language model ({reason})") from error


def _keep_gradients(model: torch.nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on a CPU: its packed product has no autograd,
    so that after one generate in eval mode every gradient through the layer is silently lost
    (bitsandbytes 0.50)."""
    import bitsandbytes  # only where something is quantised: it prints and takes a second

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False

"""Attach LoRA to a base model, and read adapters from PEFT folders.

This module adds student and teacher to a base model, and checks that an adapter from a folder fits
and means what PEFT says.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.warning import PeftWarning
from torch.nn.functional import pad
from transformers import PreTrainedModel

from .lora_settings import OFF_BASE, SHAPE, adapter_config, plain_lora
from .quantised import is_packed
from .source import notes
from .tensors import load_tensors, tensor_shapes

LARGE = 50_000_000  # numbers of an adapter, from which on its size is checked before it is attached
PATIENCE = 20  # seconds, for comparing the patterns of an adapter with the names of layers
MATCH = """import json, re, sys
patterns, names = json.load(sys.stdin)
for p in patterns:
    for name in names:
        re.fullmatch(p, name)
        re.match(rf"(.*\\.)?({p})$", name)
        re.match(rf".*\\.{p}\\.(\\d+)\\.", name)"""  # as PEFT does
# by how much the marks of one base can differ in another dtype: relative, absolute
OFF = {"base_embedding": (0.02, 1e-4), "base_layer": (0.004, 1e-6)}


def attach(base: PreTrainedModel, config: LoraConfig, name: str, what: str = "lora=") -> PeftModel:
    """Add the adapters "student" (active) and "teacher"; A is the same in every process.

    Args:
        base: the base model.
        config: LoRA settings of both adapters.
        name: name of the base model.
        what: source of the settings, for errors.

    Raises:
        ValueError: the model has no such layers, or PEFT has no such LoRA for them.
    """
    config.inference_mode = False
    config.base_model_name_or_path = None  # PEFT warns about a name that is not the folder
    try:  # PEFT warns about deprecated names of its own, and about settings that are intended here
        with seeded(0, base.device), warnings.catch_warnings(action="ignore"):  # LoRA's A is random
            model = get_peft_model(base, config, adapter_name="student")
    except (ValueError, AttributeError, re.error) as error:  # AttributeError: DoRA in 8 bits
        raise ValueError(f"{what} does not fit {name}: {error}") from error
    config.base_model_name_or_path = name
    add_adapter(model, "teacher", config)
    model.set_adapter("student")
    return model.eval()


def check_stranger(folder: Path, empty: PreTrainedModel, config: LoraConfig) -> None:
    """Refuse an adapter that would take all memory or never end, before it is attached.

    Its patterns are tried in another process, which can be ended. Its matrices must not be far
    larger than those in its file.

    Args:
        folder: a PEFT folder.
        empty: the base model on the meta device.
        config: the LoRA settings of the folder.

    Raises:
        ValueError: as above.
    """
    ranks = config.rank_pattern or {}
    said = [config.target_modules, config.exclude_modules, *ranks, *(config.alpha_pattern or {})]
    layers = config.layers_pattern or []
    said += [layers] if isinstance(layers, str) else layers
    patterns = [p for p in said if isinstance(p, str) and not re.fullmatch(r"[\w.-]*", p)]
    try:
        if patterns:
            names = [name for name, _ in empty.named_modules()]
            command = [sys.executable, "-I", "-S", "-c", MATCH]
            asked = json.dumps([patterns, names])
            subprocess.run(command, input=asked, text=True, capture_output=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        told = f"its patterns {patterns} take over {PATIENCE} s to compare with the layers' names"
        raise ValueError(f"{folder}: {told}; write simpler ones") from None
    shapes = tensor_shapes(folder / "adapter_model.safetensors")
    held = sum(prod(x) for key, x in shapes.items() if ".lora_" in key)
    rank = max([config.r, *ranks.values()])
    if rank * sum(sum(p.shape) for p in empty.parameters() if p.ndim > 1) < LARGE:
        return
    what = f"{folder}: its LoRA"
    with torch.device("meta"):
        meta = attach(copy.deepcopy(empty), copy.deepcopy(config), "the base model", what)
    if (want := sum(x.numel() for x in lora_state(meta).values())) > max(LARGE, 4 * held):
        raise ValueError(
            f"{folder}: its config asks for matrices of {want:,} numbers, its file has {held:,}"
        )


def warn_of_names(model: Any, names: Any, name: str) -> None:
    """Warn about layers that the user names but that get no adapter, such as misspelt ones."""
    found = [f".{layer}" for layer in model.base_model.targeted_module_names]
    names = () if names is None or isinstance(names, str) else names
    if lost := sorted(n for n in names if not any(x.endswith(f".{n}") for x in found)):
        told = f"{name} has no such layer that takes an adapter"
        warnings.warn(f"lora= names {', '.join(lost)}: {told}", stacklevel=3)


def add_adapter(model: Any, name: str, config: LoraConfig) -> None:
    """Add an inactive adapter; A is the same on every call."""
    device = next(model.parameters()).device
    with seeded(0, device), warnings.catch_warnings(action="ignore"):  # as in `attach`
        model.add_adapter(name, config)


# why: long, because each thing that can differ has a sentence of its own
def fitting_weights(folder: Path, model: Any, name: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a folder if they fit the student of this model.

    Args:
        folder: a PEFT folder.
        model: the PeftModel with the student.
        name: name of the base model, for errors.

    Raises:
        FileNotFoundError: the folder holds no adapter.
        ValueError: the adapter does not fit; the message says what differs.
    """
    theirs, ours = adapter_config(folder), model.peft_config["student"]
    base = f"another base model ({theirs.base_model_name_or_path})"
    mark = (marks := notes(folder)).get("base_embedding")
    if not same_base(marks, model):
        raise ValueError(
            f"{folder}: this adapter was trained on {base}, not on {name}; load it with that one"
        )
    named = str(theirs.base_model_name_or_path or name)
    if not mark and _last(named) != _last(name):
        warnings.warn(
            f"{folder}: its adapter_config.json says that it was trained on {named}, not on "
            f"{name}; on other weights, it means something else",
            stacklevel=3,
        )
    take = "give the folder to load_policy(adapter=...), which takes the adapter's own settings"
    stored = tensor_shapes(folder / "adapter_model.safetensors")
    if ours.target_parameters and any(re.search(r"\.experts\.\d+\.", key) for key in stored):
        raise ValueError(
            f"{folder}: its experts are single layers, as before Transformers 5; load it with "
            "PEFT's PeftModel.from_pretrained, and save it again with save_pretrained"
        )
    plain = plain_lora(theirs)
    for key in SHAPE:
        if getattr(plain, key) != getattr(ours, key):
            raise ValueError(
                f"{folder}: its LoRA has {key}={getattr(plain, key)}, the policy "
                f"{getattr(ours, key)}; {take}"
            )
    state, want = _adapter_weights(folder, model), lora_state(model)
    layers, places = ({k.split(".lora_")[0] for k in x} for x in (state, want))
    nowhere = layers - {f"base_model.model.{n}" for n, _ in model.get_base_model().named_modules()}
    if layers != places and not nowhere:
        said = [", ".join(sorted({n.split(".")[-1] for n in x})) for x in (layers, places)]
        raise ValueError(
            f"{folder}: its LoRA is on {len(layers)} layers (target_modules: {said[0]}), the "
            f"policy's on {len(places)} ({said[1]}); {take}"
        )
    if theirs.init_lora_weights in OFF_BASE and not nowhere:
        state = _with_start(folder, model, theirs, state)
    names = {_behind_number(key): key for key in want}
    if nowhere and {_behind_number(key) for key in state} == names.keys():
        key = min(state)
        raise ValueError(
            f"{folder}: its tensors have other names than PEFT's: {key} should be "
            f"{names[_behind_number(key)]}; rename them"
        )
    unlike = {k for k in state.keys() & want.keys() if state[k].shape != want[k].shape}
    if wrong := sorted(unlike or nowhere or state.keys() ^ want.keys()):
        what = f"an adapter of {base}, or a damaged one"
        raise ValueError(
            f"{folder}: {what}: {len(wrong)} of its tensors do not fit {name}, first {wrong[0]}"
        )
    return state


def _last(name: str) -> str:
    """Return the last part of a model's name, also where it is a folder of the hub's cache."""
    cached = re.search(r"models--.+--([^/]+)/snapshots/", name)
    return cached[1] if cached else Path(name).resolve().name


def _behind_number(key: str) -> str:
    """Return a tensor's name from its layer number on, which is the same after any prefix."""
    key = re.sub(r"(\.lora_\w+)\.\w+\.weight$", r"\1.weight", key)  # drop the adapter's name
    return re.split(r"\.(?=\d+\.)", key, maxsplit=1)[-1]


def _adapter_weights(folder: Path, model: Any) -> dict[str, torch.Tensor]:
    """Return the LoRA tensors; base weights stored beside them must equal the base model's."""
    state, _ = load_tensors(folder / "adapter_model.safetensors")
    named = model.get_base_model().named_parameters(remove_duplicate=False)  # tied ones as well
    own = {n.replace(".base_layer", ""): p for n, p in named}
    if wrong := next((key for key, x in state.items() if not x.float().isfinite().all()), None):
        raise ValueError(f"{folder}: {wrong} holds numbers that are not finite; train it again")
    for key in [key for key in state if ".lora_" not in key]:
        mine = own.get(key.removeprefix("base_model.model.").replace(".base_layer", ""))
        x = state.pop(key)
        if mine is None or mine.shape != x.shape or not torch.equal(mine.cpu(), x.to(mine.dtype)):
            raise ValueError(
                f"{folder}: it contains its own {key}, which is not the base model's; oelkit "
                "loads only the matrices of LoRA"
            )
    return state


def _with_start(
    folder: Path, model: Any, config: LoraConfig, state: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Add what PEFT subtracted from the base at the start, as more rows of A and of -B."""
    layers: list[Any] = [m for m in model.modules() if isinstance(m, LoraLayer)]
    bases = [layer.get_base_layer() for layer in layers]
    if any(is_packed(m.weight) for m in bases):
        raise ValueError(
            f"{folder}: an adapter with init_lora_weights={config.init_lora_weights!r} needs the "
            "dense base; load it with quantize=None"
        )
    kept = [m.weight.data.clone() for m in bases]
    add_adapter(model, "start", config)
    start = lora_state(model, "start")
    model.delete_adapter("start")
    for m, weight in zip(bases, kept, strict=True):
        m.weight.data.copy_(weight)
    held = lora_state(model)
    for name, x in state.items():
        if x.ndim == 2 and start[name].shape == x.shape:
            of_a = ".lora_A." in name or ".lora_embedding_A" in name
            first, dim = (start[name], 0) if of_a else (-start[name], 1)
            both = torch.cat([x, first.detach().to(x)], dim)
            # a matrix of fewer rows than r gives an adapter of a smaller rank
            rest = [n - there for n, there in zip(held[name].shape, both.shape, strict=True)]
            state[name] = pad(both, (0, rest[1], 0, rest[0]))
    return state


def lora_state(model: Any, adapter: str = "student") -> dict[str, torch.Tensor]:
    """Return the tensors of an adapter, named as in a PEFT folder."""
    # PEFT mistakes LoRA biases for broken matrices
    with warnings.catch_warnings(action="ignore", category=PeftWarning):
        state = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return {key: x for key, x in state.items() if ".lora_" in key}


def base_marks(model: Any) -> dict[str, list[float]]:
    """Return what an adapter's oelkit.json says of its base: values of its embedding, and of the
    last layer with LoRA, as merging and fine-tuning can leave the embedding as it is.
    """
    last: Any = [m for m in model.modules() if isinstance(m, LoraLayer)][-1]
    weight: Any = getattr(last.get_base_layer(), "weight", torch.empty(0))
    inner = torch.empty(0) if is_packed(weight) else weight.detach().reshape(-1)
    some = inner[:: max(1, len(inner) // 64)].float().tolist()
    ends: Any = model.get_base_model().get_input_embeddings().weight
    marks = ends[:: max(1, len(ends) // 16), 0].float().tolist()
    return {"base_embedding": marks, "base_layer": some}


def same_base(marks: Any, model: Any) -> bool:
    """Whether what a file keeps of `base_marks` can be of this model's base."""
    own = base_marks(model)
    marks = marks if isinstance(marks, dict) else {}
    both = [(marks[k], own[k], off) for k, off in OFF.items() if own[k] and marks.get(k)]
    return all(_alike(*pair) for pair in both)


def _alike(a: Any, b: list[float], off: tuple[float, float]) -> bool:
    """Whether both are of one base. `a` comes from a file."""
    if not isinstance(a, list) or len(a) != len(b) or any(type(x) not in (int, float) for x in a):
        return False
    return all(abs(x - y) <= off[0] * abs(y) + off[1] for x, y in zip(a, b, strict=True))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw random numbers from a seed; restore the generators of CPU and cards afterwards."""
    cards = list(range(torch.cuda.device_count())) if device.type == "cuda" else []
    with torch.random.fork_rng(cards):
        torch.manual_seed(seed)
        yield

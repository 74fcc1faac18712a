"""Settings of LoRA as oelkit takes them: those that it knows, in their kinds and ranges.

What it does: makes PEFT's config of them, or refuses one by its name. What it does not: know on
which layers of a model that will be (see `targets`, `lora`).
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from types import NoneType
from typing import Any

from peft import LoraConfig

from .tensors import tensor_shapes

# settings of LoRA that oelkit takes; any other that is not PEFT's default is refused by its name
WHERE = ["target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"]
WHERE += ["target_parameters"]  # PEFT's own choice for experts that lie in one tensor
SHAPE = ["r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias"]
PATTERNS = "rank_pattern", "alpha_pattern"
# these say nothing of what the adapter computes; fan_in_fan_out follows from the base
SILENT = ["task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path"]
SILENT += ["revision", "inference_mode", "megatron_core", "runtime_config", "qalora_group_size"]
SILENT += ["fan_in_fan_out", "lora_dropout", "init_lora_weights"]
OURS = "task_type", "peft_type", "runtime_config"  # the same for all that oelkit trains
SWITCHES = "use_rslora", "use_dora", "lora_bias"
MAY_BE_NULL = *PATTERNS, "lora_dropout"  # other programs write so
STARTS = True, "gaussian"  # B = 0: the untrained student is the base
OFF_BASE = "pissa", "olora"  # take the start of A and B off the base's weights


def adapter_config(folder: Path) -> LoraConfig:
    """The settings of a LoRA folder.

    Raises:
        FileNotFoundError: no adapter there.
        ValueError: another kind of adapter, or a setting that oelkit does not take.
    """
    files = "adapter_config.json", "adapter_model.safetensors"
    if not all((folder / name).is_file() for name in files):
        raise FileNotFoundError(f"{folder}: no adapter there ({' and '.join(files)})")
    try:
        given = json.loads((folder / files[0]).read_text("utf-8-sig"))
        kind = given.get("peft_type")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder}: its {files[0]} is not JSON of an adapter") from error
    if kind != "LORA":
        raise ValueError(f"{folder}: a {kind} adapter; oelkit trains LoRA adapters only")
    config = lora_config(given, f"{folder}: this adapter", (*STARTS, *OFF_BASE, False))
    shapes = tensor_shapes(folder / files[1])  # before anything of that size is made
    rows = max((x[0] for key, x in shapes.items() if ".lora_A." in key and x), default=0)
    wide = max((max(x) for key, x in shapes.items() if ".lora_" in key and x), default=0)
    # of a rank below that there may be no layer, with a pattern for each
    if (most := max([config.r, *(config.rank_pattern or {}).values()])) > wide:
        raise ValueError(f"{folder}: it says a rank of {most}, its matrices have {rows} at most")
    return config


def lora_config(given: dict[str, Any], what: str, starts: tuple[Any, ...] = STARTS) -> LoraConfig:
    """A LoraConfig of settings that oelkit takes.

    Args:
        given: settings by name.
        what: whose they are, for the error.
        starts: values of init_lora_weights that are taken.

    Raises:
        ValueError: any other setting, named.
    """
    default = LoraConfig()
    for key, value in given.items():
        known = key in (*SHAPE, *WHERE, *SILENT)
        if not known and value and value != getattr(default, key, None):
            raise ValueError(
                f"{what} has {key}={value!r}; oelkit trains the matrices A and B of LoRA (and "
                "DoRA's magnitudes) and nothing else"
            )
    start = given.get("init_lora_weights", True)
    if start not in starts:
        raise ValueError(
            f"{what} has init_lora_weights={start!r}, which begins elsewhere than at the base "
            f"model; oelkit takes {' or '.join(map(repr, starts))}"
        )
    if start in OFF_BASE and given.get("use_dora"):
        raise ValueError(f"{what} has both use_dora and init_lora_weights={start!r}; take one")
    taken = {k: v for k, v in given.items() if hasattr(default, k) and k not in OURS}
    taken = {k: v for k, v in taken.items() if v is not None or k not in MAY_BE_NULL}
    _check_values(vars(default) | taken, what)
    try:
        return LoraConfig(**{**taken, "task_type": "CAUSAL_LM"})
    except ValueError as error:  # of two that do not go together
        raise ValueError(f"{what} cannot be: {error}") from error


def _check_values(settings: dict[str, Any], what: str) -> None:
    """Refuse values of another kind or range, over which PEFT stumbles, or which it takes."""
    number, names = (int, float), (str, list, tuple, set, NoneType)
    kinds: dict[str, Any] = {"r": int, "lora_alpha": number, "lora_dropout": number}
    kinds |= {"layers_to_transform": (int, list, tuple, NoneType), **dict.fromkeys(PATTERNS, dict)}
    kinds |= {key: names for key in WHERE if key not in kinds} | dict.fromkeys(SWITCHES, bool)
    for key, kind in kinds.items():
        value = settings.get(key)
        odd = key in settings and not isinstance(value, kind)
        if odd or (kind is not bool and isinstance(value, bool)):
            raise ValueError(f"{what} has {key}={value!r}, which is of another kind")
    for rank in (settings["r"], *settings["rank_pattern"].values()):
        if type(rank) is not int or rank < 1:
            raise ValueError(f"{what} has a rank of {rank!r}; need a whole number from 1")
    for alpha in (settings["lora_alpha"], *settings["alpha_pattern"].values()):
        if type(alpha) not in number or not math.isfinite(alpha) or alpha == 0:
            raise ValueError(f"{what} has an alpha of {alpha!r}; need a number other than 0")
    if not 0 <= (dropout := settings["lora_dropout"]) < 1:
        raise ValueError(f"{what} has lora_dropout={dropout}; need 0 to below 1")


def plain_lora(config: LoraConfig) -> LoraConfig:
    """The settings under which oelkit holds an adapter from a folder: untrained, it is the base.

    PiSSA and OLoRA become LoRA of twice the rank (see `_with_start`).
    """
    config = copy.deepcopy(config)
    if config.init_lora_weights in OFF_BASE:
        grown = 2**0.5 if config.use_rslora else 2  # what multiplies B A stays
        config.r *= 2
        config.lora_alpha *= grown  # pyright: ignore[reportAttributeAccessIssue]
        config.rank_pattern = {k: 2 * r for k, r in (config.rank_pattern or {}).items()}
        config.alpha_pattern = {k: grown * a for k, a in (config.alpha_pattern or {}).items()}
    config.init_lora_weights, config.lora_dropout = True, 0.0
    return config

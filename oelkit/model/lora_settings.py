"""The LoRA settings that oelkit supports, with their types and ranges.

This module turns settings into PEFT's config, or refuses one by name.
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

# supported LoRA settings; any other that differs from PEFT's default is refused by name
WHERE = ["target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"]
WHERE += ["target_parameters"]  # PEFT's own choice for experts stored in one tensor
SHAPE = ["r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias"]
PATTERNS = "rank_pattern", "alpha_pattern"
# these do not define what the adapter computes; fan_in_fan_out follows from the base
SILENT = ["task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path"]
SILENT += ["revision", "inference_mode", "megatron_core", "runtime_config", "qalora_group_size"]
SILENT += ["fan_in_fan_out", "lora_dropout", "init_lora_weights", "eva_config"]
OURS = "task_type", "peft_type", "runtime_config"  # the same for everything that oelkit trains
SWITCHES = "use_rslora", "use_dora", "lora_bias"
# other programs write null for these, which PEFT takes for false or nothing
MAY_BE_NULL = *PATTERNS, *SWITCHES, "lora_dropout", "bias"
STARTS = True, "gaussian"  # B = 0: the untrained student is the base
OFF_BASE = "pissa", "olora"  # subtract the initial B A from the base's weights
TRAINED = False, "eva", "orthogonal", "mica"  # a trained one is plain A and B on the base


def adapter_config(folder: Path) -> LoraConfig:
    """Read the settings of a LoRA folder.

    Raises:
        FileNotFoundError: the folder holds no adapter.
        ValueError: another kind of adapter, or a setting that oelkit does not support.
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
    config = lora_config(given, f"{folder}: this adapter", (*STARTS, *OFF_BASE, *TRAINED))
    shapes = tensor_shapes(folder / files[1])  # before anything of that size is allocated
    rows = max((x[0] for key, x in shapes.items() if ".lora_A." in key and x), default=0)
    wide = max((max(x) for key, x in shapes.items() if ".lora_" in key and x), default=0)
    # not compared with `rows`: if a pattern covers every layer, none has rank r
    if (most := max([config.r, *(config.rank_pattern or {}).values()])) > wide:
        raise ValueError(f"{folder}: its config says rank {most}, its matrices have at most {rows}")
    return config


def lora_config(given: dict[str, Any], what: str, starts: tuple[Any, ...] = STARTS) -> LoraConfig:
    """Build a LoraConfig from supported settings.

    Args:
        given: settings by name.
        what: source of the settings, for errors.
        starts: accepted values of init_lora_weights.

    Raises:
        ValueError: a setting is not supported; the message names it.
    """
    default = LoraConfig()
    given = {k: v for k, v in given.items() if v is not None or k not in MAY_BE_NULL}
    if "init_lora_weights" in given and given["init_lora_weights"] is None:
        given["init_lora_weights"] = False
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
            f"{what} has init_lora_weights={start!r}, which does not start at the base model; "
            f"oelkit takes {' or '.join(map(repr, starts))}"
        )
    if start in OFF_BASE and given.get("use_dora"):
        raise ValueError(f"{what} has both use_dora and init_lora_weights={start!r}; take one")
    taken = {k: v for k, v in given.items() if hasattr(default, k) and k not in OURS}
    _check_values(vars(default) | taken, what)
    try:
        return LoraConfig(**{**taken, "task_type": "CAUSAL_LM"})
    except ValueError as error:  # of two settings that exclude each other
        raise ValueError(f"{what} is not valid: {error}") from error


def _check_values(settings: dict[str, Any], what: str) -> None:
    """Refuse values of a wrong type or range; PEFT fails on some and accepts others."""
    number, names = (int, float), (str, list, tuple, set, NoneType)
    kinds: dict[str, Any] = {"r": int, "lora_alpha": number, "lora_dropout": number}
    kinds |= {"layers_to_transform": (int, list, tuple, NoneType), **dict.fromkeys(PATTERNS, dict)}
    kinds |= {key: names for key in WHERE if key not in kinds} | dict.fromkeys(SWITCHES, bool)
    for key, kind in kinds.items():
        value = settings.get(key)
        odd = key in settings and not isinstance(value, kind)
        if odd or (kind is not bool and isinstance(value, bool)):
            raise ValueError(f"{what} has {key}={value!r}, which has the wrong type")
    for rank in (settings["r"], *settings["rank_pattern"].values()):
        if type(rank) is not int or rank < 1:
            raise ValueError(f"{what} has a rank of {rank!r}; need a whole number from 1")
    for alpha in (settings["lora_alpha"], *settings["alpha_pattern"].values()):
        if type(alpha) not in number or not math.isfinite(alpha) or alpha == 0:
            raise ValueError(f"{what} has an alpha of {alpha!r}; need a number other than 0")
    if not 0 <= (dropout := settings["lora_dropout"]) < 1:
        raise ValueError(f"{what} has lora_dropout={dropout}; need 0 to below 1")


def plain_lora(config: LoraConfig) -> LoraConfig:
    """Return the settings with which oelkit holds an adapter from a folder.

    Untrained, such an adapter leaves the base as it is.
    PiSSA and OLoRA become LoRA of twice the rank (see `_with_start`).
    """
    config = copy.deepcopy(config)
    if config.init_lora_weights in OFF_BASE:
        grown = 2**0.5 if config.use_rslora else 2  # keeps the factor of B A
        config.r *= 2
        config.lora_alpha *= grown  # pyright: ignore[reportAttributeAccessIssue]
        config.rank_pattern = {k: 2 * r for k, r in (config.rank_pattern or {}).items()}
        config.alpha_pattern = {k: grown * a for k, a in (config.alpha_pattern or {}).items()}
    config.init_lora_weights, config.eva_config, config.lora_dropout = True, None, 0.0
    return config

"""Student and teacher: two LoRA adapters over one set of frozen base weights.

This module switches between the student (which trains), the teacher (the student as of the last
`sync_teacher`) and the bare base model, and saves and loads the student.

Departure from the paper: the paper fine-tunes all weights and keeps a second copy of the model as
the teacher; here both share the base weights.

Callers must finish the teacher's forward pass before the student's, and must not switch adapters
between a forward pass and its backward pass (gradient checkpointing would recompute with the wrong
adapter).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from peft.tuners.lora import LoraLayer

from .. import given
from .lora import add_adapter, base_marks, fitting_weights, lora_state
from .tensors import save_tensors

# from here on merging costs more than the adapter's own products (measured on a CPU)
MERGE_MAX_PARAMS = 20_000_000


@dataclass(eq=False)
class Adapters:
    """A base model with the adapters "student" and "teacher"."""

    model: Any
    """The PeftModel with both adapters; Any, because PEFT does not declare the attributes used."""
    name: str
    """The model as the caller named it: "micro", a hub id or a folder. Stored in the records."""
    _is_merged = False

    def __post_init__(self) -> None:
        self.base_lm: Any = self.model.get_base_model()
        self.lora_layers: list[Any] = [m for m in self.model.modules() if isinstance(m, LoraLayer)]

    @property
    def device(self) -> torch.device:
        """The device of the base weights."""
        return self._embedding.device

    @property
    def _embedding(self) -> torch.Tensor:
        return self.base_lm.get_input_embeddings().weight

    def some_ids(self, n: int) -> torch.Tensor:
        """Return n token ids [1, n], for a trial run."""
        return torch.arange(n, device=self.device)[None] % len(self._embedding)

    def trainable(self) -> list[torch.nn.Parameter]:
        """The student's LoRA weights."""
        return list(self._weights("student").values())

    def _weights(self, adapter: str) -> dict[str, torch.nn.Parameter]:
        """Return one adapter's weights, keyed by their names without the adapter's own."""
        named = ((n.split("."), p) for n, p in self.model.named_parameters())
        return {".".join(x for x in n if x != adapter): p for n, p in named if adapter in n}

    @contextmanager
    def adapter(self, name: str | None, merge: bool = False) -> Iterator[None]:
        """Run with "student", "teacher" or None (bare base), then restore the previous state.

        Args:
            name: adapter name.
            merge: allow shortcuts where gradients are off: an untrained adapter (B = 0) is skipped,
                and in a small dense float32 model the weights W become W + BA for the duration;
                the original W is put back afterwards. Other models are never merged: in 16 bits
                W + BA is rounded, and 4-bit weights cannot be merged.

        Raises:
            ValueError: the name is unknown, or an adapter is merged at the moment.
        """
        if name not in ("student", "teacher", None):
            say = 'choose "student", "teacher" or None for the base model'
            raise ValueError(f"no adapter {name!r}: {say}")
        if self._is_merged:
            raise ValueError(f"adapter {name!r} inside a merged adapter: leave that one first")
        first = self.lora_layers[0]
        before = first.active_adapters[0], first.disable_adapters
        merge = merge and name is not None and not torch.is_grad_enabled()
        untrained = merge and self.is_untrained(str(name))
        merge = merge and not untrained and self._mergeable
        bare = name is None or merge or untrained
        now = (before[0] if bare else str(name), bare)
        weights = [p for x in self.lora_layers for p in x.parameters()] if now != before else []
        grads = [(p, p.requires_grad) for p in weights]
        try:
            with self._merged(str(name)) if merge else nullcontext():
                if now != before:
                    self._switch(*now)
                yield
        finally:
            if now != before:
                self._switch(*before)
            for p, flag in grads:
                p.requires_grad_(flag)

    def _switch(self, name: str, disabled: bool) -> None:
        """Switch only the LoRA layers; PEFT's own switch walks over all modules, several times."""
        for layer in self.lora_layers:
            if layer.active_adapters != [name]:
                layer.set_adapter(name, inference_mode=name == "teacher")
            if layer.disable_adapters != disabled:
                layer.enable_adapters(not disabled)

    @contextmanager
    def _merged(self, name: str) -> Iterator[None]:
        weights, self._is_merged = [], True
        try:
            for layer in self.lora_layers:
                weight = layer.get_base_layer().weight
                weights.append((weight, weight.data))
                b, a = layer.lora_B[name].weight, layer.lora_A[name].weight
                weight.data = torch.addmm(weight.data, b, a, alpha=layer.scaling[name])
            yield
        finally:
            self._is_merged = False
            for weight, data in weights:
                weight.data = data

    @cached_property
    def _mergeable(self) -> bool:
        """Whether the model is small and its LoRA layers are plain, over dense float32 matrices."""
        bases = [layer.get_base_layer() for layer in self.lora_layers]
        dense = all(type(m) is torch.nn.Linear and m.weight.dtype == torch.float32 for m in bases)
        plain = not any(x.lora_variant or any(x.lora_bias.values()) for x in self.lora_layers)
        if not (dense and plain) or sum(m.weight.numel() for m in bases) >= MERGE_MAX_PARAMS:
            return False
        apart = len({m.weight for m in bases}) == len(bases)  # Zamba's layers share weights
        return apart and self._all_called()

    @torch.no_grad()
    def _all_called(self) -> bool:
        """Whether text calls every LoRA layer; some models only read a layer's weight."""
        called: set[Any] = set()
        hooks = [x.register_forward_hook(lambda m, *_: called.add(m)) for x in self.lora_layers]
        self.base_lm.base_model(input_ids=self.some_ids(8))
        for hook in hooks:
            hook.remove()
        return len(called) == len(self.lora_layers)

    @contextmanager
    def _modes(self) -> Iterator[list[Any]]:
        """Yield the modules that are in train mode; restore every module's mode afterwards."""
        before = [(module, module.training) for module in self.model.modules()]
        try:
            yield [module for module, training in before if training]
        finally:
            for module, training in before:
                if module.training != training:
                    module.training = training

    @contextmanager
    def train_mode(self) -> Iterator[None]:
        """Enable LoRA's dropout and checkpointing; restore modes afterwards.

        The base does nothing else in training: no dropout, no noise in routers, and no layer read
        without its adapter (Gemma 3n).
        """
        with self._modes():
            for name, module in self.model.named_modules():
                # isinstance would hide `training` from the type checker
                lora = ".lora_" in name or issubclass(type(module), LoraLayer)
                module.training = lora or hasattr(module, "gradient_checkpointing")
            yield

    @contextmanager
    def eval_mode(self) -> Iterator[None]:
        """Disable dropout; restore modes afterwards."""
        with self._modes() as training:
            if training:
                self.model.eval()
            yield

    def is_untrained(self, name: str = "student") -> bool:
        """Whether the adapter adds nothing yet."""
        return not any(
            layer.lora_variant
            or name not in layer.lora_B
            or any(p.any() for p in layer.lora_B[name].parameters())
            for layer in self.lora_layers
        )

    def reset(self) -> None:
        """Reset student and teacher to the untrained model."""
        add_adapter(self.model, "untrained", self.model.peft_config["student"])
        self._copy("untrained", "student")
        self.model.delete_adapter("untrained")
        self.sync_teacher()

    def sync_teacher(self) -> None:
        """Copy the student's weights to the teacher (at the start of a round)."""
        self._copy("student", "teacher")

    @torch.no_grad()
    def _copy(self, source: str, target: str) -> None:
        weights = self._weights(source)
        for name, p in self._weights(target).items():
            p.copy_(weights[name])

    @contextmanager
    def as_found(self) -> Iterator[None]:
        """Restore adapters, modes and generation config on exit."""
        adapters = [*self.trainable(), *self._weights("teacher").values()]
        kept = [(p, p.detach().clone()) for p in adapters]
        config = copy.deepcopy(self.base_lm.generation_config)
        try:
            with self._modes():
                yield
        finally:
            with torch.no_grad():
                for p, weights in kept:
                    p.copy_(weights)
            self.base_lm.generation_config = config

    def save_adapter(self, folder: str | Path) -> None:
        """Write the student as a PEFT folder, with an oelkit.json that names its base model."""
        folder = given.path("folder", folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.contiguous().cpu() for k, v in lora_state(self.model).items()}
        save_tensors(tensors, folder / "adapter_model.safetensors")
        config = copy.copy(self.model.peft_config["student"])
        config.inference_mode = True
        if isinstance(config.target_modules, set):  # a set's order differs between processes
            config.target_modules = sorted(config.target_modules)
        config.save_pretrained(str(folder))
        base = {"base": self.name, **base_marks(self.model)}
        (folder / "oelkit.json").write_text(json.dumps(base) + "\n")

    def load_adapter(self, folder: str | Path) -> None:
        """Load a PEFT LoRA folder into the student.

        Raises:
            FileNotFoundError: the folder holds no adapter.
            ValueError: the adapter's type, base model or shape does not match.
        """
        state = fitting_weights(given.path("folder", folder), self.model, self.name)
        set_peft_model_state_dict(self.model, state, adapter_name="student")

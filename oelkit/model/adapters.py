"""Student and teacher: two LoRA adapters over one set of frozen base weights.

What it does: switches between student (trains), teacher (the student as it was when `sync_teacher`
was last called) and bare base model; saves and loads the student. What it does not: text, sampling
and losses.

Departure from the paper: it fine-tunes all weights and keeps a second copy of the model as the
teacher; here both share the base weights.

Rules that callers keep: finish the teacher's forward before the student's, and do not switch
adapters between a forward and its backward (gradient checkpointing would recompute with the wrong
adapter).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

# of more weights, merging costs more than the adapter's own products (measured on a CPU)
MERGE_MAX_PARAMS = 20_000_000


@dataclass(eq=False)
class Adapters:
    """A base model with the adapters "student" and "teacher"."""

    model: Any
    """The PeftModel of both adapters (PEFT declares none of the attributes that are used)."""
    name: str
    """What the caller named: "micro", a hub id or a folder; goes into the records."""

    def __post_init__(self) -> None:
        self.base_lm: Any = self.model.get_base_model()
        self.lora_layers: list[Any] = [m for m in self.model.modules() if isinstance(m, LoraLayer)]

    @property
    def device(self) -> torch.device:
        """Where the base weights are."""
        return self._embedding.device

    @property
    def _embedding(self) -> torch.Tensor:
        return self.base_lm.get_input_embeddings().weight

    def trainable(self) -> list[torch.nn.Parameter]:
        """The student's LoRA weights."""
        return [p for n, p in self.model.named_parameters() if ".student." in n]

    @contextmanager
    def adapter(self, name: str | None, merge: bool = False) -> Iterator[None]:
        """Run with "student", "teacher" or None (bare base); afterwards all is as before.

        Args:
            name: of the adapter.
            merge: allows, without gradients, to save the adapter's own products: an untrained one
                (B = 0) is left out, and for a small dense float32 model the weights W are W + BA
                for the time being; the very same W comes back. Others are never merged: in 16 bits
                W + BA is rounded, and 4-bit weights cannot be.

        Raises:
            ValueError: another name.
        """
        if name not in ("student", "teacher", None):
            say = 'say "student", "teacher" or None for the base model'
            raise ValueError(f"no adapter {name!r}: {say}")
        tuner = self.model.base_model
        grads = [(p, p.requires_grad) for p in self.model.parameters()]
        active, disabled = tuner.active_adapters[0], self.lora_layers[0].disable_adapters
        merge = merge and name is not None and not torch.is_grad_enabled()
        untrained = merge and self.is_untrained(str(name))
        merge = merge and not untrained and self._mergeable()
        try:
            with self._merged(str(name)) if merge else nullcontext():
                if name is None or merge or untrained:
                    tuner.disable_adapter_layers()
                else:
                    tuner.enable_adapter_layers()
                    self.model.set_adapter(name, inference_mode=name == "teacher")
                yield
        finally:
            tuner.enable_adapter_layers()
            self.model.set_adapter(active)
            if disabled:
                tuner.disable_adapter_layers()
            for p, flag in grads:
                p.requires_grad_(flag)

    @contextmanager
    def _merged(self, name: str) -> Iterator[None]:
        weights = []
        try:
            for layer in self.lora_layers:
                weight = layer.get_base_layer().weight
                weights.append((weight, weight.data))
                b, a = layer.lora_B[name].weight, layer.lora_A[name].weight
                weight.data = torch.addmm(weight.data, b, a, alpha=layer.scaling[name])
            yield
        finally:
            for weight, data in weights:
                weight.data = data

    def _mergeable(self) -> bool:
        """A small model whose LoRA layers are plain ones over dense float32 matrices."""
        bases = [layer.get_base_layer() for layer in self.lora_layers]
        dense = all(type(m) is torch.nn.Linear and m.weight.dtype == torch.float32 for m in bases)
        plain = not any(layer.lora_variant for layer in self.lora_layers)  # e.g. DoRA
        return dense and plain and sum(m.weight.numel() for m in bases) < MERGE_MAX_PARAMS

    def is_untrained(self, name: str = "student") -> bool:
        """Whether the adapter adds nothing yet."""
        return not any(
            layer.lora_variant
            or name not in layer.lora_B
            or any(p.any() for p in layer.lora_B[name].parameters())
            for layer in self.lora_layers
        )

    def reset(self) -> None:
        """Make the student, and the teacher with it, the untrained model again."""
        init = self.model.peft_config["student"].init_lora_weights
        with torch.random.fork_rng():  # LoRA's A is random: the same at each call
            torch.manual_seed(0)
            for layer in self.lora_layers:
                layer.reset_lora_parameters("student", init)
        self.sync_teacher()

    @torch.no_grad()
    def sync_teacher(self) -> None:
        """Make the teacher the student of this moment (at the start of a round)."""
        parameters = dict(self.model.named_parameters())
        for name, p in parameters.items():
            if ".teacher." in name:
                p.copy_(parameters[name.replace(".teacher.", ".student.")])

    @contextmanager
    def as_found(self) -> Iterator[None]:
        """Adapters, train mode and generation config are afterwards as they are now."""
        adapters = (
            p for n, p in self.model.named_parameters() if ".student." in n or ".teacher." in n
        )
        kept = [(p, p.detach().clone()) for p in adapters]
        training, config = self.model.training, copy.deepcopy(self.base_lm.generation_config)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, weights in kept:
                    p.copy_(weights)
            self.base_lm.generation_config = config
            if self.model.training != training:
                self.model.train(training)

    # -- files

    def save_adapter(self, folder: str | Path) -> None:
        """Write the student as a PEFT folder, with an oelkit.json that tells its base model."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.contiguous().cpu() for k, v in self._state().items()}
        save_file(tensors, folder / "adapter_model.safetensors")
        config = self.model.peft_config["student"]
        was = config.inference_mode, config.target_modules
        config.inference_mode = True
        if isinstance(config.target_modules, set):  # whose order differs from process to process
            config.target_modules = sorted(config.target_modules)
        config.save_pretrained(str(folder))
        config.inference_mode, config.target_modules = was
        base = {"base": self.name, "base_embedding": self._fingerprint()}
        (folder / "oelkit.json").write_text(json.dumps(base) + "\n")

    def load_adapter(self, folder: str | Path) -> None:
        """Load a PEFT LoRA folder into the student.

        Raises:
            FileNotFoundError: no adapter there.
            ValueError: an adapter of another kind, base model or shape.
        """
        folder, ours = Path(folder), self.model.peft_config["student"]
        theirs = adapter_config(folder)
        base = f"({theirs.base_model_name_or_path})"
        about = folder / "oelkit.json"
        mark = json.loads(about.read_text()).get("base_embedding") if about.is_file() else None
        if mark and not _alike(mark, self._fingerprint()):
            raise ValueError(
                f"{folder}: this adapter was trained on another base model {base}, not on "
                f"{self.name}; load it with that one"
            )
        for key in ("r", "lora_alpha", "use_rslora", "use_dora"):
            if getattr(theirs, key) != getattr(ours, key):
                raise ValueError(
                    f"{folder}: its LoRA has {key}={getattr(theirs, key)}, the policy "
                    f"{getattr(ours, key)}; give the folder to load_policy(adapter=...), "
                    "which takes the adapter's own settings"
                )
        state = load_file(folder / "adapter_model.safetensors")
        shapes, want = ({k: v.shape for k, v in x.items()} for x in (state, self._state()))
        if shapes != want:
            wrong = sorted(k for k in {**shapes, **want} if shapes.get(k) != want.get(k))
            raise ValueError(
                f"{folder}: an adapter of another base model than {self.name} {base}: "
                f"{len(wrong)} tensors do not fit, first {wrong[0]}"
            )
        set_peft_model_state_dict(self.model, state, adapter_name="student")

    def _state(self) -> dict[str, torch.Tensor]:
        return get_peft_model_state_dict(
            self.model, adapter_name="student", save_embedding_layers=False
        )

    def _fingerprint(self) -> list[float]:
        """A few embedding values: they tell one base from another, whatever its path and dtype."""
        weight = self._embedding
        return weight[:: max(1, len(weight) // 16), 0].float().tolist()


def _alike(a: list[float], b: list[float]) -> bool:
    """The same base in bfloat16 is within 2 %, another one is not."""
    return len(a) == len(b) and all(
        abs(x - y) <= 0.02 * abs(y) + 1e-4 for x, y in zip(a, b, strict=True)
    )


def adapter_config(folder: Path) -> LoraConfig:
    """The settings of a LoRA folder.

    Raises:
        FileNotFoundError: no adapter there.
        ValueError: another kind of adapter.
    """
    files = "adapter_config.json", "adapter_model.safetensors"
    if not all((folder / name).is_file() for name in files):
        raise FileNotFoundError(f"{folder}: no adapter there ({' and '.join(files)})")
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        kind = f"a {config.peft_type} adapter"
        raise ValueError(f"{folder}: {kind}; oelkit trains LoRA adapters only")
    return config

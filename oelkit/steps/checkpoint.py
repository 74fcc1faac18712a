"""The checkpoint of a training, and how Ctrl+C stops it.

A checkpoint is one safetensors file with the tensors of student and optimiser; its header holds
everything else as JSON, and a checksum. A stopped training resumes from it with the same bytes.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from signal import SIGINT, default_int_handler, getsignal, signal
from threading import current_thread, main_thread
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ..model import ranks
from ..model.lora import base_marks
from ..model.lora_settings import SHAPE
from ..model.policy import Policy
from ..model.tensors import checksum, load_tensors, save_tensors
from ..records import sync_folder, to_dict
from .training import Training

_last: WeakKeyDictionary[Any, tuple[int, Any]] = WeakKeyDictionary()


def remember(training: Training) -> None:
    """Remember what the student has just learned from; see `warn_if_again`."""
    _last[training.policy] = _changes(training), training.states


def warn_if_again(training: Training) -> None:
    """Warn if the student was trained on these states just before, as when a cell is run twice."""
    if _last.get(training.policy) == (_changes(training), training.states):
        said = "the student was already trained on these states: this training continues from "
        said += "there, and so does its teacher; to begin anew, call policy.reset() first"
        warnings.warn(said, stacklevel=3)


def _changes(training: Training) -> int:
    """How often the student's weights were written to: also by a reset or a load."""
    return sum(p._version for p in training.policy.trainable())


def identity(policy: Policy, about: Sequence[Any]) -> str:
    """Return a checksum of a policy and of what is done with it; only the same work is resumed."""
    weights = {str(i): p for i, p in enumerate(policy.trainable())}
    config = policy.model.peft_config["student"]
    lora = {key: str(getattr(config, key)) for key in (*SHAPE, "lora_dropout")}
    said = [policy.name, base_marks(policy.model), lora, policy.enable_thinking, policy.date]
    return checksum(weights, {"about": json.dumps([*said, *about], sort_keys=True)})


class Checkpoint:
    """The checkpoint of a training, valid only for its states, texts, settings and weights."""

    def __init__(self, training: Training, path: Path):
        t = self.training = training
        self.path, self.student = path, t.policy.trainable()
        own = f".{ranks.rank()}" if ranks.rank() else ""
        t.failed = path.with_name(f"{path.stem.lstrip('.')}{own}.failed.jsonl")
        about = [asdict(t.config), asdict(t.prompt_set), t.seed, list(t.experiences)]
        about += [[to_dict(state) for state in [*t.states, *t.rehearsal]], torch.__version__]
        about += [type(t.optimizer).__name__]  # another one cannot use its state
        self.identity = identity(t.policy, about)

    def save(self) -> None:
        """Write the file atomically; it is on disk when this returns."""
        t, scalars = self.training, {}
        tensors = {f"student.{i}": p.detach().cpu() for i, p in enumerate(self.student)}
        for i, values in t.optimizer.state_dict()["state"].items():
            for name, value in _flat(values):
                key = f"optimizer.{i}.{name}"
                if isinstance(value, torch.Tensor):
                    tensors[key] = value.detach().to("cpu", copy=True).contiguous()
                else:
                    scalars[key] = value
        state = {"history": t.history, "pending": t.pending, "random": t.rng.getstate()}
        state["scaler"] = t.scaler.state_dict()
        header = {"identity": self.identity, "state": json.dumps({**state, "scalars": scalars})}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        save_tensors(tensors, partial, header)
        sync_folder(partial)  # works for files too
        os.replace(partial, self.path)
        sync_folder(self.path.parent)

    def restore(self) -> None:
        """Resume from the file; a missing one, or one of another training, is ignored.

        Raises:
            ValueError: the file is damaged, or not a checkpoint; it is left as it is.
        """
        t = self.training
        if not self.path.exists():
            return
        if not self.path.is_file():
            raise ValueError(f"{self.path}: a folder; a checkpoint is a file")
        try:
            tensors, header = load_tensors(self.path, ours=True)
        except ValueError as error:
            todo = "delete it, and the training starts from the beginning, or name another file"
            raise ValueError(f"{error}: {todo}") from error
        if "identity" not in header:  # such as an adapter's weights, which `save` would replace
            raise ValueError(f"{self.path}: not the checkpoint of a training; name another file")
        if header["identity"] != self.identity:
            return
        state = json.loads(header["state"])
        with torch.no_grad():
            for i, p in enumerate(self.student):
                p.copy_(tensors.pop(f"student.{i}"))
        optimizer: dict[int, dict] = {}
        for key, value in (tensors | state["scalars"]).items():
            _, i, name = key.split(".", 2)
            *within, last = name.split("/")
            values = optimizer.setdefault(int(i), {})
            for inner in within:
                values = values.setdefault(inner, {})
            values[last] = value
        t.optimizer.load_state_dict({**t.optimizer.state_dict(), "state": optimizer})
        t.scaler.load_state_dict(state["scaler"])
        version, numbers, gauss = state["random"]
        t.rng.setstate((version, tuple(numbers), gauss))
        t.pending[:], t.history[:] = state["pending"], state["history"]


@contextmanager
def interrupt_deferred() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl+C was pressed; a second Ctrl+C interrupts at once.

    Works only in the main thread and if nothing else handles Ctrl+C; otherwise nothing changes.
    """
    pressed = False

    def handler(number: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        print("\nstopping after this step (press Ctrl+C again to stop at once)", flush=True)

    if current_thread() is not main_thread() or getsignal(SIGINT) is not default_int_handler:
        yield lambda: False
        return
    signal(SIGINT, handler)
    try:
        yield lambda: pressed
    finally:
        signal(SIGINT, default_int_handler)


def _flat(values: dict) -> Iterator[tuple[str, Any]]:
    """Yield names and values of an optimiser's state; that of 8-bit AdamW contains another dict."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{inner}", v) for inner, v in _flat(value))
        else:
            yield name, value

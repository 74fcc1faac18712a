"""Tensors on disk: oelkit's safetensors files have a checksum, so that no flipped bit changes a
weight unnoticed. Files of other programs have none, and are taken as they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

_SUM = "sha256"  # its key in a file's metadata


def checksum(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors, and over metadata."""
    named = sorted(tensors.items())
    about = [[name, str(x.dtype), list(x.shape)] for name, x in named]
    digest = hashlib.sha256(json.dumps([about, sorted(metadata.items())]).encode())
    for _, x in named:
        flat = x.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_tensors(
    tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file with its checksum; raise OSError if that fails, as for any file."""
    metadata = {"format": "pt", **(metadata or {})}
    try:
        save_file(tensors, path, metadata | {_SUM: checksum(tensors, metadata)})
    except SafetensorError as error:
        raise OSError(f"{path}: not written ({error})") from error
    with path.open("r+b") as file:  # safetensors writes metadata in a random order
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(size)
        if len(text) == size:  # else it contains text that JSON can write in two ways
            file.seek(8)
            file.write(text)


def load_tensors(path: Path, ours: bool = False) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Load tensors and metadata of a safetensors file.

    Args:
        path: the file.
        ours: whether only oelkit writes such a file, so that it must have a checksum.

    Raises:
        ValueError: the file is damaged.
    """
    with _damage(path), safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    said = metadata.pop(_SUM, None)
    if (ours or said) and said != checksum(tensors, metadata):
        raise ValueError(f"{path} is damaged (its checksum does not match)")
    return tensors, metadata


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Read shapes by name without loading tensors; raises ValueError as `load_tensors` does."""
    with _damage(path), safe_open(path, "pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error})") from error

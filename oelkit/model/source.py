"""Find a model's files, and explain why they cannot be loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import errors as hub

from ..given import did_you_mean
from ..project import shipped
from .known import KNOWN


def model_folder(name_or_path: str | Path) -> str:
    """Return the folder of "micro" or of a path; a hub id is returned unchanged."""
    if name_or_path == "micro":
        if (folder := shipped("data/micro")).is_dir():
            return str(folder)
        raise FileNotFoundError(f"micro: it is not in {folder}; install oelkit again")
    path, text = Path(name_or_path).expanduser(), str(name_or_path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{text}: not a model folder, there is no config.json in it")
        return str(path)
    if isinstance(name_or_path, Path) or text.startswith((".", "~", os.sep)) or text.count("/") > 1:
        raise FileNotFoundError(f"{text}: no such model folder")
    if "/" not in text and (meant := did_you_mean(text, ["micro"])):  # micro, misspelt
        raise FileNotFoundError(f"{text}{meant}: no such model folder")
    return text


def notes(folder: Path) -> dict[str, Any]:
    """Read the oelkit.json in a folder of a model or an adapter; {} if there is none.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / "oelkit.json"
    try:
        said = json.loads(path.read_text("utf-8-sig")) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    if not isinstance(said, dict):
        raise ValueError(f"{path}: damaged (a {type(said).__name__}, not an object)")
    return said


@contextmanager
def clear_errors(name: str) -> Iterator[None]:
    """Turn Transformers' many errors about a model that cannot be loaded into one sentence."""
    try:
        yield
    except Exception as error:  # a config, a weight file or a missing package can raise anything
        import torch  # imported here, so that loading only a tokenizer does not wait for it

        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        chain: list[BaseException] = []
        e: BaseException | None = error
        while e is not None and e not in chain:
            chain.append(e)
            e = e.__cause__ or e.__context__
        kinds = {type(e) for e in chain}
        meant = did_you_mean(name, ("micro", *KNOWN))
        if hub.GatedRepoError in kinds:
            accept = "accept its terms on the hub and log in to it"
            raise FileNotFoundError(f"{name}: a gated model; {accept}") from error
        if hub.RepositoryNotFoundError in kinds:
            neither = "neither a folder here nor a (public) model on the hub"
            raise FileNotFoundError(f"{name}{meant}: {neither}") from error
        if kinds & {hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled}:
            raise ConnectionError(
                f"{name}{meant}: no such folder here, and the hub cannot be reached to look for "
                "that id; check the name, the network, or pass a local folder"
            ) from error
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(f"{name}: not a usable causal language model ({reason})") from error


def load_tokenizer(name: str, *, download: bool = False) -> Any:
    """Load the tokenizer of a model, of which only `download` fetches it from the hub.

    Raises:
        OSError: the model is not on this machine.
        ValueError: not a model.
    """
    from transformers import PreTrainedTokenizerFast

    with clear_errors(name):
        folder = model_folder(name)
        if (Path(folder) / "tokenizer.json").is_file():  # imports no torch
            return PreTrainedTokenizerFast.from_pretrained(folder)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            folder, local_files_only=not download, trust_remote_code=False
        )

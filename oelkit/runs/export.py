"""Exports what a run has learned: as a PEFT folder, a merged 16-bit model or a GGUF file.

Each export of a run has a model card. `check_exports` plays it again with plain libraries. Of the
run folder, only `export/` is written to. An adapter that belongs to no run is exported alike, but
without card and check, because no world is known."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .. import given
from ..records import write_text
from ..stats import outcomes, paired_bootstrap
from . import card
from .files import locked, read_json, read_object, remove, write_json
from .saved import SavedRun
from .settings import as_argument, is_adapter
from .stages import Stages, stages_of

FORMS = ("peft", "merged", "gguf")
CONVERTER = "convert_hf_to_gguf.py"  # llama.cpp's


def export(
    run: SavedRun | str | Path,
    to: str = "peft",
    out: str | Path | None = None,
    *,
    private: bool = False,
) -> Path:
    """Export the model of the run's last round, taking rollbacks into account.

    Args:
        run: A run, its folder, or the folder of an adapter such as `save_adapter` writes.
        to: "peft" (an adapter folder), "merged" (a whole 16-bit model) or "gguf" (a folder with
            one 16-bit file from llama.cpp's converter).
        out: Output folder. None: export/FORM in that folder, which is replaced.
        private: Leave the experience text out of the folder and the card, but keep its hash.

    Returns:
        The output folder.

    Raises:
        ValueError: `to` is unknown, `out` exists, the round, or one that it builds on, is not
            done or is out of date, or another process writes the run.
        FileNotFoundError: `to` is "gguf" and the converter is missing.
    """
    if to not in FORMS:
        raise ValueError(f"cannot export to {to!r}: choose one of {', '.join(FORMS)}")
    source = given.path("run", getattr(run, "folder", run))
    stages = None if is_adapter(source) else stages_of(source)
    k, folder = exported_round(stages) if stages else 0, Path(out or source / "export" / to)
    adapter = source / f"round_{k}/adapter" if stages else source
    if out is not None and folder.exists():
        raise ValueError(f"{folder} already exists: choose another folder")
    convert = _converter() if to == "gguf" else []
    partial = folder.with_name(f".{folder.name}.partial")
    with ExitStack() as stack:
        if stages and out is None:  # it writes into the run
            stack.enter_context(locked(source))
        stack.callback(remove, partial)
        remove(partial)
        partial.mkdir(parents=True)
        _write(adapter, stages, to, partial, convert, source.resolve().name)
        text = adapter / "experience.md"
        if not private and text.is_file():
            shutil.copy(text, partial)
        if stages:
            write_json(partial / card.ABOUT, card.about(stages, k, to))
            write_text(partial / "README.md", card.model_card(partial))
        remove(folder)
        os.replace(partial, folder)
    return folder


def exported_round(stages: Stages) -> int:
    """Return the round whose model the run ends with, taking rollbacks into account.

    Raises:
        ValueError: There is none, or it is out of date.
    """
    k = stages.start(stages.settings.rounds + 1)
    if k == 0:
        raise ValueError(f"{stages.folder}: all rounds are rolled back; nothing to export")
    last, needed = stages.settings.rounds, [(k, "distill"), (k, "evaluate")]
    if stages.settings.gate == "rollback" and not stages.decided(last + 1):
        needed.append((last, "evaluate"))  # what the gate found chose round k
    for node in needed:
        status = stages.status(*node)
        if status.state != "done":
            run = as_argument(stages.folder)
            raise ValueError(
                f"{stages.folder}: {status.name} is {status.state} ({status.why}); finish the run "
                f"first: oelkit loop --run {run} --resume --redo"
            )
    return k


def _write(
    adapter: Path, stages: Stages | None, to: str, folder: Path, convert: list[str], name: str
) -> None:
    from ..model.plain import add_tokenizer, merge_adapter
    from ..model.source import model_folder, notes

    config: Any = read_object(adapter / "adapter_config.json") or {}
    own = notes(adapter).get("base") or config.get("base_model_name_or_path")
    if not stages and not isinstance(own, str):
        raise ValueError(
            f"{adapter}: it does not say which model it belongs to; write its folder or hub id as "
            "base_model_name_or_path into the adapter_config.json"
        )
    model = stages.settings.model if stages else own
    if to == "peft":
        shutil.copy(adapter / "adapter_model.safetensors", folder)
        if (adapter / "oelkit.json").exists():  # PEFT's own folders lack it
            shutil.copy(adapter / "oelkit.json", folder)
        # PEFT loads the base model by this name and does not know "micro"
        config["base_model_name_or_path"] = add_tokenizer(model, folder)
        write_json(folder / "adapter_config.json", config)
        return
    merged = folder / "merged" if to == "gguf" else folder
    merge_adapter(model, adapter, merged)
    about = {"prompts": stages.prompts["name"]} if stages else notes(Path(model_folder(model)))
    write_json(folder / "oelkit.json", about)  # for load_policy
    if to == "gguf":
        file = folder / f"{name}.gguf"
        command = [*convert, str(merged), "--outfile", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not file.is_file():
            last = "; ".join(done.stderr.strip().splitlines()[-2:])
            raise ValueError(f"{convert[-1]} did not convert {model}: {last}")
        remove(merged)


def _converter() -> list[str]:
    """The command of llama.cpp's converter, found in the clone LLAMA_CPP or on the PATH."""
    clone = os.environ.get("LLAMA_CPP")
    path = shutil.which(CONVERTER)
    if clone and (Path(clone) / CONVERTER).is_file():
        path = str(Path(clone) / CONVERTER)
    if not path:
        raise FileNotFoundError(
            f"to=gguf needs llama.cpp's {CONVERTER}: set LLAMA_CPP to a clone of llama.cpp, put "
            "the script on the PATH, or export the merged model and convert it yourself"
        )
    return [sys.executable, path]


def push_to_hub(folder: str | Path, repo: str, *, private: bool = True) -> str:
    """Upload an exported folder to the Hugging Face hub and return its URL.

    Args:
        folder: A folder written by `export`.
        repo: "user/name"; created if missing.
        private: Whether a new repository is private.

    Raises:
        ConnectionError: The hub cannot be reached, or refuses.
        ValueError: `export` did not write this folder.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if not (given.path("folder", folder) / card.ABOUT).is_file():
        raise ValueError(f"{folder}: not a folder written by `oelkit export` of a run (no card)")
    try:
        address = HfApi().create_repo(repo, private=private, exist_ok=True)
        HfApi().upload_folder(repo_id=repo, folder_path=folder)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ConnectionError(f"{repo}: not pushed to the hub ({reason})") from error
    return str(address)


def check_exports(
    run: SavedRun | str | Path, folders: str | Path | Sequence[str | Path]
) -> list[dict[str, Any]]:
    """Let each exported folder play the held-out maps and compare it with the run.

    Each is loaded with plain Transformers and PEFT in a process of its own. The result is added to
    its model card.

    Args:
        run: A run, or its folder.
        folders: Folders written by `export`, or one.

    Returns:
        A row per form, the run's own first: form, pass_rate with its interval low and high, n,
        reply_tokens, truncated and ood. All rows except the run's also have the difference from
        the run with its 95% interval, paired by map and sample.

    Raises:
        RuntimeError: An export could not be loaded or played.
    """
    stages = stages_of(given.path("run", getattr(run, "folder", run)))
    measured = read_json(stages.folder / f"round_{exported_round(stages)}/metrics.json")
    rows = [{"form": "run", **measured["pass_rate"]["consolidated"]}]
    rows[0]["ood"] = measured["ood"]["consolidated"]
    for folder in map(Path, [folders] if isinstance(folders, str | Path) else folders):
        command = [sys.executable, "-m", "oelkit.runs.replay", str(stages.folder), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:]
            raise RuntimeError(f"{folder}: could not be loaded and played ({''.join(last)})")
        row = json.loads(done.stdout.splitlines()[-1])
        passes = [
            outcomes(r["passes"], len(r["passes"]) // r["samples_per_map"]) for r in (rows[0], row)
        ]
        difference, low, high = paired_bootstrap(*passes)
        row |= {"difference": difference, "difference_low": low, "difference_high": high}
        rows.append({"form": read_json(folder / card.ABOUT)["form"], **row})
        shown = [{k: v for k, v in r.items() if k != "passes"} for r in (rows[0], rows[-1])]
        write_json(folder / card.CHECKED, shown)
        write_text(folder / "README.md", card.model_card(folder))
    return rows

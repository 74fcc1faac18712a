"""What a run has learned, in forms that other programs read: a PEFT folder, a merged model in 16
bits, a GGUF file; each with a model card, and played again by plain libraries (`check_exports`).

Nothing of the run is written to but what lies in its folder `export/`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import given
from ..records import write_text
from ..stats import outcomes, paired_bootstrap
from . import card
from .files import read_json, remove, write_json
from .stages import Stages, stages_of

if TYPE_CHECKING:
    from .run import Run

FORMS = ("peft", "merged", "gguf")
CONVERTER = "convert_hf_to_gguf.py"  # llama.cpp's


def export(
    run: Run | str | Path, to: str = "peft", out: str | Path | None = None, *, private: bool = False
) -> Path:
    """Write the model that a run has come to: of its last round, rollbacks heeded.

    Args:
        run: a run, or its folder.
        to: "peft" (an adapter folder), "merged" (a whole model in 16 bits) or "gguf" (one file in
            16 bits in a folder, by llama.cpp's converter).
        out: the folder that is written (None: export/FORM in the run folder, written anew).
        private: keep the experience text out of folder and card; its hash stays.

    Returns:
        The folder.

    Raises:
        ValueError: no such form, `out` is there, or the round is not trained or is out of date.
        FileNotFoundError: gguf, and there is no converter.
    """
    if to not in FORMS:
        raise ValueError(f"cannot export to {to!r}: say one of {', '.join(FORMS)}")
    stages = stages_of(given.path("run", getattr(run, "folder", run)))
    k, folder = exported_round(stages), Path(out or stages.folder / "export" / to)
    if out is not None and folder.exists():
        raise ValueError(f"{folder} is there already: choose another folder or delete it")
    convert = _converter() if to == "gguf" else []
    partial = folder.with_name(f".{folder.name}.partial")
    remove(partial)
    partial.mkdir(parents=True)
    try:
        _write(stages, k, to, partial, convert)
        text = stages.folder / f"round_{k}/adapter/experience.md"
        if not private and text.is_file():
            shutil.copy(text, partial)
        write_json(partial / card.ABOUT, card.about(stages, k, to))
        write_text(partial / "README.md", card.model_card(partial))
        remove(folder)
        os.replace(partial, folder)
    finally:
        remove(partial)
    return folder


def exported_round(stages: Stages) -> int:
    """The round whose model a run has come to, rollbacks heeded.

    Raises:
        ValueError: there is none, or it is out of date.
    """
    k = stages.start(stages.settings["rounds"] + 1)
    if k == 0:
        raise ValueError(f"{stages.folder}: all rounds are rolled back; nothing is to be exported")
    for stage in ("distill", "evaluate"):
        status = stages.status(k, stage)
        if status.state != "done":
            name = stages.folder.name
            raise ValueError(
                f"{stages.folder}: {status.name} is {status.state} ({status.why}); finish the run "
                f"first: oelkit loop --run {name} --resume --redo"
            )
    return k


def _write(stages: Stages, k: int, to: str, folder: Path, convert: list[str]) -> None:
    from ..model.plain import add_tokenizer, merge_adapter

    adapter, model = stages.folder / f"round_{k}/adapter", stages.settings["model"]
    if to == "peft":
        for name in ("adapter_model.safetensors", "adapter_config.json", "oelkit.json"):
            shutil.copy(adapter / name, folder)
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        # PEFT loads the base by this name; "micro" says nothing to it
        config["base_model_name_or_path"] = add_tokenizer(model, folder)
        write_json(folder / "adapter_config.json", config)
        return
    merged = folder / "merged" if to == "gguf" else folder
    merge_adapter(model, adapter, merged)
    write_json(folder / "oelkit.json", {"prompts": stages.prompts["name"]})  # for load_policy
    if to == "gguf":
        file = folder / f"{stages.folder.name}.gguf"
        command = [*convert, str(merged), "--outfile", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not file.is_file():
            last = "; ".join(done.stderr.strip().splitlines()[-2:])
            raise ValueError(f"{convert[-1]} did not convert {model}: {last}")
        remove(merged)


def _converter() -> list[str]:
    """The command of llama.cpp's converter: named by LLAMA_CPP (its clone), or on the PATH."""
    clone = os.environ.get("LLAMA_CPP")
    path = shutil.which(CONVERTER)
    if clone and (Path(clone) / CONVERTER).is_file():
        path = str(Path(clone) / CONVERTER)
    if not path:
        raise FileNotFoundError(
            f"to=gguf needs llama.cpp's {CONVERTER}: set LLAMA_CPP to a clone of llama.cpp, or put "
            "the script on the PATH; the merged model is what it converts"
        )
    return [sys.executable, path]


def push_to_hub(folder: str | Path, repo: str, *, private: bool = True) -> str:
    """Upload an exported folder to the Hugging Face hub; returns its address.

    Args:
        folder: as `export` wrote it.
        repo: "user/name", made where there is none.
        private: of a new repository.

    Raises:
        ConnectionError: the hub is not reached, or refuses.
        ValueError: `export` did not write this folder.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if not (given.path("folder", folder) / card.ABOUT).is_file():
        raise ValueError(f"{folder}: not a folder that `oelkit export` wrote")
    try:
        address = HfApi().create_repo(repo, private=private, exist_ok=True)
        HfApi().upload_folder(repo_id=repo, folder_path=folder)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ConnectionError(f"{repo}: not pushed to the hub ({reason})") from error
    return str(address)


def check_exports(run: Run | str | Path, folders: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Let each exported folder play the held-out maps in a process of its own, loaded by plain
    Transformers and PEFT, and compare it with the run; the result goes into its model card.

    Args:
        run: a run, or its folder.
        folders: as `export` wrote them.

    Returns:
        A row per form, the run's own first: form, pass_rate with its interval low and high, n,
        reply_tokens, truncated, ood, and but for the run difference with its 95% interval, paired
        by map and sample.

    Raises:
        RuntimeError: an export could not be loaded or played.
    """
    stages = stages_of(given.path("run", getattr(run, "folder", run)))
    measured = read_json(stages.folder / f"round_{exported_round(stages)}/metrics.json")
    rows = [{"form": "run", **measured["pass_rate"]["consolidated"]}]
    rows[0]["ood"] = measured["ood"]["consolidated"]
    for folder in map(Path, folders):
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

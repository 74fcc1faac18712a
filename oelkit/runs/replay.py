"""Lets an exported model play its run's held-out maps: `python -m oelkit.runs.replay RUN FOLDER`.

Runs in a process of its own, where only Transformers and PEFT load the model. Prints a row of
metrics as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ..model.plain import PlainModel
from .measures import measure
from .run import Run
from .stages import read_run


def replay(run: Path, folder: Path) -> dict:
    """Measure the exported model on the maps that the run was measured on."""
    record = read_run(run)
    settings, prompts = record["settings"], record["prompts"]["name"]
    path = next(folder.glob("*.gguf"), folder)
    model = PlainModel(path, settings["model"], prompts, settings.get("enable_thinking"))
    opened = Run.open(run, model, progress=False)  # pyright: ignore[reportArgumentType]
    return measure(opened) | {"ood": opened.probe()}


if __name__ == "__main__":
    print(json.dumps(replay(*map(Path, sys.argv[1:3]))))

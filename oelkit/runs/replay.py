"""An exported model plays the held-out maps of its run: `python -m oelkit.runs.replay RUN FOLDER`.

A process of its own, in which the model is loaded by Transformers and PEFT alone. It prints the
row of figures as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ..model.plain import PlainModel
from .measures import measure
from .run import Run
from .stages import read_run


def replay(run: Path, folder: Path) -> dict:
    """The figures of the exported model on the maps on which the run was measured."""
    record = read_run(run)
    settings, prompts = record["settings"], record["prompts"]["name"]
    path = next(folder.glob("*.gguf"), folder)
    model = PlainModel(path, settings["model"], prompts, settings.get("enable_thinking"))
    opened = Run.open(run, model, progress=False)  # pyright: ignore[reportArgumentType]
    return measure(opened) | {"ood": opened.probe()}


if __name__ == "__main__":
    print(json.dumps(replay(*map(Path, sys.argv[1:3]))))

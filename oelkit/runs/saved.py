"""A run folder, read without loading a model: settings, metrics and the records of each round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..curation import Curation
from ..records import AnyPath, ExperienceItem, Trajectory, read_jsonl
from ..tables import Brief, Shown
from .files import read_json
from .settings import Settings
from .stages import read_run, stale
from .table import first_few


class SavedRun(Shown):
    """A saved run in a folder; ValueError if there is none."""

    plotted = "model", "passed, %"

    def __init__(self, folder: AnyPath):
        self.folder = Path(folder)
        self.settings = Settings(**read_run(self.folder)["settings"])

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json; {} if nothing was measured yet."""
        return read_json(self.folder / "metrics.json") or {}

    def trajectories(self, k: int = 1) -> list[Trajectory]:
        """Return the games that round k extracted from."""
        return read_jsonl(self.folder / f"round_{k}/trajectories.jsonl", Trajectory)

    def items(self, k: int = 1) -> list[ExperienceItem]:
        """Return the items of round k as extracted."""
        return read_jsonl(self.folder / f"round_{k}/items.jsonl", ExperienceItem)

    def curation(self, k: int = 1) -> Curation:
        """Return the curation of round k; further decisions are appended to its log."""
        return Curation.open(*(self.folder / f"round_{k}/{n}.jsonl" for n in ("items", "curation")))

    def brief(self) -> Brief:
        """Summarize the pass rate after each round, with 95% intervals."""
        rows = [
            (name, round(100 * r["pass_rate"], 1), f"{r['low']:.0%} to {r['high']:.0%}", r["n"])
            for name, r in by_round(self.metrics.get("rounds"))
        ]
        steps = " -> ".join(f"{row[1]:g}%" for row in rows)
        line = f"Run {self.folder.name}: {self.settings.model} in {self.settings.env}, "
        line += f"{steps} passed" if rows else "nothing measured yet"
        old = [stage.name for stage in stale(self.folder)]
        line += f"; out of date: {first_few(old)}" if old else ""
        return line, ("model", "passed, %", "interval", "games"), rows


def by_round(rounds: list[dict[str, Any]] | None) -> list[tuple[str, dict[str, Any]]]:
    """Return name and pass rate of the base and of the model after each round of a metrics.json."""
    if not rounds:
        return []
    after = [(f"round {r['round']}", r["pass_rate"]["consolidated"]) for r in rounds]
    return [("base", rounds[0]["pass_rate"]["base"]), *after]

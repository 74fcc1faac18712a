"""What the stages of a run work with: folder, settings, policy, and the maps of evaluation.

What it does not: decide which stage is done when, see `driver`, or do one, see `work` and
`measures`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import envs
from ..model.policy import Policy
from ..prompts import PromptSet
from ..steps.evaluation import probe
from .settings import Settings
from .stages import Stages

HELD_OUT = 900_000_000  # first map seed of evaluation; games to learn from have lower ones


class RunContext:
    """A run folder, its settings and its policy."""

    folder: Path
    settings: Settings
    policy: Policy
    prompts: PromptSet
    progress: bool
    on_step: Callable[[dict[str, Any]], None] | None
    ours: Callable[[], bool] = staticmethod(lambda: True)
    """Whether the folder is still the one that is written."""
    steps_left: tuple[Any, set[str]] = None, set()
    """metrics.jsonl as the last training left it: its stamp, and the arms whose steps it holds."""

    @property
    def stages(self) -> Stages:
        """The stages as they stand now."""
        return Stages(self.folder, asdict(self.settings), asdict(self.prompts))

    @property
    def eval_env(self) -> str:
        """The world of evaluation: the held-out layouts where there are such, else the same."""
        return envs.held_out(self.settings.env)

    @property
    def eval_seeds(self) -> range:
        """Map seeds of evaluation, the same for every arm, round and run."""
        return range(HELD_OUT, HELD_OUT + self.settings.eval_maps)

    def probe(self, adapter: str | None = "student") -> dict[str, float] | None:
        """What the model still answers right that has nothing to do with the world; None without a
        probe.jsonl.
        """
        path = Path(self.policy.source) / "probe.jsonl"
        return probe(self.policy, path, adapter=adapter) if path.is_file() else None

    def check_ours(self) -> None:
        """Write no more into a folder that was deleted, and is perhaps another run's by now.

        Raises:
            RuntimeError: so it is.
        """
        if not self.ours():
            raise RuntimeError(
                f"{self.folder}, or its run.lock, was deleted or replaced while this process wrote "
                "it; nothing more is written: start the run anew"
            )

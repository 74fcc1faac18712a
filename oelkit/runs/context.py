"""What the stages of a run share: folder, settings, policy and evaluation maps.

`driver` decides which stage runs when; `work` and `measures` do the work."""

from __future__ import annotations

import warnings
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

HELD_OUT = 900_000_000  # first map seed of evaluation; no training game has one of these


class RunContext:
    """A run folder, its settings and its policy."""

    folder: Path
    settings: Settings
    policy: Policy
    prompts: PromptSet
    progress: bool
    on_step: Callable[[dict[str, Any]], None] | None
    ours: Callable[[], bool] = staticmethod(lambda: True)
    """Whether this process still owns the run folder."""
    steps_left: tuple[Any, set[str]] = None, set()
    """The stamp of metrics.jsonl after the last training, and the arms whose steps it holds."""

    @property
    def stages(self) -> Stages:
        """The current state of the stages."""
        return Stages(self.folder, self.settings, asdict(self.prompts))

    @property
    def eval_env(self) -> str:
        """The evaluation world: held-out layouts if there are any, else the training world."""
        return envs.held_out(self.settings.env)

    @property
    def eval_seeds(self) -> range:
        """Map seeds of evaluation; every arm, round and run uses the same seeds."""
        return range(HELD_OUT, HELD_OUT + self.settings.eval_maps)

    def probe(self, adapter: str | None = "student") -> dict[str, float] | None:
        """Return the scores of the OOD probe, or None if the model has no probe.jsonl."""
        path = Path(self.policy.source) / "probe.jsonl"
        return probe(self.policy, path, adapter=adapter) if path.is_file() else None

    def tell(self, text: str) -> None:
        """Say what a person should know: a line of progress if there is any, else a warning."""
        if self.progress:
            print(text, flush=True)  # in notebooks a warning looks like a failure
        else:
            warnings.warn(text, stacklevel=3)

    def check_ours(self) -> None:
        """Refuse to write if the folder was deleted; it may belong to another run by now.

        Raises:
            RuntimeError: This process no longer owns the folder.
        """
        if not self.ours():
            raise RuntimeError(
                f"{self.folder}, or its run.lock, was deleted or replaced while this process wrote "
                "it. Nothing more is written; start the run again"
            )

"""A training as it goes: a panel that a notebook refreshes, a picture where there is none, and the
same rows for TensorBoard, Weights & Biases and trackio.

All of them are functions that take a row: `distill(..., on_step=LivePanel(...))`, also of several
at once (`several`). What they cannot do is change the training: they only look."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..progress import in_notebook
from .plots import new_figure, pass_interval, probe_interval, styled, whiskers

CURVES = {
    "loss": "loss, nats per token",
    "entropy": "entropy, nats",
    "reply_tokens": "tokens per reply",
    "truncated": "replies cut off",
}
TRACKERS = ("tensorboard", "wandb", "trackio")
OnStep = Callable[[dict[str, Any]], None]


class LivePanel:
    """Loss, entropy, reply length, truncation and what is forgotten, step by step.

    Args:
        evaluate: called at the first step and then every `every` steps, say
            `lambda: probe(policy, path)`; gives "all" and "n" as the OOD probe does, or
            "pass_rate" with "low" and "high" as a report's summary. A small sample keeps it quick.
        every: steps between two evaluations, and between two pictures.
        path: a .png that is written every `every` steps; in a notebook the panel is shown as well.
    """

    def __init__(
        self,
        evaluate: Callable[[], dict[str, Any]] | None = None,
        every: int = 5,
        path: str | Path | None = None,
    ):
        if every < 1:
            raise ValueError(f"every={every}: give a number of steps, 1 or more")
        self.rows: list[dict[str, Any]] = []
        self.evaluations: list[tuple[int, float, float, float]] = []
        """(step of all so far, share, low, high) of each evaluation."""
        self._evaluate, self._every = evaluate, every
        self._path, self._shown = (Path(path) if path else None), None

    def __call__(self, row: dict[str, Any]) -> None:
        """Take the row of a step."""
        self.rows.append(row)
        if (len(self.rows) - 1) % self._every:
            return
        if self._evaluate:
            self.evaluations.append((len(self.rows) - 1, *_share(self._evaluate())))
        self.show()

    def show(self) -> Figure:
        """Draw all that there is: into the notebook's panel, and into the picture."""
        figure = self._draw()
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(self._path)
        if in_notebook():
            display: Any = import_module("IPython.display").display
            if self._shown is None:
                self._shown = display(figure, display_id=True)
            else:
                self._shown.update(figure)
        return figure

    @styled
    def _draw(self) -> Figure:
        panels = [*CURVES, *(["kept"] if self._evaluate else [])]
        figure, axes = new_figure(len(panels), (2.6 * len(panels), 2.6))
        for axis, name in zip(axes, panels, strict=True):
            axis.set(title=CURVES.get(name, "evaluation, 95% interval"), xlabel="step")
            if name == "kept":
                steps = [step for step, *_ in self.evaluations]
                rates = [(rate, low, high) for _, rate, low, high in self.evaluations]
                shares = [rate[0] for rate in rates]
                axis.errorbar(steps, shares, whiskers(rates), fmt="o-", capsize=3, ms=4)
                axis.set_ylim(-0.02, 1.02)
            else:
                axis.plot([row[name] for row in self.rows], marker=".", lw=1)
                axis.set_ylim(bottom=0)
        return figure


def _share(found: dict[str, Any]) -> tuple[float, float, float]:
    try:
        return pass_interval(found) if "pass_rate" in found else probe_interval(found)
    except KeyError as error:
        raise ValueError(
            f"an evaluation gives all and n, or pass_rate, low and high; it gave {sorted(found)}"
        ) from error


def several(*on_steps: OnStep) -> OnStep:
    """One function that hands a row to each of these."""

    def on_step(row: dict[str, Any]) -> None:
        for one in on_steps:
            one(row)

    return on_step


def tracker(name: str, folder: str | Path, run: str = "run", **options: Any) -> OnStep:
    """A function that hands each step's figures to a tracker: a curve per arm and figure.

    Args:
        name: "tensorboard" (event files), "wandb" (online or, with WANDB_MODE=offline, in the
            folder) or "trackio" (in its own folder).
        folder: where it writes.
        run: how the run is called there.
        **options: of `wandb.init` or `trackio.init` (project=).

    Raises:
        ValueError: no such tracker.
        ImportError: it is not installed.
    """
    if name not in TRACKERS:
        raise ValueError(f"no tracker {name!r}: choose one of {', '.join(TRACKERS)}")
    Path(folder).mkdir(parents=True, exist_ok=True)
    counts: dict[str, int] = {}
    log = _log_of(name, Path(folder), run, options)

    def on_step(row: dict[str, Any]) -> None:
        arm = str(row.get("arm", "training"))
        step = counts[arm] = counts.get(arm, -1) + 1
        figures = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
        log({f"{arm}/{k}": float(v) for k, v in figures.items() if k != "schema"}, step)

    return on_step


def _log_of(
    name: str, folder: Path, run: str, options: dict[str, Any]
) -> Callable[[dict[str, float], int], None]:
    os.environ.setdefault("TRACKIO_DIR", str(folder))  # read when trackio is imported
    try:
        if name == "tensorboard":
            return _tensorboard(folder / run)
        library = import_module(name)
    except ImportError as error:
        need = f"the tracker {name} is not installed: pip install 'oelkit[track]'"
        raise ImportError(f"{need} ({error})") from error
    if name == "wandb":
        begun = library.init(**{"project": "oelkit", "name": run, "dir": str(folder)} | options)
        # arms follow each other, and its own step only grows
        return lambda figures, step: begun.log({**figures, "step": step})
    library.init(**{"project": "oelkit", "name": run} | options)
    return lambda figures, step: library.log({**figures, "at": step})


def _tensorboard(folder: Path) -> Callable[[dict[str, float], int], None]:
    writer = import_module("tensorboard.summary").Writer(str(folder))

    def log(figures: dict[str, float], step: int) -> None:
        for figure, value in figures.items():
            writer.add_scalar(figure, value, step)
        writer.flush()

    return log

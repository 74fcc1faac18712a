"""Live views of a training: a panel in a notebook, a picture elsewhere, and TensorBoard, Weights &
Biases and trackio.

Each is a function that takes a row: `distill(..., on_step=LivePanel(...))`. `several` combines
them. They only watch and cannot change the training."""

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
    """Live plot of loss, entropy, reply length, truncation and an optional evaluation.

    Args:
        evaluate: Called at the first step and then every `every` steps, such as
            `lambda: probe(policy, path)`. Returns "all" and "n" like the OOD probe, or "pass_rate",
            "low" and "high" like a report's summary. A small sample keeps it quick.
        every: Steps between evaluations, and between pictures.
        path: A .png to write every `every` steps; notebooks also show the panel.
    """

    def __init__(
        self,
        evaluate: Callable[[], dict[str, Any]] | None = None,
        every: int = 5,
        path: str | Path | None = None,
    ):
        if every < 1:
            raise ValueError(f"every={every}: must be a number of steps, at least 1")
        self.rows: list[dict[str, Any]] = []
        self.evaluations: list[tuple[int, float, float, float]] = []
        """(step counted over all rows, share, low, high) of each evaluation."""
        self._evaluate, self._every = evaluate, every
        self._path, self._shown = (Path(path) if path else None), None

    def __call__(self, row: dict[str, Any]) -> None:
        """Add the row of a step."""
        self.rows.append(row)
        if (len(self.rows) - 1) % self._every:
            return
        if self._evaluate:
            self.evaluations.append((len(self.rows) - 1, *_share(self._evaluate())))
        self.show()

    def show(self) -> Figure:
        """Redraw the notebook's panel and the picture; return the figure."""
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
        panels = len(CURVES) + bool(self._evaluate)
        figure, axes = new_figure(panels, (2.6 * panels, 2.6))
        for axis, (name, title) in zip(axes, CURVES.items(), strict=False):
            axis.plot([row[name] for row in self.rows], marker=".", lw=1)
            axis.set(title=title, xlabel="step")
            axis.set_ylim(bottom=0)
        if self._evaluate:
            rates = [(rate, low, high) for _, rate, low, high in self.evaluations]
            steps, shares = [e[0] for e in self.evaluations], [e[1] for e in self.evaluations]
            axes[-1].errorbar(steps, shares, whiskers(rates), fmt="o-", capsize=3, ms=4)
            axes[-1].set(title="evaluation, 95% interval", xlabel="step", ylim=(-0.02, 1.02))
        return figure


def _share(found: dict[str, Any]) -> tuple[float, float, float]:
    try:
        return pass_interval(found) if "pass_rate" in found else probe_interval(found)
    except KeyError as error:
        raise ValueError(
            f"evaluate must give all and n, or pass_rate, low and high; it gave {sorted(found)}"
        ) from error


def several(*on_steps: OnStep) -> OnStep:
    """Combine several `on_step` functions into one."""

    def on_step(row: dict[str, Any]) -> None:
        for one in on_steps:
            one(row)

    return on_step


def tracker(name: str, folder: str | Path, run: str = "run", **options: Any) -> OnStep:
    """Return an `on_step` that logs each step to a tracker, with a curve per arm and metric.

    Args:
        name: "tensorboard" (event files), "wandb" (online, or in the folder with
            WANDB_MODE=offline) or "trackio" (in its own folder).
        folder: Output folder.
        run: Name of the run in the tracker.
        **options: Options of `wandb.init` or `trackio.init`, such as project=.

    Raises:
        ValueError: The tracker is unknown.
        ImportError: The tracker is not installed.
    """
    if name not in TRACKERS:
        raise ValueError(f"no tracker {name!r}: choose one of {', '.join(TRACKERS)}")
    Path(folder).mkdir(parents=True, exist_ok=True)
    log = _log_of(name, Path(folder), run, options)

    def on_step(row: dict[str, Any]) -> None:
        arm = str(row.get("arm", "training"))
        figures = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
        log({f"{arm}/{k}": float(v) for k, v in figures.items() if k != "schema"}, row["step"])

    return on_step


def _log_of(
    name: str, folder: Path, run: str, options: dict[str, Any]
) -> Callable[[dict[str, float], int], None]:
    if name == "trackio":
        os.environ.setdefault("TRACKIO_DIR", str(folder))  # it is read on import
    try:
        if name == "tensorboard":
            return _tensorboard(folder / run)
        library = import_module(name)
    except ImportError as error:
        need = f"the tracker {name} is not installed: pip install 'oelkit[track]'"
        raise ImportError(f"{need} ({error})") from error
    if name == "wandb":
        begun = library.init(**{"project": "oelkit", "name": run, "dir": str(folder)} | options)
        # wandb's own step can only grow, but each arm starts at 0
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

"""Menus to choose a run and a round, above any view of a round's folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as w

from .base import StaticFallback


class RoundMenu(StaticFallback, w.VBox):
    """Shows `views(folder)` for a chosen round: `start` at first, then any round in `root` with
    items.

    If `views` fails (ValueError, OSError), the error is shown instead. A saved notebook keeps the
    views' plain HTML."""

    def __init__(
        self, views: Callable[[Path], Sequence[w.Widget]], start: Path, root: str | Path = "runs"
    ):
        found = {start, *(path.parent for path in Path(root).glob("*/round_*/items.jsonl"))}
        runs = sorted({folder.parent for folder in found})
        found = sorted(found, key=lambda folder: (len(folder.name), folder.name))  # 2 before 10
        self._folders = {run: [f for f in found if f.parent == run] for run in runs}
        self._views, self._shown = views, w.VBox()
        names = [(run.name, run) for run in runs]
        self._run = w.Dropdown(options=names, value=start.parent, description="run")
        self._round = w.Dropdown(options=self._rounds(), value=start, description="round")
        menus = w.HBox([self._run, self._round], layout=w.Layout(flex_flow="row wrap"))
        super().__init__([menus, self._shown])
        self._run.observe(self._choose, "value")
        self._round.observe(self._show, "value")
        self._show()

    def _rounds(self) -> list[tuple[str, Path]]:
        run: Any = self._run.value
        return [(folder.name.removeprefix("round_"), folder) for folder in self._folders[run]]

    def _choose(self, _: dict) -> None:
        self._round.options = self._rounds()  # the first one becomes the new value

    def _show(self, _: dict | None = None) -> None:
        folder: Any = self._round.value
        try:
            views = tuple(self._views(folder))
        except (ValueError, OSError) as error:
            views = (w.Label(str(error)),)
        for view in self._shown.children:
            view.close()
        self._shown.children = views

    @property
    def static_html(self) -> str:
        """The static HTML of the views shown."""
        return "".join(getattr(view, "static_html", "") for view in self._shown.children)

"""A notice of what is out of date in a run, with a button to redo it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import ipywidgets as w

from ...runs.table import first_few
from .base import StaticFallback


class RedoNotice(StaticFallback, w.VBox):
    """Shows which stages of a run are out of date, and why; hidden if none are.

    Args:
        status: Returns the current stages, such as `run.status`.
        redo: Redoes what is stale, such as `run.redo`.
    """

    def __init__(self, status: Callable[[], Sequence[Any]], redo: Callable[[], Any]):
        self._status, self._redo = status, redo
        self._text = w.HTML()
        self._button = w.Button(description="Redo these stages", button_style="warning")
        self._button.on_click(lambda _: self.run())
        self._progress = w.Output()  # output printed in a widget's event has no cell
        super().__init__([self._text, self._button, self._progress])
        self.refresh()

    def refresh(self, *_: Any) -> None:
        """Check the run again, such as after an edit; an error is shown instead of the stages."""
        try:
            stale = [status for status in self._status() if status.state == "stale"]
        except (ValueError, OSError) as error:
            return self._show(f"<p>{escape(str(error))}</p>", button=False)
        lines = "".join(f"<li>{escape(f'{s.name}: {s.why}')}</li>" for s in stale if not s.follows)
        if rest := first_few([s.name for s in stale if s.follows]):
            lines += f"<li>and so {escape(rest)}</li>"
        head = "<b>These stages are out of date:</b>"
        self._show(f"{head}<ul>{lines}</ul>" if stale else "", button=bool(stale))

    def run(self) -> None:
        """Redo what is stale; an error is shown instead of the stages."""
        self._show(f"{self.static_html}<p>Working …</p>", button=False)
        self._progress.outputs = ()
        with self._progress:
            try:
                self._redo()
            except (ValueError, RuntimeError, OSError) as error:
                self._show(f"<p>{escape(str(error))}</p>", button=True)
            else:
                self.refresh()

    def _show(self, html: str, button: bool) -> None:
        self.static_html = self._text.value = html
        self._button.layout.display = "" if button else "none"
        self.layout.display = "" if html else "none"

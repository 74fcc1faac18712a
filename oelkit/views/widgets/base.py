"""Shared by the views: a front end from files, and plain HTML as a fallback in saved notebooks.

Model text is untrusted: it is escaped in HTML, and only ever a text node in the browser.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anywidget
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import publish_display_data

from ...envs import parse_board
from ...envs.board import symbol_kinds
from ...text import well_formed

# an error is plain text in its element, while a live widget has child elements; widgets within
# another widget, such as a button with only text, are excluded
STATIC = """<div class="oel-static">{html}<style>
.jp-OutputArea-child:has(.oel-static):has(+ .jp-OutputArea-child .jupyter-widgets > *),
.jp-OutputArea-child:has(.oel-static) + .jp-OutputArea-child
.jupyter-widgets:not(.jupyter-widgets *):not(:has(*))
{{ display: none; }}
</style></div>"""


def source(*names: str) -> str:
    """Return `_esm` or `_css` of a view: base.js or base.css, then its own files, as one text."""
    paths = [Path(__file__).with_name(name) for name in names]
    return "".join(path.read_text("utf-8") for path in (paths[0].with_stem("base"), *paths))


class StaticFallback:
    """Lets a widget show its `static_html` where no kernel runs: in saved, converted and
    GitHub-rendered notebooks, and after a notebook is reopened.

    JupyterLab shows an error for a widget without a kernel, whatever else the output holds. So the
    HTML is a separate output right before the widget's, and a style hides one of the two.
    """

    static_html: str = ""
    """Whoever sets it must escape it."""
    _ipython_display_ = None  # ipywidgets 7 (Colab) would omit text/html
    __repr__ = object.__repr__

    def _repr_mimebundle_(self, **options: object) -> tuple[dict, dict]:
        bundle: Any = anywidget.AnyWidget._repr_mimebundle_  # ipywidgets 7 widgets have none
        data, metadata = bundle(self, **options)
        html = well_formed(self.static_html)  # or no notebook could be saved
        if InteractiveShell.initialized() and html:
            publish_display_data({"text/html": STATIC.format(html=html), "text/plain": ""})
            html = ""
        return {**data, "text/html": html}, metadata


class LiveView(StaticFallback, anywidget.AnyWidget):
    """A widget with a front end of its own and a static fallback."""

    def send_json(self, **message: Any) -> None:
        """Send a message as ASCII text: the notebooks' own JSON breaks at a lone surrogate."""
        self.send({"json": json.dumps(message)})


def board_of(observation: str, kinds: dict[str, str] | None = None) -> dict:
    """Return what board.js draws for an observation; no cells if it holds no board."""
    cells = parse_board(observation)
    return {"cells": cells, "kinds": kinds or symbol_kinds(cells)}

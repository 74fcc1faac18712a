"""What the views share: front end from files, plain HTML in their place in a saved notebook.

Text of models is untrusted: escaped here, and only ever a text node in the browser.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

import anywidget
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import publish_display_data

from ...envs import parse_board
from ...envs.board import symbol_kinds

# the error stands alone in its element, a live widget has elements in it; what lies within another
# widget (a button, which holds text alone) is not meant
STATIC = """<div class="oel-static">{html}<style>
.jp-OutputArea-child:has(.oel-static):has(+ .jp-OutputArea-child .jupyter-widgets > *),
.jp-OutputArea-child:has(.oel-static) + .jp-OutputArea-child
.jupyter-widgets:not(.jupyter-widgets *):not(:has(*))
{{ display: none; }}
</style></div>"""


def source(*names: str) -> str:
    """`_esm` or `_css` of a view: base.js or base.css and then its own files, as one text."""
    paths = [Path(__file__).with_name(name) for name in names]
    return "".join(path.read_text("utf-8") for path in (paths[0].with_stem("base"), *paths))


class StaticFallback:
    """Makes any widget show its `static_html` where no kernel runs: in saved, converted and
    GitHub-rendered notebooks, and after a notebook was opened again.

    JupyterLab shows an error in place of a widget without a kernel, whatever else the output holds.
    So the HTML is an output of its own, right before the widget's, and style hides one of the two.
    """

    static_html: str = ""
    """Escaped by whoever sets it."""
    _ipython_display_ = None  # ipywidgets 7 (Colab) would leave text/html out
    __repr__ = object.__repr__

    def _repr_mimebundle_(self, **options: object) -> tuple[dict, dict]:
        bundle: Any = anywidget.AnyWidget._repr_mimebundle_  # widgets of ipywidgets 7 have none
        data, metadata = bundle(self, **options)
        # A lone surrogate of broken model output has no UTF-8: no notebook could be saved with it.
        html = self.static_html.encode("utf-8", "replace").decode()
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
    """What board.js draws of an observation; no cells where it is no board, or a model's or a log's
    idea of one.
    """
    cells = parse_board(observation)
    cells = cells if len({len(row) for row in cells}) == 1 else []
    return {"cells": cells, "kinds": kinds or symbol_kinds(cells)}


def pre(text: str) -> str:
    """HTML of a text as it is, long lines broken."""
    style = "white-space:pre-wrap;overflow-wrap:anywhere;margin:0 0 .6em"
    return f'<pre style="{style}">{escape(text)}</pre>'

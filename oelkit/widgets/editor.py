"""Accept, reject or edit experience items. A view on `Curation`: every click calls one of its methods, and what is
shown is drawn from it again."""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import Any

import ipywidgets as w

from ..curate import Curation, _count
from .base import pre
from .viewer import Box


def experience_editor(curation: Curation, tokenizer: Any = None) -> w.VBox:
    """A row an item: status, accept, reject, the text to edit; then undo and redo, how much is kept, how it reads.

    tokenizer: a Transformers one, or a function from a text to its number of tokens; without one, words are counted.
    """
    rows: dict[str, w.HBox] = {}
    table, line, preview, wrong = w.VBox(), w.HTML(), w.HTML(), w.HTML()
    undo, redo = (w.Button(description=name, layout=w.Layout(width="80px")) for name in ("undo", "redo"))
    view = Box([table, w.HBox([undo, redo, line]), wrong, preview])

    def do(operation: str, *arguments: str) -> None:
        wrong.value = ""
        try:
            getattr(curation, operation)(*arguments)
        except (ValueError, RuntimeError, OSError) as error:  # an empty text, somebody else's write, a full disk
            wrong.value = f'<b style="color:#b3401c">{escape(str(error))}</b>'
        draw()

    def row(id: str) -> w.HBox:
        yes, no = (w.Button(description=name, layout=w.Layout(width="72px")) for name in ("accept", "reject"))
        field = w.Text(continuous_update=False, layout=w.Layout(flex="1 1 0"))
        yes.on_click(lambda _: do("accept", id))
        no.on_click(lambda _: do("reject", id))
        field.observe(lambda c: c["new"] != curation.item(id).text and do("edit", id, c["new"]), "value")
        return w.HBox([w.HTML(layout=w.Layout(width="76px")), yes, no, field])

    def draw() -> None:
        items = curation.items
        for item in items:
            if item.id not in rows:
                rows[item.id] = row(item.id)
            status, yes, no, field = rows[item.id].children
            status.value, field.value = escape(item.status), item.text
            yes.button_style = "success" if item.status == "accepted" else ""
            no.button_style = "danger" if item.status == "rejected" else ""
        table.children = [rows[item.id] for item in items]
        undo.disabled, redo.disabled = not curation.can_undo, not curation.can_redo
        text, counts = curation.experience(), Counter(item.status for item in items)
        size = f"{_count(text, tokenizer)} tokens" if tokenizer else f"{len(text.split())} words"
        line.value = f"<b>{counts['accepted']} of {len(items)} items kept, {size}</b>"
        preview.value = pre(text or "(nothing accepted yet: the teacher would read nothing)")
        cells = "".join(f"<tr><td>{escape(i.status)}</td><td>{escape(i.text)}</td></tr>" for i in items)
        view.still = f"<table>{cells}</table><p>{line.value}</p>"

    undo.on_click(lambda _: do("undo"))
    redo.on_click(lambda _: do("redo"))
    draw()
    return view

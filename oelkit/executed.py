"""Executed copies of notebooks: what to publish, where one failed, and the results of a batch.

Results are written for programs, as NAME.status.json and junit.xml. Nothing is executed here."""

from __future__ import annotations

import copy
import re
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

from .records import write_text
from .runs.files import write_json

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
INTERRUPTED = "interrupted"  # by Ctrl+C
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class NotebookError(RuntimeError):
    """A batch of notebooks could not start or did not finish; the message says where and why.

    `cell` is the number of the cell that failed, from 1; None if no cell was started.
    """

    cell: int | None = None


@dataclass(frozen=True)
class NotebookResult:
    """The result of one notebook in a batch."""

    notebook: str
    status: str
    """passed, failed, or skipped because an earlier one failed."""
    seconds: float = 0.0
    copy: str = ""
    """File name of the executed copy, in the same folder."""
    cell: int | None = None
    """Number of the cell that failed, from 1; None if no cell was started."""
    reason: str = ""


def write_results(folder: Path, results: list[NotebookResult]) -> None:
    """Write NAME.status.json for each notebook that was started, and junit.xml for the batch."""
    counts = {s: sum(r.status == s for r in results) for s in ("failed", "skipped")}
    about = {"name": "notebooks", "tests": len(results), "errors": 0, "failures": counts["failed"]}
    about |= {"skipped": counts["skipped"], "time": f"{sum(r.seconds for r in results):.1f}"}
    suite = xml.Element("testsuite", {k: str(v) for k, v in about.items()})
    for result in results:
        case = {"classname": "notebooks", "name": result.notebook, "time": f"{result.seconds:.1f}"}
        test = xml.SubElement(suite, "testcase", case)
        if result.status != "skipped":
            write_json(folder / f"{result.notebook}.status.json", asdict(result))
        if result.status != "passed":
            kind = "skipped" if result.status == "skipped" else "failure"
            xml.SubElement(test, kind, message=_NO_XML.sub("\ufffd", result.reason))
    text = xml.tostring(suite, encoding="unicode")
    write_text(folder / "junit.xml", f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n')


def clean(notebook: Any) -> list[Any]:
    """Reduce a notebook to what can be published; return its cells.

    A text progress bar keeps only its last state. Widget bars (frozen at 0%), dead widget views and
    papermill's own cells are removed.
    """
    notebook.metadata.pop("widgets", None)
    notebook.cells = [c for c in notebook.cells if "papermill-error-cell-tag" not in tags(c)]
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.outputs = settled(cell.outputs)
        for output in list(cell.outputs):
            data = output.get("data", {})
            widget = len(data) > 1 and data.pop(WIDGET_VIEW, None)
            if widget and "%|" in data.get("text/plain", ""):
                cell.outputs.remove(output)
    return notebook.cells


def settled(outputs: list[Any]) -> list[Any]:
    """Join what was printed piece by piece, without what a carriage return overwrites.

    In linear time: nbconvert's expression for this takes the square of a line's length."""
    joined: list[Any] = []
    for name, group in groupby(outputs, lambda output: output.get("name")):
        first, *rest = pieces = list(group)
        if name:  # stdout or stderr
            lines = "".join(output.text for output in pieces).split("\n")
            first.text, rest = "\n".join(map(_overwritten, lines)), []
        joined += [first, *rest]
    return joined


def _overwritten(line: str) -> str:
    end = "\r" * line.endswith("\r")  # as before a line feed
    return line.removesuffix(end).rpartition("\r")[2] + end


def html_page(notebook: Any) -> str:
    """Return a notebook as a page for runs/NAME/notebooks that loads nothing from the network.

    It has neither Colab's badge nor the scripts for formulas and widgets, of which there are none.
    """
    from nbconvert import HTMLExporter

    page = copy.deepcopy(notebook)
    for cell in page.cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"^\[!\[Open in Colab\].*\n+", "", cell.source)
            cell.source = text.replace("](../", "](../../../")
    html, _ = HTMLExporter().from_notebook_node(page)
    return re.sub(r'<script src="https?:[^<>]*>\s*</script>', "", html)


def unrun(cell: Any) -> bool:
    """Whether a code cell did not run to its end."""
    code = cell.cell_type == "code" and cell.source.strip()
    return bool(code) and (not cell.execution_count or _has_error(cell))


def _has_error(cell: Any) -> bool:
    return any(output.output_type == "error" for output in cell.outputs)


def mark_failure(cells: list[Any], at: int, reason: str) -> None:
    """Correct papermill's marks: cell `at` failed for `reason`, and those after it never ran."""
    import nbformat

    for index, cell in enumerate(cells[at:]):
        marks = cell.metadata.setdefault("papermill", {})
        marks.update(status="pending" if index else "failed", exception=not index)
    if cells[at].cell_type == "code" and not _has_error(cells[at]):
        about = {"ename": "NotebookError", "evalue": reason, "traceback": [reason]}
        cells[at].outputs.append(nbformat.v4.new_output("error", **about))


def tags(cell: Any) -> list[str]:
    """Return the tags of a cell."""
    return cell.metadata.get("tags", [])


def first_line(message: object) -> str:
    """Return the first line of an error's message."""
    if isinstance(message, KeyboardInterrupt) and not str(message):
        return INTERRUPTED
    return (str(message).strip() or type(message).__name__).splitlines()[0].strip()

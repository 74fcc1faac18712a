"""Export a curation as a table and import its changes: JSON Lines, or CSV for a spreadsheet.

Export writes the current view, one row per item. Import compares rows by id and does what differs
(text, status) as operations; a row without an id adds an item of your own, accepted unless its
status says otherwise, and a row without a status keeps it. No CSV cell is a formula, also where a
spreadsheet splits at semicolons or tabs: text that it would execute gets a ' in front, which import
removes.
"""

from __future__ import annotations

import csv
import io
import json
import re

from .curation import Curation
from .messages import json_text
from .operations import GONE, CuratedItem, Operation
from .records import Fields, to_dict
from .text import one_line, well_formed

COLUMNS = ("id", "status", "text", "original", "model", "round", "draw", "evidence", "why")
_FORMULA = r"(?=[=+\-@＝＋－＠\t\r\n'])"
_MORE = "\0more"  # of a row with more cells than the first line
_DECISIONS = {"accepted": "accept", "rejected": "reject", "skipped": "skip", "pending": "restore"}


def export(curation: Curation, format: str = "jsonl") -> str:
    """Return the items of the view as text, in the format "jsonl" or "csv".

    Lone surrogates, which a file cannot hold, become U+FFFD.
    """
    done = curation.histories()
    rows = [_row(item, done.get(item.id, [])) for item in curation.items]
    if format == "jsonl":
        return "".join(json_text(row) + "\n" for row in rows)
    if format != "csv":
        raise ValueError(f"format={format!r}: choose jsonl or csv")
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for row in rows:
        seen = "; ".join(f"{e['trajectory_id']}, turn {e['turn'] + 1}" for e in row["evidence"])
        writer.writerow(_safe(str(value)) for value in (row | {"evidence": seen}).values())
    return well_formed(out.getvalue())


def bring_in(curation: Curation, text: str) -> int:
    """Apply the changes made to an exported table; return the number of operations.

    Raises:
        ValueError: the text is not such a table, an id occurs twice, or a row has an unknown id
            or status or an unusable text. Nothing is changed.
    """
    rows, seen = _rows(text), set[str]()
    for n, row in enumerate(rows, 1):  # check everything before changing anything
        if (status := _status(row)) and status not in _DECISIONS:
            raise ValueError(f"row {n}: {status!r} is none of {', '.join(_DECISIONS)}")
        if not str(row.get("text") or "").strip():
            raise ValueError(f"row {n}: the text is empty; set the status to rejected instead")
        if not row.get("id"):
            continue
        item = curation.item(row["id"])
        if item.id in seen:
            raise ValueError(f"row {n}: an earlier row has the id {item.id!r}; delete one of them")
        seen.add(item.id)
        if item.status in GONE:
            raise ValueError(f"row {n}: {item.id!r} is now {item.status}; export the table again")
        if "\ufffd" in row["text"] and "\ufffd" not in well_formed(item.text):
            raise ValueError(f"row {n}: a letter is lost; save the table as UTF-8 (CSV UTF-8)")
    before, done = len(curation.log), curation.histories()

    def why(id: str, row: Fields) -> str:
        said = row.get("why")
        exported = _why(done.get(id, []))  # of an earlier operation
        return said if said and said != exported else "imported"

    decided: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        id = row.get("id") or curation.add(row["text"], (), row.get("why") or "")
        if (status := _status(row)) and status != curation.item(id).status:
            decided.setdefault((status, why(id, row)), []).append(id)
    for (status, reason), ids in decided.items():  # one undo step for all with the same reason
        getattr(curation, _DECISIONS[status])(ids, reason)
    for row in (row for row in rows if row.get("id")):
        if one_line(row["text"]) != well_formed(curation.item(row["id"]).text):
            curation.edit(row["id"], row["text"], why(row["id"], row))
    return len(curation.log) - before


def _row(item: CuratedItem, history: list[Operation]) -> Fields:
    row = to_dict(item)
    return {name: row[name] for name in COLUMNS[:-1]} | {"why": _why(history)}


def _why(history: list[Operation]) -> str:
    return next((op.reason for op in reversed(history) if op.reason), "")


def _status(row: Fields) -> str:
    return (row.get("status") or "").strip().lower()


def _rows(text: str) -> list[Fields]:
    """Return the fields of each JSON line or CSV row."""
    text = text.removeprefix("\ufeff")
    try:
        if text.lstrip().startswith("{"):
            rows: list[Fields] = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:  # in some languages a spreadsheet writes semicolons
            by = max(",;\t", key=text.partition("\n")[0].count)
            how = {"delimiter": by, "restkey": _MORE, "strict": True}
            table = csv.DictReader(io.StringIO(text, newline=""), **how)
            rows = [{k: v if k == _MORE else _plain(v or "") for k, v in r.items()} for r in table]
    except (ValueError, RecursionError, csv.Error) as error:
        raise ValueError(f"neither JSON Lines nor CSV: {error}") from error
    if not rows or not all(isinstance(row, dict) and "text" in row for row in rows):
        raise ValueError("a table of items needs at least one row, and a text column in every row")
    for n, row in enumerate(rows, 1):
        if more := row.get(_MORE):
            said = f"row {n} has {len(row) - 1 + len(more)} cells, the first line {len(row) - 1}"
            raise ValueError(f"{said}: put a text that contains the separator in double quotes")
        for name in ("id", "status", "text", "why"):
            if not isinstance(row.get(name) or "", str):
                raise ValueError(f"row {n}: {name} must be text, got {row[name]!r}")
    return rows


def _safe(cell: str) -> str:
    return re.sub(rf"(\A|[;\t]){_FORMULA}", r"\1'", cell)


def _plain(cell: str) -> str:
    return re.sub(rf"(\A|[;\t])'{_FORMULA}", r"\1", cell)

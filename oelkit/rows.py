"""Records as rows for other programs: JSON Lines, Parquet, Hugging Face data sets, and states with
their round's experience in the formats of two trainers.

A Parquet column has one type, so values whose type differs from row to row (tools and tool calls,
lists and objects of a world or a log) are stored as JSON text. So is text that looks like it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from .messages import content_or_json, json_text, plain
from .operations import CuratedItem
from .prompts import PromptSet, with_experience
from .records import Evidence, Fields, State, Trajectory, Turn, to_dict, write_text
from .text import well_formed


def _names(*kinds: Any) -> set[str]:
    return {f.name for kind in kinds for f in fields(kind)}


_FIELDS = _names(Trajectory, Turn)
_OWN = _FIELDS | _names(State, Evidence, CuratedItem) | {"messages"}
_JSON = ("{", "[", '"')  # how JSON text begins
_MESSAGE = ("role", "content", "name", "tool_call_id", "reasoning_content")


def plain_rows(records: Iterable[Any]) -> list[Fields]:
    """Return trajectories, items, states or dicts as rows whose columns each have one type.

    Half an emoji becomes U+FFFD, because Arrow does not take it.
    """
    rows = [_plain(row) for row in _dicts(records)]
    # Arrow takes the columns from the first row and would drop those that only later rows have
    names = dict.fromkeys(name for row in rows for name in row)
    return [dict.fromkeys(names) | row for row in rows]


def _dicts(records: Iterable[Any]) -> list[Fields]:
    return [record if isinstance(record, dict) else to_dict(record) for record in records]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if not isinstance(value, dict):
        return well_formed(value) if isinstance(value, str) else value
    if "role" in value:
        message = value | {"content": content_or_json(value.get("content"))}
        message = {k: v for k, v in message.items() if v is not None}
        return {k: _plain(v) if k in _MESSAGE else json_text(v) for k, v in message.items()}
    return {well_formed(k): json_text(v) if _differs(k, v) else _plain(v) for k, v in value.items()}


def _differs(name: str, value: Any) -> bool:
    """Whether a field's type can differ from row to row, or its text would be read as JSON."""
    if name in _OWN or not isinstance(value, str):
        return isinstance(value, dict) or (name not in _OWN and isinstance(value, list))
    try:
        return value.startswith(_JSON) and json.loads(value) is not None
    except (ValueError, RecursionError):
        return False


def from_plain(value: Any) -> Any:
    """Return a row of `plain_rows`, such as Parquet holds it, as the trajectory's own fields."""
    if isinstance(value, list):
        return [from_plain(v) for v in value]
    if not isinstance(value, dict):
        return value
    message = "role" in value
    own = _MESSAGE if message else _FIELDS
    row: Fields = {}
    for name, v in value.items():
        if name not in own and isinstance(v, str) and v.startswith(_JSON):
            with suppress(ValueError, RecursionError):  # else it was text before
                v = json.loads(v)
        if v is not None or (name in own and not message):  # else only other rows have it
            row[name] = v if name not in own else from_plain(v)
    return row


def training_rows(
    states: Sequence[State],
    experiences: str | Sequence[str],
    prompt_set: PromptSet,
    to: Literal["trl", "ms-swift"] = "trl",
) -> list[Fields]:
    """Return the states of a round with its experience in the format of another trainer.

    "trl": `prompt` (messages) and `privileged_context` (the experience block), for TRL's
    SDFTTrainer. "ms-swift": `messages` and `teacher_prompt`, which replaces the last user message.
    State i gets text i mod K. Both need prompts without tools that end with a user message; other
    states are left out with a warning.

    Args:
        states: training states.
        experiences: a text, or the K texts.
        prompt_set: defines how the experience is introduced.
        to: "trl" or "ms-swift".

    Raises:
        ValueError: unknown trainer, no experience, or no state that the trainer takes.
    """
    texts = [experiences] if isinstance(experiences, str) else list(experiences)
    texts = [text for text in texts if text.strip()]
    if to not in ("trl", "ms-swift") or not texts:
        raise ValueError(f"to={to!r}, {len(texts)} texts: use trl or ms-swift, and give a text")
    rows: list[Fields] = []
    for i, state in enumerate(states):
        try:
            messages = [{"role": m["role"], "content": m["content"]} for m in plain(state.prompt)]
        except ValueError as error:
            raise ValueError(f"state {state.id!r}: {error}") from error
        tools = any(m.get("tools") or m.get("tool_calls") for m in state.prompt)
        if tools or not messages or messages[-1]["role"] != "user":
            continue
        text, last = texts[i % len(texts)], messages[-1:]
        if to == "trl":
            block = prompt_set.experience.format(items=text).strip("\n")
            rows.append({"prompt": messages, "privileged_context": block})
        else:
            read = with_experience(prompt_set, last, text)[0]["content"]
            rows.append({"messages": messages, "teacher_prompt": read})
    if left := len(states) - len(rows):
        what = f"{left} of {len(states)} states have tools or do not end with the user"
        if not rows:
            raise ValueError(f"{what}: {to} takes none of them")
        warnings.warn(f"{what}: left out, because {to} does not take them", stacklevel=2)
    return rows


def library(name: str, path: Path) -> Any:
    """Return a library of the extra `logs`; ImportError says that the path needs it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"{path} needs {name}: pip install 'oelkit[logs]'") from error


def write_rows(path: str | Path, rows: Iterable[Any]) -> None:
    """Write records or rows as JSON Lines (.jsonl), Parquet (.parquet), or otherwise as the folder
    of a data set for `datasets.load_from_disk`.

    Raises:
        ImportError: Parquet without pyarrow, or a data set without datasets.
        ValueError: Parquet or a data set cannot hold a field.
    """
    path = Path(path)
    if path.suffix == ".jsonl":
        write_text(path, (json.dumps(x, ensure_ascii=False) + "\n" for x in _dicts(rows)))
        return
    try:
        if path.suffix == ".parquet":
            arrow, parquet = library("pyarrow", path), library("pyarrow.parquet", path)
            table = arrow.Table.from_pylist(plain_rows(rows))
            path.parent.mkdir(parents=True, exist_ok=True)
            parquet.write_table(table, path)
        else:
            datasets = library("datasets", path)
            datasets.Dataset.from_list(plain_rows(rows)).save_to_disk(str(path))
    except (ValueError, TypeError, OverflowError) as error:  # of Arrow
        said = f"{path}: a field has values of different types, or a number is too large"
        raise ValueError(f"{said} ({error}); write .jsonl instead") from error

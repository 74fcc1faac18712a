"""Read chat logs of a deployed agent as trajectories.

Each reply of the assistant is a turn: the messages before it are the prompt, and what came back
after it is the feedback. The formats are OpenAI chat messages, ShareGPT and oelkit's own
trajectories, from JSON Lines, a JSON list, Parquet or rows such as a Hugging Face dataset. Texts
pass through a `redact` hook before anything else sees them. Tool definitions are in the first
message of a prompt, under `tools`. Nothing is written here, and every outcome is unknown, because a
chat log has none.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from .given import not_json, shallow
from .messages import message, reply_text, tools
from .records import AnyPath, BadLine, Fields, Message, Outcome, RecordError, Trajectory, Turn
from .records import from_dict as record_of
from .redaction import Hook, redacted
from .redaction import redact as without_secrets
from .rows import from_plain, library
from .text import counted, well_formed

FORMATS = ("messages", "sharegpt", "records")
# Per conversation. Each reply lists all messages before it, so memory and files grow with the
# square: 4,000 short messages take 33 MB, and 150 MB or more in each file that has the prompts.
MAX_MESSAGES = 4_000


class Chats(list[Trajectory]):
    """The conversations of a log; when printed, it also says what was replaced and left out."""

    format: str = ""
    """The format of the log, one of FORMATS."""
    bad: list[BadLine]
    """(line, field, message) of each line that was left out."""
    replaced: dict[str, int]
    """Number of e-mail addresses, phone numbers and keys that were replaced, by kind."""

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # in a notebook
        printer.text(str(self))

    def __str__(self) -> str:
        turns = sum(len(t.turns) for t in self)
        count = f"{counted(len(self), 'conversation')} ({self.format})"
        said = [f"{count} with {counted(turns, 'reply', 'replies')}"]
        said += [f"replaced: {', '.join(f'{n:,} {k}' for k, n in self.replaced.items()) or 'none'}"]
        said += [f"left out: {counted(len(self.bad), 'line')}"] if self.bad else []
        return "\n".join([*said, *(f"  line {n}: {message}" for n, _, message in self.bad)])


def read_chats(
    source: AnyPath | Iterable[Fields],
    *,
    format: Literal["messages", "sharegpt", "records"] | None = None,
    on_bad: Literal["raise", "skip"] = "raise",
    redact: Hook | None = without_secrets,
) -> Chats:
    """Read the conversations of a log.

    Args:
        source: a .jsonl, .json or .parquet file, the folder of a saved data set, or rows (dicts)
            such as a Hugging Face dataset.
        format: "messages" (OpenAI), "sharegpt" or "records" (oelkit's); None: that of the first
            good line. Lines in another format are bad lines.
        on_bad: "raise", or "skip": leave out unreadable lines, with a warning.
        redact: function from text to text, applied to every text first; None: replace nothing.

    Returns:
        Trajectories in order, with what was left out and replaced. Tokens are not counted: their
        numbers are 0.

    Raises:
        FileNotFoundError: the file does not exist.
        RecordError: a line is bad (on_bad="raise"); it names the line and carries the good ones.
        ValueError: no conversation is left, or an argument is wrong.
        ImportError: Parquet without pyarrow, or a saved data set without datasets.
    """
    if format not in (*FORMATS, None) or on_bad not in ("raise", "skip"):
        raise ValueError(
            f"format={format!r}, on_bad={on_bad!r}: a format is one of {', '.join(FORMATS)}, "
            "on_bad is raise or skip"
        )
    if redact is not None and not callable(redact):
        raise TypeError(f"redact={redact!r}: expected a function of a text; None replaces nothing")
    path = Path(source) if isinstance(source, str | os.PathLike) else None
    where, stem = (str(path), path.stem) if path else ("the rows", "chat")
    chats, bad, counts, ids = Chats(), list[BadLine](), Counter[str](), set[str]()
    kind: str | None = format
    arrow = path.is_dir() or path.suffix == ".parquet" if path else hasattr(source, "features")
    for line, row in _rows(source):
        try:
            if path and isinstance(row, bytes):
                row = _parsed(row)
            elif isinstance(row, dict) and (arrow or not path):
                row = _as_json(row, arrow)
            found, replaced = _format(shallow(row, 100)), Counter[str]()
            if found != (kind or found):
                raise ValueError(f"is in the format {found}, the others are {kind}")
            game = _trajectory(redacted(row, redact, replaced), found, f"{stem}-{line}", ids)
        except (ValueError, RecursionError) as error:
            said = well_formed(without_secrets(str(error)))
            bad.append((line, getattr(error, "name", None), said))
            continue
        kind = found  # not of a bad line, or all others would be in another format
        ids.add(game.id)
        counts += replaced
        chats.append(game)
    chats.format, chats.bad, chats.replaced = kind or "", bad, dict(counts)
    _complain(where, chats, on_bad)
    return chats


def _complain(where: str, chats: Chats, on_bad: str) -> None:
    """Report bad lines, as an error or as a warning."""
    bad = chats.bad
    if bad:
        others = ", ".join(str(line) for line, *_ in bad[1:9]) + ", …" * (len(bad) > 9)
        more = f" ({counted(len(bad) - 1, 'more bad line')}: {others})" if len(bad) > 1 else ""
        said = f"{where}, line {bad[0][0]}: {bad[0][2]}{more}"
        if on_bad == "raise":
            raise RecordError(
                f"{said}. Fix the lines, or leave them out with on_bad='skip'; the {len(chats)} "
                "good conversations are in this error's .records",
                chats,
                bad,
            )
        warnings.warn(f"{said}: left out", stacklevel=3)
    if not chats:
        raise ValueError(f"{where}: no conversation in it")


def _rows(source: AnyPath | Iterable[Fields]) -> Iterator[tuple[int, Any]]:
    """Yield the lines (bytes) or rows of a log, numbered from 1, without blank lines."""
    if not isinstance(source, str | os.PathLike):
        if hasattr(source, "keys"):  # a DatasetDict
            raise ValueError(f"choose a split of the data set: {', '.join(map(str, source))}")
        yield from enumerate(source, 1)
        return
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"{path}: No such file")
    if path.is_dir():
        if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            raise ValueError(f"{path} is a folder, but no saved data set: name the log's file")
        yield from _rows(library("datasets", path).load_from_disk(str(path)))
    elif path.suffix == ".parquet":
        parquet = library("pyarrow.parquet", path)
        try:
            batches = parquet.ParquetFile(path).iter_batches(1000)
            yield from _rows(row for batch in batches for row in batch.to_pylist())
        except ValueError as error:  # of Arrow
            raise ValueError(f"{path}: not Parquet: {error}") from error
    else:
        with open(path, "rb") as file:
            start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
            file.seek(0)
            if start[:1] == b"[":
                try:
                    rows = json.loads(file.read().decode("utf-8-sig"))
                    yield from _rows(rows)
                    return
                except (ValueError, RecursionError) as error:
                    if path.suffix != ".jsonl":
                        raise ValueError(f"{path}: not JSON: {error}") from error
                    file.seek(0)  # its first line is a list
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"")


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode().rstrip("\r\n"))
    except UnicodeDecodeError as error:
        where = f"byte {error.start} is 0x{line[error.start]:02x}"
        raise ValueError(f"not UTF-8: {where}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(not_json(error)) from error


def _as_json(row: Fields, arrow: bool) -> Fields:
    """Return a row as JSON would hold it: arrays as lists, dates and other values as text.

    arrow: drop null fields, because there an object has the fields of all rows' objects.
    """
    own = "turns" in row  # oelkit's records

    def told(value: Any) -> Any:
        return value.tolist() if hasattr(value, "tolist") else str(value)

    def given(found: Fields) -> Fields:
        kept = ("content", "value") if arrow and not own else found
        return {k: v for k, v in found.items() if v is not None or k in kept}

    try:
        read = json.loads(json.dumps(row, default=told), object_hook=given)
    except TypeError as error:
        raise ValueError(f"has a field that is not named by a text: {error}") from error
    return from_plain(read) if arrow and own else read


def _format(row: Any) -> str:
    """Return which of FORMATS a row has, by its fields."""
    if not isinstance(row, dict):
        raise ValueError(f"is a {type(row).__name__}, not an object")
    if "turns" in row and "schema" in row:
        return "records"
    if row.get("messages") is not None:
        return "messages"
    talk: Any = row.get("conversations")
    if talk is None:
        names = ", ".join(map(str, list(row)[:8])) or "no fields"
        raise ValueError(f"has neither messages, conversations nor turns: {names}")
    first: Any = talk[0] if isinstance(talk, list) and talk else None
    return "messages" if isinstance(first, dict) and "role" in first else "sharegpt"


def _trajectory(row: Fields, kind: str, name: str, ids: set[str]) -> Trajectory:
    """Convert one conversation."""
    if kind == "records":
        record = record_of(Trajectory, row)
        if record.id in ids:
            raise ValueError(f"the id {record.id!r} occurs twice")
        return record
    row = {k: v for k, v in row.items() if v is not None}
    texts = {k: v for k, v in row.items() if isinstance(v, str)}
    own = str(row.get("id") or row.get("conversation_id") or name)
    while own in ids:
        own = f"{own}-{name}"
    talk = row.get("messages", row.get("conversations"))
    if not isinstance(talk, list) or not talk:
        raise ValueError("the conversation is empty" if talk == [] else "messages is not a list")
    if len(talk) > MAX_MESSAGES:
        raise ValueError(
            f"the conversation has {len(talk):,} messages; the limit is {MAX_MESSAGES:,}, because "
            "each reply is kept with all messages before it: split the conversation"
        )
    messages = [message(m, i) for i, m in enumerate(talk)]
    if placed := bool(texts.get("system")) and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": texts["system"]})
    first = next((m["role"] for m in messages if m["role"] != "system"), "")
    if first != "user":
        raise ValueError(f"begins with {first or 'no message'}, not with the user")
    if offered := row.get("tools") or row.get("functions"):  # OpenAI's older name
        messages[0]["tools"] = tools(offered)
    turns = _turns(messages)
    if not turns:
        raise ValueError("has no reply of the assistant")
    said = "\n".join(filter(None, (turns[-1].feedback, texts.get("feedback"))))
    turns[-1] = replace(turns[-1], feedback=said)  # with a rating in words, if there is one
    used = {"tools", "functions", "id", "messages" if "messages" in row else "conversations"}
    used |= texts.keys() & {"feedback", "model", *(["system"] if placed else [])}
    rest = {k: v for k, v in row.items() if k not in used}
    about = own, "log", None, texts.get("model", ""), 0
    extra = {"log": rest} if rest else {}
    return Trajectory(*about, tuple(turns), Outcome.UNKNOWN, said, extra)


def _turns(messages: list[Message]) -> list[Turn]:
    """Return a turn for each reply of the assistant."""
    at = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    between = [
        "\n".join(m["content"] for m in messages[a + 1 : b] if m["role"] in ("user", "tool"))
        for a, b in zip([-1, *at], [*at, len(messages)])
    ]
    turns: list[Turn] = []
    for i, (before, after) in zip(at, pairwise(between)):
        reply, calls = reply_text(messages[i]), messages[i].get("tool_calls", ())
        action = " ".join(json.dumps(c["function"], ensure_ascii=False) for c in calls) or None
        turns.append(Turn(before, messages[:i], reply, action, after, 0, 0, False))
    return turns

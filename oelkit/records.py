"""What the steps hand to each other: frozen dataclasses, kept as JSON Lines.

One line on disk is `{"schema": 1, ...fields...}`. Fields that this version does not know are kept
in `extra` and written back, so that a file may pass through an older oelkit unharmed. Nothing is
pickled; token ids and tensors do not live here. It does not decide where files lie (that is
`loop`). Departure: the paper's code keeps pickles in a temporary folder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

try:
    import fcntl
except ImportError:  # Windows: an append is then guarded by the size check alone
    fcntl = None

SCHEMA = 1
T = TypeVar("T")


class Outcome(StrEnum):
    """How a game ended."""

    SUCCESS = "success"
    FAILURE = "failure"
    INVALID = "invalid"
    TURN_LIMIT = "turn_limit"
    UNKNOWN = "unknown"


def _extra() -> Any:
    return field(
        default_factory=dict, hash=False
    )  # a dict has no hash; the records around it should


@dataclass(frozen=True)
class Turn:
    """One prompt and the model's reply to it."""

    observation: str
    prompt: list[dict]  # messages with role and content
    reply: str
    action: str | None
    feedback: str
    prompt_tokens: int
    reply_tokens: int
    truncated: bool
    extra: dict = _extra()


@dataclass(frozen=True)
class Trajectory:
    """One whole game (or one logged conversation)."""

    id: str
    env_id: str
    seed: int | None
    model: str
    round: int
    turns: tuple[Turn, ...]
    outcome: Outcome
    feedback: str
    extra: dict = _extra()


@dataclass(frozen=True)
class State:
    """A training prefix: the prompt of one turn of a trajectory."""

    id: str
    trajectory_id: str
    turn: int
    prompt: list[dict]
    extra: dict = _extra()


@dataclass(frozen=True)
class Evidence:
    """Where an item comes from: a turn (from 0) of a trajectory."""

    trajectory_id: str
    turn: int
    extra: dict = _extra()


@dataclass(frozen=True)
class ExperienceItem:
    """One thing learned, in words, with the turns that it was learned from."""

    id: str
    text: str
    evidence: tuple[Evidence, ...]
    model: str
    round: int
    draw: int
    extra: dict = _extra()


class RecordError(ValueError):
    """A bad record. `records` holds the good ones of the file, `bad` a (line, field, message) for
    each bad line; a field of None says that the line is not JSON at all (as a line is that a crash
    has cut off)."""

    def __init__(
        self,
        message: str,
        records: list | None = None,
        bad: list[tuple[int, str | None, str]] | None = None,
    ):
        super().__init__(message)
        self.records = records or []
        self.bad = bad or []


class ConflictError(RuntimeError):
    """Somebody else has written to the file since it was last seen. Nothing was written."""


class _FieldError(ValueError):
    def __init__(self, name: str, message: str):
        super().__init__(message)
        self.name = name


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def to_dict(record: Any) -> dict:
    """The record as one JSON object, unknown fields beside the known ones (a known field wins)."""
    return {"schema": SCHEMA, **_plain(record)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        known = {
            f.name: _plain(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if f.name != "extra"
        }
        return {
            **known,
            **{k: v for k, v in value.extra.items() if k not in known and k != "schema"},
        }
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def from_dict(cls: type[T], data: dict) -> T:
    """The record in one JSON object. Raises RecordError, which names the field."""
    try:
        return _record(data, cls, "")
    except _FieldError as e:
        raise RecordError(f"field {e.name!r}: {e}") from None


def _record(data: Any, cls: type[T], where: str) -> T:
    """Checks `data` against the type hints of `cls`; `where` is the field that it stands in ("" for
    the line).
    """
    if not isinstance(data, dict):
        raise _FieldError(where or "(line)", f"expected an object, found {_name(data)}")
    if not where:
        # Metrics and other plain dicts may come from elsewhere; a record without its schema is
        # another program's.
        schema = data.get("schema", SCHEMA if cls is dict else None)
        if schema != SCHEMA or isinstance(schema, bool):
            raise _FieldError(
                "schema", f"this version of oelkit reads schema {SCHEMA}, found {schema!r}"
            )
        data = {k: v for k, v in data.items() if k != "schema"}
    if cls is dict:
        return data
    values = {}
    for f in dataclasses.fields(cls):
        if f.name == "extra":
            continue
        name = f"{where}.{f.name}" if where else f.name
        if f.name in data:
            values[f.name] = _value(data[f.name], _hints(cls)[f.name], name)
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise _FieldError(name, "is missing")
    known = {f.name for f in dataclasses.fields(cls)} - {"extra"}
    return cls(**values, extra={k: v for k, v in data.items() if k not in known})


def _value(value: Any, kind: Any, where: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if origin is UnionType:  # only `X | None` is used
        return None if value is None and NoneType in args else _value(value, args[0], where)
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise _FieldError(where, f"expected a list, found {_name(value)}")
        return origin(_value(v, args[0], f"{where}[{i}]") for i, v in enumerate(value))
    if dataclasses.is_dataclass(kind):
        return _record(value, kind, where)
    if kind is Outcome and isinstance(value, str):
        if value not in list(Outcome):
            raise _FieldError(where, f"{value!r} is none of {', '.join(Outcome)}")
        return Outcome(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _FieldError(where, f"expected {kind.__name__}, found {_name(value)}")
    return value


def _name(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"


def _line(record: Any) -> bytes:
    def scalar(value: Any) -> Any:  # NumPy and PyTorch scalars in metrics
        if hasattr(value, "item"):
            return value.item()
        raise TypeError(
            f"a record holds a {type(value).__name__}, which JSON has no form for: {value!r}"
        )

    data = {"schema": SCHEMA, **record} if isinstance(record, dict) else to_dict(record)
    data["schema"] = SCHEMA
    try:
        return json.dumps(data, ensure_ascii=False, default=scalar).encode() + b"\n"
    except (
        UnicodeEncodeError
    ):  # a lone surrogate, as broken model output has it, is legal only when escaped
        return json.dumps(data, default=scalar).encode() + b"\n"


def read_jsonl(path: str | os.PathLike, cls: type[T] = dict) -> list[T]:
    """The records of a file, in order; `cls=dict` gives plain dicts without the schema.

    Raises FileNotFoundError, and RecordError for a bad line: it names file, line and field and
    carries the good ones."""
    records, bad = [], []
    # Split at "\n" only: str.splitlines would also break at U+2028, which JSON text may contain.
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            records.append(_record(json.loads(line.decode()), cls, ""))
        except _FieldError as e:
            bad.append((number, e.name, f"field {e.name!r}: {e}"))
        except (ValueError, RecursionError) as e:
            bad.append((number, None, f"not JSON: {e}"))
    if bad:
        number, _, message = bad[0]
        more = f" ({len(bad) - 1} more bad lines)" if len(bad) > 1 else ""
        raise RecordError(
            f"{path}, line {number}: {message}{more}. Mend or delete the line; the {len(records)} good "
            "records are in this error's .records",
            records,
            bad,
        )
    return records


def write_jsonl(path: str | os.PathLike, records: Iterable[Any]) -> None:
    """Writes records or dicts, one a line, as a whole or not at all: a reader never sees half a
    file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as f:
            for record in records:
                f.write(_line(record))
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def append_jsonl(path: str | os.PathLike, record: Any, *, expected_size: int | None = None) -> int:
    """Appends one record or dict; it is on disk (fsync) when this returns. Returns the new size in
    bytes.

    With `expected_size` (bytes) it raises ConflictError, and writes nothing, if the file has
    another size by now. If writing fails (a full disk), the file is left as it was. A last line
    without its newline is closed first."""
    line = _line(record)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unbuffered: a buffer would try to write its remainder once more on close, after a failure was
    # undone.
    with open(path, "a+b", buffering=0) as f:
        with contextlib.suppress(OSError):  # some network and FUSE file systems have no locks
            if fcntl:
                fcntl.flock(f, fcntl.LOCK_EX)
        size = f.seek(0, os.SEEK_END)
        if expected_size is not None and size != expected_size:
            raise ConflictError(
                f"{path} was changed by somebody else: {size} bytes, last seen with {expected_size}. "
                "Nothing was written; open it again and repeat the last step"
            )
        if size:
            f.seek(size - 1)
            if f.read(1) != b"\n":
                line = b"\n" + line
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[f.write(rest) :]
            os.fsync(f.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                f.truncate(size)
            raise
        return size + len(line)

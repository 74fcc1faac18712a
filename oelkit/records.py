"""The records that the steps exchange: frozen dataclasses, stored as JSON Lines.

One line on disk is `{"schema": 1, ...fields...}`. Fields that this version does not know are kept
in `extra` and written back, so a file can pass through an older oelkit unharmed. Departure: the
paper's code keeps pickles in a temporary folder.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, is_dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints, overload

from .given import not_json, placed, shallow
from .tables import Brief, Shown

try:
    import fcntl
except ImportError:  # Windows: only the size check then guards an append
    fcntl = None
SCHEMA = 1
_ESCAPE = "backslashreplace"  # for lone surrogates in broken model output, as in JSON
T = TypeVar("T")
AnyPath = str | os.PathLike[str]
Message = dict[str, Any]  # role, and content: text, a list of parts, or None
Fields = dict[str, Any]  # the fields of a line, by name
BadLine = tuple[int, str | None, str]  # line, field, message


class Outcome(StrEnum):
    """How a game ended."""

    SUCCESS = "success"
    FAILURE = "failure"
    INVALID = "invalid"
    TURN_LIMIT = "turn_limit"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Turn:
    """One prompt and the model's reply to it."""

    observation: str
    prompt: list[Message]
    reply: str
    action: str | None
    feedback: str
    prompt_tokens: int
    reply_tokens: int
    truncated: bool
    extra: Fields = field(default_factory=Fields, hash=False)


@dataclass(frozen=True, repr=False)
class Trajectory(Shown):
    """One whole game (or one logged conversation)."""

    id: str
    env_id: str
    seed: int | None
    model: str
    round: int
    turns: tuple[Turn, ...]
    outcome: Outcome
    feedback: str
    extra: Fields = field(default_factory=Fields, hash=False)

    def brief(self) -> Brief:
        """How the game ended; one row per turn."""
        rows = [(n, t.action, t.feedback, t.reply) for n, t in enumerate(self.turns, 1)]
        columns = ("turn", "action", "feedback", "reply")
        return f"Trajectory {self.id}: {self.outcome} in {len(rows)} turns", columns, rows


@dataclass(frozen=True)
class State:
    """A training state: the prompt of one turn of a trajectory."""

    id: str
    trajectory_id: str
    turn: int
    prompt: list[Message]
    extra: Fields = field(default_factory=Fields, hash=False)


@dataclass(frozen=True)
class Evidence:
    """The origin of an item: a turn (from 0) of a trajectory."""

    trajectory_id: str
    turn: int
    extra: Fields = field(default_factory=Fields, hash=False)


@dataclass(frozen=True)
class ExperienceItem:
    """One thing learned, in words, with the turns it was learned from."""

    id: str
    text: str
    evidence: tuple[Evidence, ...]
    model: str
    round: int
    draw: int
    extra: Fields = field(default_factory=Fields, hash=False)


class RecordError(ValueError):
    """A bad record. `records` are the good ones of the file; `bad` has a (line, field, message) per
    bad line. Field None means that the line is not JSON, for example because a crash cut it off.
    """

    def __init__(self, message: str, records: Iterable[Any] = (), bad: Iterable[BadLine] = ()):
        super().__init__(message)
        self.records, self.bad = list(records), list(bad)


class _FieldError(RecordError):
    def __init__(self, name: str, message: str):
        super().__init__(f"field {name!r}: {message}")
        self.name = name


class ConflictError(RuntimeError):
    """The file was changed by somebody else since it was last read. Nothing was written."""


@cache
def _hints(cls: type) -> Fields:
    return {name: hint for name, hint in get_type_hints(cls).items() if name != "extra"}


def to_dict(record: Any) -> Fields:
    """Return a record or dict as one JSON object with its unknown fields; known fields win."""
    return {"schema": SCHEMA} | _plain(record) | {"schema": SCHEMA}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        known = {name: _plain(getattr(value, name)) for name in _hints(type(value))}
        extra: Fields = getattr(value, "extra", {})
        return known | {k: v for k, v in extra.items() if k not in known and k != "schema"}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in cast(list[Any], value)]
    return value


def from_dict(cls: Any, data: Any, where: str = "") -> Any:
    """Return the record of class `cls` in a JSON object from field `where` ("": a whole line)."""
    data, is_plain = _expect(data, dict, where or "(line)", "an object"), not is_dataclass(cls)
    if not where:
        # plain dicts can come from elsewhere; a record without a schema is another program's
        schema = data.get("schema", SCHEMA if is_plain else None)
        if type(schema) is not int or schema != SCHEMA:
            raise _FieldError("schema", f"this oelkit reads schema {SCHEMA}, found {schema!r}")
        data = {k: v for k, v in data.items() if k != "schema"}
    if is_plain:
        return data
    hints, values = _hints(cls), Fields()
    for name, hint in hints.items():
        place = f"{where}.{name}" if where else name
        if name in data:
            values[name] = _value(data[name], hint, place)
        elif not hasattr(cls, name):  # no default
            raise _FieldError(place, "is missing")
    return cls(**values, extra={k: v for k, v in data.items() if k not in hints})


def _value(value: Any, kind: Any, where: str) -> Any:
    args, kind = get_args(kind), get_origin(kind) or kind
    if kind is UnionType:  # only `X | None` is used
        return None if value is None and NoneType in args else _value(value, args[0], where)
    if kind in (list, tuple):
        values = enumerate(_expect(value, list, where, "a list"))
        return cast(Any, kind)(_value(v, args[0], f"{where}[{i}]") for i, v in values)
    if is_dataclass(kind):
        return from_dict(kind, value, where)
    if kind is Outcome and isinstance(value, str):
        if value not in list(Outcome):
            raise _FieldError(where, f"{value!r} is none of {', '.join(Outcome)}")
        return Outcome(value)
    return _expect(value, kind, where, kind.__name__)


def _expect(value: Any, kind: type, where: str, what: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        found = f"{type(value).__name__} {str(value)[:40]!r}"
        raise _FieldError(where, f"expected {what}, found {found}")
    return value


def _scalar(value: Any) -> Any:
    if not hasattr(value, "item"):
        raise TypeError(f"a {type(value).__name__} cannot be written as JSON: {value!r}")
    return value.item()  # NumPy and PyTorch scalars in metrics


def to_line(record: Any) -> str:
    """Return a record or dict as its line on disk."""
    return json.dumps(to_dict(record), ensure_ascii=False, default=_scalar) + "\n"


@overload
def read_jsonl(path: AnyPath) -> list[Fields]: ...
@overload
def read_jsonl(path: AnyPath, cls: type[T]) -> list[T]: ...
def read_jsonl(path: AnyPath, cls: type[Any] = dict) -> list[Any]:
    """Read the records of a file, in order; `cls=dict` returns plain dicts without the schema.

    Raises:
        FileNotFoundError: the file does not exist.
        RecordError: a line is bad; it names file, line and field and carries the good ones.
    """
    records, bad = list[Any](), list[BadLine]()
    with open(path, "rb") as lines:  # bytes split at "\n" only, str.splitlines also at U+2028
        for number, line in enumerate(lines, 1):
            try:
                if line := line.strip():
                    records.append(from_dict(cls, shallow(json.loads(line.decode("utf-8-sig")))))
            except _FieldError as e:
                bad.append((number, e.name, str(e)))
            except (ValueError, RecursionError) as e:
                bad.append((number, None, not_json(e)))
    if bad:
        more = f" ({len(bad) - 1} more bad line{'s' * (len(bad) > 2)})" * (len(bad) > 1)
        what = f"{path}, line {bad[0][0]}: {bad[0][2]}{more}"
        kept = f"; the {len(records)} good records are in this error's .records" if records else ""
        raise RecordError(f"{what}. Fix or delete the line{kept}", records, bad)
    return records


def write_text(path: AnyPath, text: str | Iterable[str]) -> None:
    """Write a text, or its parts, atomically; it is on disk (fsync) when this returns."""
    (path := Path(path)).parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with placed(path), open(partial, "wb") as f:
            for part in [text] if isinstance(text, str) else text:
                f.write(part.encode("utf-8", _ESCAPE))
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)  # or a power cut can lose the new name


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to disk (fsync)."""
    with contextlib.suppress(PermissionError):  # Windows cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_jsonl(path: AnyPath, records: Iterable[Any]) -> None:
    """Write records or dicts, one per line, as `write_text` does."""
    write_text(path, map(to_line, records))


def append_jsonl(path: AnyPath, record: Any, *, expected_size: int | None = None) -> int:
    """Append one record or dict; it is on disk (fsync) when this returns the file's size in bytes.

    If the file does not have `expected_size` (bytes, as last seen), raise ConflictError and write
    nothing. A failed write is undone. A last line without its newline is ended first.
    """
    path, line = Path(path), to_line(record).encode("utf-8", _ESCAPE)
    path.parent.mkdir(parents=True, exist_ok=True)
    # unbuffered: a buffer would write its remainder on close, after a failure was undone
    with placed(path), open(path, "a+b", buffering=0) as f:
        with contextlib.suppress(OSError):  # some network and FUSE file systems have no locks
            if fcntl:
                fcntl.flock(f, fcntl.LOCK_EX)
        size = f.seek(0, os.SEEK_END)
        if expected_size is not None and size != expected_size:
            what = f"{path} was changed by somebody else: {size} bytes, {expected_size} before."
            raise ConflictError(f"{what} Nothing was written; open it again and repeat the step")
        f.seek(max(0, size - 1))
        if f.read(1) not in (b"", b"\n"):
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

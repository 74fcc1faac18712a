"""Check what a caller passes to the steps: a wrong type is a clear error before any work starts.

A string is a sequence of characters, so a string in place of a list of texts, states or maps would
run without an error. It is refused here, or read as what it must mean. Errors name their file.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from inspect import formatannotation
from numbers import Real
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")


def a_policy(value: Any, adapters: bool = False) -> None:
    """Refuse what is not a loaded model or lacks adapters. TypeError says how to load one."""
    if not hasattr(value, "encode") or isinstance(value, str):
        told = _shown(value)
        raise TypeError(f"policy: expected a loaded model, got {told}; use oelkit.load_policy(…)")
    if adapters and not hasattr(value, "trainable"):
        told = f"a {type(value).__name__} has neither student nor teacher and cannot be trained"
        raise TypeError(f"policy: {told}; use oelkit.load_policy(…)")


def one(name: str, value: Any, kind: type[T], hint: str = "") -> T:
    """Return the value; TypeError if it is of another kind."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected a {kind.__name__}{hint}, got {_shown(value)}")
    return value


def whole(name: str, value: Any) -> int:
    """Return a whole number, which can be NumPy's; TypeError if it is not one."""
    if not _is_whole(value):
        raise TypeError(f"{name}: expected a whole number, got {_shown(value)}")
    return operator.index(value)


def _is_whole(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def function(name: str, value: Any) -> None:
    """Refuse what cannot be called; None stands for no function."""
    if value is not None and not callable(value):
        raise TypeError(f"{name}: expected a function, got {_shown(value)}")


def count(name: str, value: Any, least: int = 1) -> int:
    """Return a whole number; TypeError if it is not one, ValueError if it is below `least`."""
    if (n := whole(name, value)) < least:
        raise ValueError(f"{name}={n}: need {least} or more")
    return n


def path(name: str, value: Any) -> Path:
    """Return a path; TypeError if it is not one."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name}: expected a path, got {_shown(value)}")
    return Path(cast(Any, value))


def settings(name: str, kind: type[T], value: T | None, changes: Mapping[str, Any]) -> T:
    """Return the settings of a step (None: its defaults) with some of them changed.

    Raises:
        TypeError: `value` is not of the class `kind`, or a change is unknown or has a wrong type.
        ValueError: a change is not one of the choices.
    """
    found: Any = one(name, kind() if value is None else value, kind, " or its fields as keywords")
    hints = get_type_hints(type(found))
    if unknown := [key for key in changes if key not in hints]:
        meant = did_you_mean(unknown[0], hints)
        raise TypeError(f"there is no argument or setting {unknown[0]!r}{meant}")
    given = {**{key: getattr(found, key) for key in hints}, **changes}
    return replace(found, **{key: setting(key, x, hints[key]) for key, x in given.items()})


def setting(name: str, value: Any, kind: Any) -> Any:
    """Return a value that fits a setting's annotation, NumPy numbers and paths as in JSON."""
    if isinstance(value, Real) and hasattr(value, "item"):
        value = cast(Any, value).item()
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if _fits(value, kind):
        return value
    for choice in (kind, *get_args(kind)):
        if get_origin(choice) is Literal:
            raise ValueError(f"{name}={value!r}: choose one of {', '.join(get_args(choice))}")
    raise TypeError(f"{name}: expected {formatannotation(kind)}, got {_shown(value)}")


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if args := get_args(kind):  # X | None
        return any(_fits(value, arg) for arg in args)
    return type(value) is kind or (kind is float and type(value) is int)


def shallow(value: Any, most: int = 200) -> Any:
    """Return what was read as JSON; ValueError if it is nested too deeply to be written again.

    most: levels of lists and objects; below 200 for what becomes part of a record.
    """
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(most):
        level = [x.values() if isinstance(x, dict) else x for x in level]
        level = [x for values in level for x in values if isinstance(x, dict | list)]
        if not level:
            return value
    raise ValueError(f"lists and objects are nested more than {most} deep")


def records(name: str, values: Any, kind: type, hint: str = "") -> list[Any]:
    """Return a list of records; TypeError if it is not a list or holds something else."""
    what = f"{name}: expected a list of {kind.__name__} records{hint}"
    return _each(values, what, lambda value: isinstance(value, kind))


def seeds(name: str, values: Any) -> list[int]:
    """Return the whole numbers of a range, list or array; TypeError if one is something else."""
    what = f"{name}: expected a list or range of whole numbers"
    return [int(value) for value in _each(values, what, _is_whole)]


def texts(name: str, values: Any) -> list[str]:
    """Return a list of texts; a single one becomes a list of one.

    TypeError if one is not a text, or is the name of a file in place of its text."""
    values = [values] if isinstance(values, str | os.PathLike) else values
    fits = _each(
        values,
        f"{name}: expected a text or a list of texts",
        lambda value: isinstance(value, str | os.PathLike),
    )
    for value in map(os.fspath, fits):
        if os.path.isfile(value) or re.fullmatch(r"\S+\.(md|txt|jsonl)", value):
            kept = f"Curation.open({value!r}, LOG).experience()"
            read = kept if value.endswith(".jsonl") else f"Path({value!r}).read_text()"
            raise TypeError(f"{name}: {value!r} is the name of a file; pass its text: {read}")
    return fits


def text_file(path: str | os.PathLike[str]) -> str:
    """Read a UTF-8 file without its byte order mark; ValueError names a file that is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from error


@contextmanager
def placed(path: str | os.PathLike[str]) -> Iterator[None]:
    """Add the file name to write errors, because the system's own lack it if the disk is full."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _each(values: Any, what: str, fits: Callable[[Any], bool]) -> list[Any]:
    """Return the values as a list; TypeError if they are no list, or one of them does not fit."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{what}, got {_shown(values)}")
    values = list(cast(Iterable[Any], values))
    for i, value in enumerate(values):
        if not fits(value):
            raise TypeError(f"{what}; number {i} is {_shown(value)}")
    return values


def _shown(value: Any) -> str:
    return f"the {type(value).__name__} {str(value)[:40]!r}"


def did_you_mean(word: str, known: Iterable[str], alike: str = "^-+") -> str:
    """Return " (did you mean …?)" with the closest known word, or "" if none is close.

    alike: pattern of the parts that are ignored in the comparison.
    """
    known = {re.sub(alike, "", name).lower(): name for name in known}
    close = get_close_matches(re.sub(alike, "", word).lower(), known, 1, cutoff=0.74)
    meant = known[close[0]] if close else word
    return "" if meant == word else f" (did you mean {meant}?)"


def not_json(error: Exception) -> str:
    """Return what is wrong with a line that is not JSON, without the parser's own line number."""
    return re.sub(r"( at)?: line \d+ (column \d+) .*", r" at \2", f"not JSON: {error}")

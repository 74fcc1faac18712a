"""What a caller gives to the steps: wrong types are told in a sentence, before anything is done.

A text is a sequence of characters, so that a text in place of a list of texts, states or maps would
run without a word; here it is refused, or taken for what it must mean. Errors name their file.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from inspect import formatannotation
from numbers import Real
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")


def a_policy(value: Any, adapters: bool = False) -> None:
    """Refuse what is no loaded model, or has no adapters; TypeError says how to load one."""
    if not hasattr(value, "encode") or isinstance(value, str):
        told = _shown(value)
        raise TypeError(f"policy: expected a loaded model, got {told}; use oelkit.load_policy(…)")
    if adapters and not hasattr(value, "trainable"):
        told = f"a {type(value).__name__} has neither student nor teacher, it plays and writes"
        raise TypeError(f"policy: {told}; use oelkit.load_policy(…)")


def one(name: str, value: Any, kind: type[T], hint: str = "") -> T:
    """The value; TypeError where it is of another kind."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected a {kind.__name__}{hint}, got {_shown(value)}")
    return value


def whole(name: str, value: Any) -> int:
    """A whole number, of NumPy as well; TypeError where it is none."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected a whole number, got {_shown(value)}") from None


def count(name: str, value: Any, least: int = 1) -> int:
    """A whole number; TypeError where it is none, ValueError where it is less than `least`."""
    if (n := whole(name, value)) < least:
        raise ValueError(f"{name}={n}: need {least} or more")
    return n


def path(name: str, value: Any) -> Path:
    """A path; TypeError where it is none."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name}: expected a path, got {_shown(value)}")
    return Path(cast(Any, value))


def settings(name: str, kind: type[T], value: T | None, changes: Mapping[str, Any]) -> T:
    """Settings of a step (None: its defaults), some of them changed.

    Raises:
        TypeError: they are something else, there is no such setting, or it is of another kind.
        ValueError: none of those that may be chosen.
    """
    found: Any = one(name, kind() if value is None else value, kind, ", its fields as keywords,")
    hints = get_type_hints(type(found))
    if unknown := [key for key in changes if key not in hints]:
        meant = did_you_mean(unknown[0], hints)
        raise TypeError(f"there is no argument or setting {unknown[0]!r}{meant}")
    given = {**{key: getattr(found, key) for key in hints}, **changes}
    return replace(found, **{key: setting(key, x, hints[key]) for key, x in given.items()})


def setting(name: str, value: Any, kind: Any) -> Any:
    """What a setting's annotation says, numbers of NumPy and paths as JSON has them."""
    if isinstance(value, Real) and hasattr(value, "item"):
        value = cast(Any, value).item()
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if _fits(value, kind):
        return value
    for choice in (kind, *get_args(kind)):
        if get_origin(choice) is Literal:
            raise ValueError(f"{name}={value!r}: say one of {', '.join(get_args(choice))}")
    raise TypeError(f"{name}: expected {formatannotation(kind)}, got {_shown(value)}")


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if args := get_args(kind):  # X | None
        return any(_fits(value, arg) for arg in args)
    return type(value) is kind or (kind is float and type(value) is int)


def shallow(value: Any) -> Any:
    """What was read as JSON; ValueError where it is so deep that it could not be written again."""
    level, most = [value] if isinstance(value, dict | list) else [], 200
    for _ in range(most):
        level = [x.values() if isinstance(x, dict) else x for x in level]
        level = [x for values in level for x in values if isinstance(x, dict | list)]
        if not level:
            return value
    raise ValueError(f"lists and objects within one another, more than {most} deep")


def records(name: str, values: Any, kind: type, hint: str = "") -> list[Any]:
    """The records of a list of them; TypeError where it is none, or holds something else."""
    what = f"{name}: expected a list of {kind.__name__} records{hint}"
    values = _listed(values, what)
    for i, value in enumerate(values):
        if not isinstance(value, kind):
            raise TypeError(f"{what}; number {i} is {_shown(value)}")
    return values


def seeds(name: str, values: Any) -> list[int]:
    """Whole numbers, of a range, list or array; TypeError where they are none."""
    what = f"{name}: expected a list or range of whole numbers"
    values = _listed(values, what)
    for i, value in enumerate(values):
        try:
            operator.index(value)
        except TypeError:
            raise TypeError(f"{what}; number {i} is {_shown(value)}") from None
    return [int(value) for value in values]


def texts(name: str, values: Any) -> list[str]:
    """Experience texts; a single one is a list of one. TypeError where one is no text."""
    what = f"{name}: expected a text or a list of texts"
    values = [values] if isinstance(values, str) else _listed(values, what)
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise TypeError(f"{what}; number {i} is {_shown(value)}")
    return values


def text_file(path: str | os.PathLike[str]) -> str:
    """A text in UTF-8, a byte order mark left out; ValueError names a file that is none."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from error


@contextmanager
def placed(path: str | os.PathLike[str]) -> Iterator[None]:
    """An error of writing names the file, which the system's own does not where a disk is full."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _listed(values: Any, what: str) -> list[Any]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{what}, got {_shown(values)}")
    return list(values)


def _shown(value: Any) -> str:
    return f"the {type(value).__name__} {str(value)[:40]!r}"


def did_you_mean(word: str, known: Iterable[str], alike: str = "^-+") -> str:
    """Which of the known words was meant, in parentheses; nothing where none is close.

    alike: pattern of what does not count.
    """
    known = {re.sub(alike, "", name).lower(): name for name in known}
    close = get_close_matches(re.sub(alike, "", word).lower(), known, 1, cutoff=0.74)
    return f" (did you mean {known[close[0]]}?)" if close else ""

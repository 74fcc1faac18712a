"""Files of a run: written whole or not at all, on disk when a call returns, one writer at a time.

What a person wrote is never deleted, only renamed (`keep_aside`)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from stat import S_ISREG
from typing import Any

from ..given import placed, text_file
from ..records import sync_folder, write_text
from ..text import by_draw

try:
    import fcntl
except ImportError:  # Windows: only the owner named in the file counts
    fcntl = None


def stamp(path: Path | str) -> tuple[int, ...] | None:
    """Return a value that changes when the file is rewritten; None if missing. Opens nothing."""
    try:
        s = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return s.st_mode, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns


def sha256(path: Path) -> str | None:
    """Return the SHA-256 of a file's bytes, or None if there is no file."""
    return _sha256(path, *now) if (now := file_stamp(path)) else None


def file_stamp(path: Path) -> tuple[int, ...] | None:
    """Return `stamp`; ValueError for what is there but no file, as reading a pipe would block."""
    if (now := stamp(path)) and not S_ISREG(now[0]):
        raise ValueError(f"{path}: is not a regular file; move it away")
    return now


@lru_cache(4096)
def _sha256(path: Path, *_: int) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or None if missing; ValueError if it is damaged."""
    file_stamp(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged ({error}); restore it, or move it away") from error


def read_object(path: Path, **kinds: type) -> dict[str, Any] | None:
    """`read_json` of an object whose named fields must have these types."""
    value = read_json(path)
    if isinstance(value, dict):
        wrong = [name for name, kind in kinds.items() if type(value.get(name)) is not kind]
    else:
        wrong = [] if value is None else ["object"]
    if wrong:
        what = f"damaged (no {', '.join(wrong)} in it)"
        raise ValueError(f"{path}: {what}; restore it, or move it away")
    return value


def read_experience(path: Path | str, draws: int = 1) -> list[str]:
    """Return the text of each draw in an experience file, in order of draw number.

    A text without draw headings is that of each of `draws` draws. ValueError if there is text above
    the first heading."""
    head, found = by_draw(text_file(path))
    if found and head:
        what = f"text before the first heading `## Draw {found[0][0]}` belongs to no draw"
        raise ValueError(f"{path}: {what}; move it below a heading, or delete it")
    return [said for _, said in sorted(found, key=lambda one: int(one[0]))] or [head] * draws


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON with `write_text`."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def try_to_write(folder: Path) -> None:
    """Create a run folder and, for a moment, a file in it; ValueError if that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / ".try", "")
        (folder / ".try").unlink(missing_ok=True)  # another process may be trying, too
    except OSError as error:
        raise ValueError(f"cannot write to the run folder {folder}: {error.strerror}") from error


def append_bytes(path: Path, data: bytes) -> None:
    """Append to a file; it is on disk when this returns."""
    with open(path, "ab") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def sync_tree(folder: Path) -> None:
    """Sync a folder and everything in it to disk."""
    for path in [*folder.rglob("*"), folder]:
        sync_folder(path)


def move(source: Path, target: Path) -> None:
    """Rename within a disk and sync the new name; the target must not exist."""
    os.rename(source, target)
    sync_folder(target.parent)


def keep_aside(path: Path) -> Path:
    """Rename NAME.EXT to NAME.old.EXT, or to NAME.old-2.EXT and so on if that is taken."""
    names = (f"{path.stem}.old{f'-{n}' * (n > 1)}{path.suffix}" for n in count(1))
    old = next(old for name in names if not (old := path.with_name(name)).exists())
    move(path, old)
    return old


def commit(partial: Path, root: Path, place: str, ours: dict, manifest: dict, at: Path) -> None:
    """Move a stage's outputs from its own folder into place and write its manifest.

    If the process is killed meanwhile, the stage counts as missing and is done again. A file in the
    way is deleted if the stage wrote it last time (same name and hash), and kept aside if a person
    wrote it.

    Args:
        partial: Folder with the stage's outputs.
        root: The run folder.
        place: Where the files go in it, such as "" or "round_1/".
        ours: Name in the run folder and hash of each file that the stage wrote last time.
        manifest: Gets "outputs": name and hash of each file now.
        at: Path of the manifest.
    """
    (root / place).mkdir(exist_ok=True)
    sync_tree(partial)
    made = {p.relative_to(partial): p for p in sorted(partial.rglob("*")) if p.is_file()}
    manifest["outputs"] = {f"{place}{name.as_posix()}": sha256(path) for name, path in made.items()}
    for new in list(partial.iterdir()):
        old = root / place / new.name
        there = [p for p in old.rglob("*") if p.is_file()] if old.is_dir() else [old]
        if all(ours.get(p.relative_to(root).as_posix()) == sha256(p) for p in there):
            remove(old)
        elif old.exists():
            keep_aside(old)
    write_json(at, manifest)
    for new in list(partial.iterdir()):
        move(new, root / place / new.name)
    partial.rmdir()


def remove(path: Path) -> None:
    """Delete a file or folder if it exists."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what a killed writer left: temporary files and checkpoints of finished stages."""
    for path in folder.rglob(".*.tmp"):
        pid = path.name.split(".")[-2]
        if not (pid.isdigit() and _alive(int(pid))):
            remove(path)
    for path in folder.rglob("manifests/.*.checkpoint"):
        manifest = path.with_name(path.stem[1:] + ".json")
        if manifest.exists() and manifest.stat().st_mtime_ns > path.stat().st_mtime_ns:
            remove(path)


def refuse_links(folder: Path) -> None:
    """Raise ValueError for a symbolic link out of a run folder, as a run from elsewhere can have:
    writes to the run would land outside it."""
    for path in folder.rglob("*"):
        if path.is_symlink():
            refuse_outside(path, folder)


def refuse_outside(path: Path, folder: Path) -> None:
    """Raise ValueError if a file of a folder is elsewhere, through a symbolic link."""
    if not (there := path.resolve()).is_relative_to(folder.resolve()):
        raise ValueError(
            f"{path} is a symbolic link out of {folder}, to {there}: replace it with a copy, or "
            "delete the link"
        )


@contextmanager
def continued(out: str, what: str) -> Iterator[Path]:
    """Yield a file for what is done so far, beside the output; it is deleted once all is done."""
    path = Path(out).with_name(f".{Path(out).name}.{what}")
    try:
        yield path
    except KeyboardInterrupt as stop:
        told = f"{str(stop) or 'interrupted'}; the same command continues there"
        raise KeyboardInterrupt(told) from None
    path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[Callable[[], bool]]:
    """Become the only writer of a run folder; yields a function that says whether this still holds.

    The lock of a dead process on this host is taken over. Readers need no lock.

    Raises:
        ValueError: Another process writes the folder.
    """
    refuse_links(folder)
    path, host = folder / "run.lock", socket.gethostname()
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        free = _flock(descriptor)
        pid, _, owner = os.read(descriptor, 1000).decode(errors="replace").strip().partition(" ")
        alive = owner and (owner != host or (free is None and pid.isdigit() and _alive(int(pid))))
        if free is False or alive:
            os.close(descriptor)
            raise ValueError(
                f"{folder} is being written by process {pid or '?'} on {owner or host}: wait for "
                f"it to end, or delete {path} if it no longer runs"
            )
        if (ours := partial(_same, descriptor, path))():
            break
        os.close(descriptor)  # its last owner just removed it
    try:
        with placed(path):  # the disk may be full
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {host}\n".encode(), 0)
        sweep(folder)
        yield ours
    finally:
        try:
            if ours():  # otherwise it is another process's lock
                path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _same(descriptor: int, path: Path) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def _flock(descriptor: int) -> bool | None:
    """Whether the lock was acquired; None if the file system does not support locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _alive(pid: int) -> bool:
    if pid == os.getpid() or os.name == "nt":  # on Windows, signal 0 would be Ctrl+C
        return os.name == "nt"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True

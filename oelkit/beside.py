"""A second batch of notebooks beside the first, in a process of its own.

A notebook whose metadata say `"oelkit": {"after": "06_evaluate"}` ("" for none) writes nothing that
another reads: it may run while those behind that one do. What it does not: the batch itself, see
`notebooks`; the process is the command line's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

from tqdm import tqdm

from .executed import NotebookError, NotebookResult

THREADS = "OMP_NUM_THREADS"
# the command line; a shell that starts a job in the background lets it ignore Ctrl+C, also ours
COMMAND = """import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from oelkit.__main__ import main
sys.exit(main())"""


def split(paths: Sequence[Path], given: Mapping[str, Any]) -> dict[str | None, list[str]]:
    """The notebooks, by the one behind which they run beside the others.

    Args:
        paths: of the notebooks.
        given: the parameters that a user named. What is larger than the embedded model has the
            machine to itself: with another model or scale nothing runs beside anything.

    Returns:
        Under None those that run one after the other. What waits for a notebook that is not among
        them is one of them.
    """
    together = not {"model", "scale"} & given.keys() and (os.cpu_count() or 1) > 1
    notes = {path.stem: json.loads(path.read_text("utf-8"))["metadata"] for path in paths}
    behind = {name: note.get("oelkit", {}).get("after") for name, note in notes.items()}
    first = [name for name, other in behind.items() if other is None]
    waiting: dict[str | None, list[str]] = {None: []}
    for name, other in behind.items():
        free = together and os.name == "posix" and first and (other == "" or other in first)
        waiting.setdefault(other if free else None, []).append(name)
    return waiting


class Beside:
    """The batch beside the first; what still runs at the end of a `with` is interrupted.

    Args:
        waiting: as of `split`.
        values: of each notebook its parameters.
        run: name of the run.
        timeout: seconds that a notebook may take.
        root: where the command runs.
        folder: where it leaves the copies.
    """

    def __init__(
        self,
        waiting: Mapping[str | None, list[str]],
        values: Mapping[str, Mapping[str, Any]],
        run: str,
        timeout: float,
        root: Path,
        folder: Path,
    ) -> None:
        self.first = waiting[None]
        self.waiting = {name: names for name, names in waiting.items() if name is not None}
        self.values, self.root, self.folder = values, root, folder
        self.options = "--run", run, "--timeout", str(timeout)
        self.child: subprocess.Popen[str] | None = None
        self.relay, self.said, self.stopping, self.alone = Thread(), "", False, False
        self.begun, self.before = list[str](), dict[str, Any]()

    def __enter__(self) -> None:
        # the embedded model's products are too small to share: a thread for each kernel
        if self.waiting and THREADS not in os.environ:
            self.alone, os.environ[THREADS] = True, "1"
        self.start("")

    def __exit__(self, *_: Any) -> None:
        self.stopping = True
        if self.child:
            self.child.send_signal(signal.SIGINT)
            self._ended()
        if self.alone:
            del os.environ[THREADS]

    def start(self, name: str) -> None:
        """Begin what may run behind a notebook, once the batch before it is over; as `wait`."""
        if not (names := self.waiting.pop(name, [])):
            return
        self.wait()
        given = {k: v for n in names for k, v in self.values[n].items() if k != "run"}
        texts = [f"{k}={v if isinstance(v, str) else repr(v)}" for k, v in given.items()]
        command = [sys.executable, "-c", COMMAND, "notebooks", *names, *self.options]
        self.before |= {n: self._mark(n) for n in names}
        self.begun += names
        self.child = subprocess.Popen(
            [*command, *(word for text in texts for word in ("-p", text))],
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl+C is for the first batch, which hands it on
        )
        self.relay = Thread(target=self._relay, args=(self.child,))
        self.relay.start()

    def check(self) -> None:
        """NotebookError where the batch that was begun has failed."""
        if self.child and self.child.poll():
            self.wait()

    def wait(self) -> None:
        """Wait for the batch that was begun; NotebookError where it fails."""
        if self.child and (status := self._ended()):
            raise NotebookError(self.said or f"{', '.join(self.begun)}: exit status {status}")

    def results(self) -> list[NotebookResult]:
        """What became of the notebooks that were begun."""
        new = [name for name in self.begun if self._mark(name) != self.before[name]]
        files = [self.folder / f"{name}.status.json" for name in new]
        return [NotebookResult(**json.loads(file.read_text("utf-8"))) for file in files]

    def _ended(self) -> int:
        assert self.child
        self.relay.join()
        status, self.child = self.child.wait(), None
        return status

    def _relay(self, child: subprocess.Popen[str]) -> None:
        for line in child.stdout or ():
            if line.startswith("error: "):
                self.said = line.removeprefix("error: ").strip()
            elif not self.stopping:
                tqdm.write(line.rstrip(), file=sys.stdout)  # above the bar of the first batch
                sys.stdout.flush()

    def _mark(self, name: str) -> tuple[int, int] | None:
        with suppress(FileNotFoundError):
            found = os.stat(self.folder / f"{name}.status.json")
            return found.st_ino, found.st_mtime_ns
        return None

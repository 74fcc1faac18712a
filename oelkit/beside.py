"""Run a second batch of notebooks beside the first, in its own process.

A notebook with the metadata `"oelkit": {"after": "06_evaluate"}` ("" for no notebook) writes
nothing that another notebook reads, so it can run beside those that follow 06_evaluate. The second
process is the command line; `notebooks` executes each batch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread, current_thread, main_thread
from typing import Any

from tqdm import tqdm

from .executed import NotebookError, NotebookResult
from .runs.files import stamp

THREADS = "OMP_NUM_THREADS"
# Runs the command line. Shells make background jobs ignore Ctrl+C, so the handler is restored. Its
# stdin closes when the first batch ends, however that ends, and it then interrupts itself.
COMMAND = """import os, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
def end():
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=end, daemon=True).start()
from oelkit.__main__ import main
sys.exit(main())"""


@contextmanager
def one_interrupt() -> Iterator[None]:
    """Let the first Ctrl+C stop the body of the `with`, and ignore later ones while it cleans up.

    Applies only in the main thread and if no other handler is set; otherwise nothing changes."""
    default = signal.default_int_handler
    ours = current_thread() is main_thread() and signal.getsignal(signal.SIGINT) is default

    def end(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    if ours:
        signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, default)


def split(paths: Sequence[Path], given: Mapping[str, Any]) -> dict[str | None, list[str]]:
    """Group notebooks by the one after which they may start in the second batch.

    Args:
        paths: notebook files.
        given: parameters that the user set. With another model or scale there is no second batch,
            because a model larger than the embedded one needs the whole machine.

    Returns:
        Names by the notebook they wait for ("": none). None holds those that run one after another,
        including those that wait for a notebook that is not in `paths`.
    """
    together = not {"model", "scale"} & given.keys() and (os.cpu_count() or 1) > 1
    behind = {path.stem: _after(path) for path in paths}
    first = [name for name, other in behind.items() if other is None]
    waiting: dict[str | None, list[str]] = {None: []}
    for name, other in behind.items():
        for _ in behind:  # a notebook that waits for a waiting one joins its batch
            other = behind[other] if other in behind and other not in first else other
        free = together and os.name == "posix" and first and (other == "" or other in first)
        waiting.setdefault(other if free else None, []).append(name)
    return waiting


def _after(path: Path) -> str | None:
    note = json.loads(path.read_text("utf-8"))["metadata"].get("oelkit")
    after = note.get("after") if isinstance(note, dict) else None
    return after if isinstance(after, str) else None


class Beside:
    """The second batch; leaving the `with` block interrupts what still runs.

    Args:
        waiting: result of `split`.
        given: parameters that the user set.
        declared: by notebook, the names of the given parameters that it declares.
        run: name of the run.
        timeout: most seconds per notebook.
        root: working directory of the command.
        folder: where the executed copies go.
    """

    def __init__(
        self,
        waiting: Mapping[str | None, list[str]],
        given: Mapping[str, Any],
        declared: Mapping[str, Collection[str]],
        run: str,
        timeout: float,
        root: Path,
        folder: Path,
    ) -> None:
        self.first = waiting[None]
        self.waiting = {name: names for name, names in waiting.items() if name is not None}
        self.given = {k: v for k, v in given.items() if k != "run"}
        self.declared, self.root, self.folder = declared, root, folder
        self.options = "--run", run, "--timeout", str(timeout)
        self.child: subprocess.Popen[str] | None = None
        self.relay, self.said, self.stopping, self.alone = Thread(), "", False, False
        self.begun: dict[str, Any] = {}  # notebook: stamp of its status before
        self.status = 0

    def __enter__(self) -> None:
        # the embedded model's matrix products are too small to split: one thread per kernel
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
        """Start the notebooks that wait for `name`, once those started before are done (`wait`)."""
        if not (names := self.waiting.pop(name, [])):
            return
        self.wait()
        known = set().union(*(self.declared[n] for n in names))
        given = {k: v for k, v in self.given.items() if k in known}
        texts = [f"{k}={v if isinstance(v, str) else repr(v)}" for k, v in given.items()]
        command = [sys.executable, "-c", COMMAND, "notebooks", *names, *self.options]
        self.begun |= {n: self._mark(n) for n in names}
        self.child = subprocess.Popen(
            [*command, *(word for text in texts for word in ("-p", text))],
            cwd=self.root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl+C goes to the first batch, which passes it on
        )
        self.relay = Thread(target=self._relay, args=(self.child,))
        self.relay.start()

    def check(self) -> None:
        """Raise NotebookError if the batch that was started has failed."""
        if self.child and self.child.poll():
            self.wait()

    def wait(self) -> None:
        """Wait for the batch that was started. Raises NotebookError if it failed."""
        if self.child and (status := self._ended()):
            raise NotebookError(self.said or f"{', '.join(self.begun)}: exit status {status}")

    def results(self) -> list[NotebookResult]:
        """Return the results of the notebooks that were started."""
        new = [name for name, before in self.begun.items() if self._mark(name) != before]
        files = [self.folder / f"{name}.status.json" for name in new]
        found = [NotebookResult(**json.loads(file.read_text("utf-8"))) for file in files]
        left = [name for name in self.begun if name not in new]
        if left and self.status and all(one.status == "passed" for one in found):
            reason = self.said or f"exit status {self.status}"  # for example killed
            found.append(NotebookResult(left[0], "failed", reason=reason))
        return found

    def _ended(self) -> int:
        assert self.child
        self.relay.join()
        self.status, child, self.child = self.child.wait(), self.child, None
        if child.stdin:
            child.stdin.close()
        return self.status

    def _relay(self, child: subprocess.Popen[str]) -> None:
        for line in child.stdout or ():
            if line.startswith("error: "):
                self.said = line.removeprefix("error: ").strip()
            elif not self.stopping:
                tqdm.write(line.rstrip(), file=sys.stdout)  # above the bar of the first batch
                sys.stdout.flush()

    def _mark(self, name: str) -> tuple[int, ...] | None:
        return stamp(self.folder / f"{name}.status.json")

"""Editor and viewer as standalone apps: Voila serves a notebook whose only cell calls `page`."""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..curation import Curation
from ..logs import read_chats
from ..prompts import PromptSet, with_experience
from ..records import RecordError, Trajectory, read_jsonl
from ..runs.files import file_stamp, read_json, refuse_outside
from ..runs.settings import as_argument, check_settings, no_run, run_folder
from ..runs.stages import status
from ..startup import skip_slow_imports
from ..statements import read_worth
from ..templates import Templated

NOTEBOOK = Path(__file__).with_name("oelkit.ipynb")
# the view fills the page, and is dark if the system is (Voila is always light); until it is there,
# neither the static table nor Jupyter's "Loading widget" is shown
STYLE = """<style>
body { overflow: hidden; }
.oel-static, .jupyter-widgets:not(:has(*)) { display: none; }
.oel {
  color-scheme: light dark !important;
  --bg: light-dark(#fff, #15171c) !important; --text: light-dark(#14171c, #e8eaef) !important;
  position: fixed !important; inset: 0; width: 100vw; height: 100vh !important;
  border: 0 !important; border-radius: 0 !important; resize: none !important;
}
</style>"""
# Voila enables developer warnings; Ctrl+C goes to the command, which ends the server
VOILA = (
    "import signal, warnings; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "from oelkit.startup import skip_slow_imports; skip_slow_imports(); import voila.app; "
    "warnings.simplefilter('ignore'); voila.app.main()"
)
# as in voila.json: pages load nothing from outside this machine
CSP = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


def serve(kind: str, what: str, round: int | None, port: int | None, browser: bool) -> int:
    """Serve a view ("curate" or "view") at 127.0.0.1 until Ctrl+C; return Voila's exit status.

    `what` is a file, or a run by name or folder. Without `round` it is the last one with the file
    to show, and without `port` any free one.

    Raises:
        ValueError: There is nothing to show, or the port is taken. Raised before the server starts.
        ImportError: Voila is not installed.
    """
    path = place(kind, what, round)
    # only to find errors early; without the tokenizer, which takes long to load
    editor(path, teacher=False) if kind == "curate" else viewer(path)
    if find_spec("voila") is None:
        raise ImportError(f"oelkit {kind} needs Voila: pip install voila")
    with socket.socket() as free:
        if os.name == "posix":  # reuse a port just closed; Windows would share one in use
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind(("127.0.0.1", port or 0))
        except (OSError, OverflowError) as error:  # otherwise Voila silently takes another
            raise ValueError(f"port {port} at 127.0.0.1: {error}; choose another") from error
        at: int = free.getsockname()[1]
    token = os.environ.get("JUPYTER_TOKEN") or secrets.token_hex(24)
    # passed as an environment variable, because `ps` shows arguments
    given = {"OELKIT_APP": json.dumps([kind, str(path.resolve())]), "JUPYTER_PREFER_ENV_PATH": "1"}
    given |= {"JUPYTER_TOKEN": token}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # end the server with the command
    printed: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    server = subprocess.Popen(_voila(at, browser), env=os.environ | given, **printed)
    ends, listens = threading.Event(), False
    printer = threading.Thread(target=_pass_on, args=(server.stdout, ends), daemon=True)
    printer.start()
    try:
        while server.poll() is None and not (listens := _listens(at)):
            time.sleep(0.1)
        if listens:
            print(f"{path}: http://127.0.0.1:{at}/?token={token} (Ctrl+C ends it)", flush=True)
        server.wait()
        printer.join(5)  # why it ended
        return server.returncode
    except KeyboardInterrupt:
        return 0
    finally:
        ends.set()
        try:
            if listens:  # let it end its kernels
                server.terminate()
                server.wait(10)
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            pass
        finally:
            server.kill()


def _pass_on(lines: Any, ends: threading.Event) -> None:
    """Print what the server and its kernels print, until they end: then they only complain."""
    for line in lines:
        if not ends.is_set():
            print(line.decode(errors="replace"), end="", file=sys.stderr, flush=True)


def _voila(port: int, browser: bool) -> list[str]:
    """The command that starts the server."""
    # a page that is closed ends its kernel, for which it needs this cookie; Voila sets none
    cookie = f"_xsrf={secrets.token_hex(16)}; Path=/; SameSite=Strict"
    headers = {"Content-Security-Policy": CSP, "Set-Cookie": cookie}
    # Jupyter's own time-out exceeds Tornado's limit, which logs a warning
    server = {"headers": headers, "ws_ping_timeout": 30_000}
    command = [sys.executable, "-W", "ignore", "-c", VOILA, str(NOTEBOOK), "--Voila.ip=127.0.0.1"]
    command += [f"--port={port}", f"--Voila.tornado_settings={server}", "--Voila.log_level=ERROR"]
    # keep a kernel with all imports ready for the next page
    command += ["--preheat_kernel=True", "--pool_size=1", "--show_tracebacks=True"]
    command += [] if browser else ["--no-browser"]
    # other users of this machine can reach the ports; the kernel warns about it
    command += ["--KernelManager.transport_encryption=auto"]
    return [*command, "--Voila.auto_token=True"]


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def place(kind: str, what: str, round: int | None) -> Path:
    """Return the file to show: a file as given, or that of a run's given or last round."""
    name = "items.jsonl" if kind == "curate" else "trajectories.jsonl"
    path = Path(what)
    if not path.exists():
        with suppress(ValueError):  # otherwise it is no run's name but a file's
            path = run_folder(what)
    for file in (path, path / name):  # a file, or the folder of a round
        if file.is_file():
            if round is not None:
                raise ValueError(f"{file} is a file: leave out the round, or name the run")
            return file
    rounds = {p.parent.name[6:]: p for p in path.glob(f"round_*/{name}")}
    rounds = {int(k): p for k, p in rounds.items() if k.isdecimal()}  # a person can add others
    found = rounds.get(max(rounds, default=0) if round is None else round)
    if not found:
        why = f"no round of {path} has {name}" if path.is_dir() else no_run(path)
        raise ValueError(f"{what}: there is no such file, and {why}")
    return found


def page() -> None:
    """Show the view that `serve` was asked for; the notebook's only cell."""
    from IPython import get_ipython
    from IPython.display import HTML, display

    skip_slow_imports()
    from voila.utils import wait_for_request

    # a page that is closed interrupts its kernel and ends it; if busy, it would report both
    kernel = get_ipython().kernel
    kernel.pre_handler_hook = lambda: None  # leaves interrupts ignored
    for log in (kernel.log, logging.getLogger("tornado.general")):  # nor of a server that ended
        log.setLevel(logging.CRITICAL)
    kind, path = json.loads(os.environ["OELKIT_APP"])
    view = editor if kind == "curate" else viewer
    if os.environ.get("VOILA_PREHEAT") == "True":
        view(Path(path))  # imports everything; what is shown is read when the page is asked for
        warnings.simplefilter("ignore")  # of a server that is too busy to answer
        while "SERVER_SOFTWARE" not in os.environ:
            wait_for_request()
            time.sleep(0.1)
    display(HTML(STYLE), view(Path(path)))


def editor(path: Path, teacher: bool = True) -> Any:
    """Return the editor of an items.jsonl, with games, prompt and budget if it is part of a run.

    Without `teacher` it shows neither prompt nor tokens, and loads no tokenizer.
    """
    from .widgets import experience_editor

    log = _log(path.with_name("curation.jsonl"))
    options: dict[str, Any] = {"games": games(path.with_name("trajectories.jsonl"))}
    options["worth"] = read_worth(path.with_name("worth.jsonl"))
    record = path.parent.parent / "run.json"
    if record.is_file():
        about = read_json(record)
        options |= _teacher(about, options["games"]) if teacher else {}
        options |= {"on_change": lambda: _out_of_date(record.parent)}
    return experience_editor(Curation.open(path, log), **options)


def _log(path: Path) -> Path:
    """Return a log to read and append to; ValueError if a link or a pipe stands in its place."""
    run = next((p for p in path.parents[:2] if (p / "run.json").exists()), path.parent)
    refuse_outside(path, run)
    file_stamp(path)
    return path


def _teacher(about: dict[str, Any], games: list[Trajectory]) -> dict[str, Any]:
    """Options for tokens, budget and the whole prompt, if the run's model is available."""
    from ..model.source import load_tokenizer

    try:
        check_settings(settings := about["settings"])
        tokenizer = load_tokenizer(settings["model"])
        model = Templated(settings["model"], tokenizer, settings.get("enable_thinking"))
        prompts, budget = PromptSet(**about["prompts"]), settings["budget_tokens"]
    except (OSError, ValueError, KeyError, TypeError):  # model gone, or a run in another format
        return {}
    first = [{"role": "user", "content": ""}]
    state = next((turn.prompt for game in games for turn in game.turns), first)

    def prompt(experience: str) -> str:
        return model.render(with_experience(prompts, state, experience))

    return {"tokenizer": tokenizer, "budget_tokens": budget, "prompt": prompt}


def _out_of_date(run: Path) -> str:
    """Name the first stage that the decisions made out of date, and the command to redo it."""
    try:
        stale = [stage for stage in status(run) if stage.state == "stale" and not stage.follows]
    except ValueError as error:
        return str(error)
    if not stale:
        return ""
    return (
        f"{stale[0].name} is out of date; redo it with: oelkit loop --run {as_argument(run)} --redo"
    )


def viewer(path: Path) -> Any:
    """Return the viewer of trajectories or of a chat log, with the items of its round, if any.

    Tags and comments go to the run's comments.jsonl, or to a .comments.jsonl beside the file.
    """
    from .widgets import trajectory_viewer

    items = path.with_name("items.jsonl")
    seen = Curation.open(items, _log(path.with_name("curation.jsonl"))) if items.is_file() else ()
    run = path.parent.parent
    of_run = (run / "run.json").is_file()
    log = run / "comments.jsonl" if of_run else path.with_name(f"{path.stem}.comments.jsonl")
    return trajectory_viewer(games(path), items=seen, comments=Curation([], _log(log)))


def games(path: Path) -> list[Trajectory]:
    """Read the trajectories of a file, which can be a chat log; [] if there is no file."""
    if not path.is_file():
        return []
    try:
        return [game for game in read_jsonl(path, Trajectory) if game.turns]
    except RecordError:
        with warnings.catch_warnings(action="ignore"):  # the viewer names the lines left out
            return read_chats(path, on_bad="skip")

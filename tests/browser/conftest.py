"""Fixtures for the browser tests: Debian's Chromium, driven by playwright. Pages must not request
anything outside this machine.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .pages import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LOCAL = (
    "file:",  # of the site; no page from a server can load them
    "http://127.0.0.1",
    "http://localhost",
    "ws://127.0.0.1",
    "ws://localhost",
    "data:",
    "blob:",
    "about:",
)
THEMES = {"light": {}, "dark": {"--jp-layout-color0": "#111", "--jp-ui-font-color0": "#fff"}}
# JupyterLab's own colours when it reports a dark theme. The light page has none, as in Colab.
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>test</title>
<body data-jp-theme-light="{light}" style="margin:0;padding:12px;background:{ground};{variables}">
<main id="here"></main></body></html>"""
# The model that anywidget passes to a view, with the real Python side behind `kernel`.
MODEL = """async ([source, style]) => {
  document.head.append(Object.assign(document.createElement("style"), { textContent: style }));
  const { default: view } = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  const heard = [], tell = (event, ...news) => heard.forEach(([name, f]) => name === event && f(...news));
  window.model = {
    get: (name) => window.traits[name], save_changes: () => save(window.traits), off() {},
    set(name, value) { window.traits[name] = value; tell(`change:${name}`); },
    on: (name, callback) => heard.push([name, callback]),
    hear: (answers) => answers.forEach((answer) => tell("msg:custom", answer, [])),
    send: async (message) => model.hear(await kernel(message)),
  };
  await view.render({ model, el: document.getElementById("here") });
}"""


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker(pytest.mark.slow)
        if not CHROMIUM:
            if os.environ.get("CI") == "true":
                raise pytest.UsageError("no chromium: .ci/run installs Debian's")
            item.add_marker(pytest.mark.skip(reason="no chromium here: apt-get install chromium"))


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser):
    """Open pages that fail the test at its end after an outside request, an error or a dialog (which
    an injected script would open).
    """
    pages, wrong = [], []

    def watch(request):
        if not request.url.startswith(LOCAL):
            wrong.append(f"outside request: {request.url}")

    def blocked(request):  # blocked by the page's own policy, before anything left the browser
        if request.failure == "csp":
            wrong.remove(f"outside request: {request.url}")

    def make(width=1200, height=800, **options):
        page = browser.new_context(
            viewport={"width": width, "height": height}, **options
        ).new_page()
        page.on("request", watch)
        page.on("requestfailed", blocked)
        page.on("websocket", watch)
        page.on("pageerror", lambda error: wrong.append(f"error on the page: {error}"))
        page.on(
            "dialog",
            lambda dialog: (wrong.append(f"a script ran: {dialog.message}"), dialog.dismiss()),
        )
        page.set_default_timeout(200_000)
        pages.append(page)
        return page

    make.wrong = wrong
    yield make
    for page in pages:
        page.context.close()
    assert not wrong, wrong


@pytest.fixture
def show(new_page):
    """Show a view on a plain page: front end in Chromium, Python side here, a fake Jupyter between."""

    def show(widget, theme="light", **options):
        page = new_page(color_scheme=theme, **options)
        answers = []
        widget.send = lambda content, buffers=None: answers.append(content)

        def kernel(message):
            answers.clear()
            widget._handle_custom_msg(message, [])
            return list(answers)

        page.expose_function("kernel", kernel)
        page.expose_function("save", widget.set_state)
        variables = "".join(f"{name}:{value};" for name, value in THEMES[theme].items())
        page.set_content(
            PAGE.format(
                light=str(theme == "light").lower(),
                variables=variables,
                ground={"light": "#fff", "dark": "#111"}[theme],
            )
        )
        traits = {
            name: value
            for name, value in widget.get_state().items()
            if isinstance(value, (str, int, list, dict))
        }
        page.evaluate("traits => { window.traits = traits; }", traits)
        page.evaluate(MODEL, [widget._esm, widget._css])
        return page

    show.model = MODEL  # to show it again
    return show


@pytest.fixture
def place(tmp_path):
    """A temporary repository root, which holds runs/."""
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "00_tour.ipynb", tmp_path / "notebooks")  # marks a root
    for name in ("oelkit", "data", "voila.json"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.fixture
def serve(place):
    """Start a server in `place`, wait until it answers, and stop it with its kernels after the test."""
    started = []

    def serve(*command):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HOME": str(place),
            "JUPYTER_CONFIG_DIR": str(place / "config"),
            "JUPYTER_DATA_DIR": str(place / "jupyter"),
        }
        log = (place / "server.log").open("w")  # stays open as long as the server runs
        process = subprocess.Popen(
            [sys.executable, "-m", *command, f"--port={port}"],
            cwd=place,
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        started.append((process, log))
        for _ in range(480):  # 4 minutes
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return f"http://127.0.0.1:{port}"
            except OSError:
                assert process.poll() is None, (place / "server.log").read_text()
                time.sleep(0.5)
        raise AssertionError((place / "server.log").read_text())

    yield serve
    for process, log in started:
        os.killpg(process.pid, signal.SIGKILL)  # if stopped gently, Voila waits for its kernels
        process.wait()
        log.close()

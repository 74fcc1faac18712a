"""`oelkit curate` and `oelkit view`: a widget alone on a page, in Voila."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from oelkit.records import read_jsonl

from .pages import PICTURES, ROOT, SAMPLE, SLOW, press, until


@pytest.mark.parametrize("kind, row", [("curate", ".oel-editor"), ("view", ".oel-viewer")])
def test_the_view_is_all_that_is_on_the_page(serve, place, new_page, kind, row, monkeypatch):
    mine = shutil.copytree(SAMPLE, place / "mine")
    (mine / "curation.jsonl").unlink()
    what = mine / ("items.jsonl" if kind == "curate" else "trajectories.jsonl")
    monkeypatch.setenv("JUPYTER_TOKEN", "for-me-alone")
    url = serve("oelkit", kind, str(what), "--no-browser")
    page = new_page(1400, 900)
    stranger = page.goto(url, timeout=SLOW, wait_until="commit")
    assert stranger.status == 403 or "/login" in page.url, "another user of the machine"
    page.context.clear_cookies()  # those of the login page
    page.goto(f"{url}/?token=for-me-alone", timeout=SLOW, wait_until="commit")
    page.locator(".oel-row, .ov-row").first.wait_for(timeout=SLOW)
    press(page, "/")  # without a click
    page.wait_for_function("document.activeElement.type == 'search'")
    page.locator(".oel-row, .ov-row").first.click()
    box = page.locator(row).bounding_box()
    assert (box["x"], box["y"], box["width"], box["height"]) == (0, 0, 1400, 900)
    assert page.evaluate("document.documentElement.scrollHeight") == 900
    grounds = []
    for scheme in ("light", "dark"):  # as the system is
        page.emulate_media(color_scheme=scheme)
        grounds.append(page.locator(row).evaluate("e => getComputedStyle(e).backgroundColor"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(21, 23, 28)"]
    if PICTURES:
        page.screenshot(path=f"{PICTURES}/app_{kind}.png")
    if kind == "curate":
        press(page, "x")
        log = mine / "curation.jsonl"
        until(page, lambda: log.exists() and [o["op"] for o in read_jsonl(log)] == ["reject"])
        page.goto(url, timeout=SLOW, wait_until="commit")  # another kernel; the first one ends
        page.get_by_text("curation.jsonl: 1 operation").wait_for(timeout=SLOW)
    else:
        assert page.locator(".ov-row").count() > 3
    may = {cookie["name"] for cookie in page.context.cookies()}
    assert "_xsrf" in may, "a closed page ends its kernel"
    said = (place / "server.log").read_text()  # no warning of a kernel or a server
    assert "(Ctrl+C ends it)" in said and len(said.splitlines()) == 1, said


@pytest.mark.skipif(os.name != "posix", reason="no SIGTERM there")
def test_a_server_goes_with_its_command_and_without_a_word_of_what_is_still_starting(place):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "oelkit", "view", str(SAMPLE / "trajectories.jsonl")]
    command += ["--no-browser", f"--port={port}"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(place)}
    said = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    app = subprocess.Popen(command, cwd=place, env=env, start_new_session=True, **said)
    try:
        assert answers(port, True)
        of = psutil.Process(app.pid).children(recursive=True)
        at = [c.laddr for one in of for c in one.net_connections() if c.status == "LISTEN"]
        assert port in {address.port for address in at}
        assert {address.ip for address in at} == {"127.0.0.1"}, "no other machine reaches them"
        said = app.stdout.readline()  # once it is printed, for the port answers before
        app.terminate()
        assert app.wait(60) == 143 and answers(port, False)
        assert "(Ctrl+C ends it)" in said and app.stdout.read() == "", said
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(app.pid, signal.SIGKILL)


def answers(port, wanted):
    """Wait until the port answers, or no longer answers."""
    for _ in range(480):  # 4 minutes
        with socket.socket() as tried:
            if (tried.connect_ex(("127.0.0.1", port)) == 0) == wanted:
                return True
        time.sleep(0.5)
    return False

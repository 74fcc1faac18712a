"""Helpers for the browser tests."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "data" / "sample"
PICTURES = os.environ.get("OELKIT_PICTURES")  # a folder, if you want to look at the screenshots

SLOW = 240_000  # ms for a kernel to start and import torch on a busy machine
JUPYTER = ("--no-browser", "--ip=127.0.0.1", "--allow-root", "--IdentityProvider.token=")


def open_notebook(page, address):
    """Open a notebook in JupyterLab or Notebook 7 and wait for its kernel."""
    page.goto(address, timeout=SLOW, wait_until="commit")
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=SLOW)
    wait_for_kernel(page)


def wait_for_kernel(page):
    """Wait until the open notebook's kernel is idle."""
    page.wait_for_function(
        "jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status == 'idle'",
        timeout=SLOW,
    )


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def until(page, true):
    """Let the page and the Python side work until a condition holds."""
    for _ in range(4800):
        if true():
            return
        page.wait_for_timeout(50)
    raise AssertionError("did not become true in 4 minutes")

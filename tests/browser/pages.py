"""What the browser tests do on a page."""

import os
from pathlib import Path

SAMPLE = Path(__file__).parents[2] / "data" / "sample"
PICTURES = os.environ.get("OELKIT_PICTURES")  # a folder, where one wants to look at the screenshots


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def until(page, true):
    """Let the page and the Python side work until it is true."""
    for _ in range(4800):
        if true():
            return
        page.wait_for_timeout(50)
    raise AssertionError("did not become true in 4 minutes")

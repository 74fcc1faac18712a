"""Four of the kills of `make soak`, one of each kind, on shorter runs."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def test_runs_that_are_killed_end_with_the_bytes_of_one_that_was_not():
    command = [sys.executable, "tests/soak.py", "--kills", "4", "--short"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

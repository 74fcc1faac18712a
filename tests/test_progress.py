"""Progress bars and lines."""

import io
import os
import pty
import subprocess
import sys
import termios

import pytest

from oelkit.progress import Bar


def work(show=True, stop=4):
    with Bar("play", 4, "game", show) as bar:
        for _ in range(stop):
            bar.update()
            bar.set_postfix(won=1, refresh=False)
    for _ in (steps := Bar("train", range(2, 5), "step", show)):
        steps.set_postfix(loss="0.5", refresh=False)


def test_a_log_gets_one_line_at_the_end_and_nothing_on_stderr(capsys):
    work()
    out, err = capsys.readouterr()
    assert out == "play: 4 games in 00:00, won=1\ntrain: 5 steps in 00:00, loss=0.5\n" and err == ""
    work(stop=3)
    assert "play: 3 of 4 games in" in capsys.readouterr().out
    work(show=False)
    assert capsys.readouterr() == ("", "")


def test_a_log_gets_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr("oelkit.progress.EVERY", 0)
    with Bar("extract", 160, "reading", True) as bar:
        bar.mininterval = 0
        bar.set_postfix(items=7, refresh=False)
        bar.update(4)
        assert "extract: 4 of 160 readings in 00:00, items=7\n" in capsys.readouterr().out
    assert capsys.readouterr().out.count("\n") == 1


def test_a_terminal_gets_a_bar_with_loss_and_time_left():
    """In a new process on a real terminal, with stderr separate."""
    code = "import sys; sys.path.insert(0, 'tests'); from test_progress import work; work()"
    inner, outer = pty.openpty()
    termios.tcsetwinsize(inner, (40, 120))
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=outer, stderr=subprocess.PIPE, text=True, check=True
    )
    os.close(outer)
    shown = os.read(inner, 100_000).decode()
    assert "play: 100%" in shown and "<00:00" in shown and "loss=0.5" in shown
    assert "games in" not in shown and done.stderr == ""


class Kernel(io.StringIO):
    """A notebook's stdout, recognised by the name of its module."""


def test_a_notebook_gets_a_bar_on_stdout(monkeypatch):
    monkeypatch.setattr(Kernel, "__module__", "ipykernel.iostream")
    monkeypatch.setattr(sys, "stdout", kernel := Kernel())
    work()
    assert "train: 100%" in kernel.getvalue() and "loss=0.5" in kernel.getvalue()


def test_a_broken_loop_still_says_how_far_it_came(capsys):
    with pytest.raises(ValueError), Bar("play", 4, "game", True) as bar:
        bar.update()
        raise ValueError
    assert "play: 1 of 4 games" in capsys.readouterr().out

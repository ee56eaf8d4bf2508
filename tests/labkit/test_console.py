"""What a reader sees while something takes its time: in a pipe, and on a real terminal (a pty)."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

WORK = """
import time
from labkit.console import working
with working("Importing [vLLM]") as note:
    note("1 of 2")
    time.sleep({seconds})
"""


def run(seconds: float, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WORK.format(seconds=seconds)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"FORCE_COLOR": "1"}, {"TERM": "dumb"}])
def test_in_a_pipe_there_are_plain_lines(environment: dict[str, str]) -> None:
    assert run(0, **environment).stdout == "Importing [vLLM] ...\n"


def test_in_a_pipe_the_end_is_told_when_it_was_worth_waiting_for() -> None:
    first, last = run(2.1).stdout.splitlines()
    assert first == "Importing [vLLM] ..."
    assert last.startswith("Importing [vLLM]: done in 2.")
    assert last.endswith(" s")


def test_a_failure_is_not_called_done() -> None:
    code = WORK.format(seconds=0) + "    time.sleep(2.1); raise SystemExit(3)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 3
    assert "done" not in ended.stdout


@pytest.mark.parametrize("no_color", ["", "1"])
def test_on_a_terminal_a_spinner_shows_how_far_it_is_and_leaves_nothing(no_color: str) -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "NO_COLOR": no_color, "COLUMNS": "80"}
    with subprocess.Popen([sys.executable, "-c", WORK.format(seconds=0.5)], stdout=theirs, env=environment):
        os.close(theirs)
        sent = b""
        try:
            while chunk := os.read(ours, 4096):
                sent += chunk
        except OSError:  # Linux's word for the end of a pty
            pass
    os.close(ours)
    text = sent.decode()
    assert "Importing [vLLM] 1 of 2" in text
    assert "0:00:0" in text
    assert text.rstrip("\n").endswith("\x1b[2K")
    assert ("\x1b[3" in text) == (not no_color), "colours follow NO_COLOR"


def test_in_a_pipe_lines_are_80_columns_wide_whatever_terminal_is_near() -> None:
    code = "from labkit.console import console; print(console.width)"
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    ran = subprocess.run([sys.executable, "-c", code], stdin=theirs, stdout=subprocess.PIPE, env=environment, check=True)
    os.close(ours)
    os.close(theirs)
    assert ran.stdout.strip() == b"80"

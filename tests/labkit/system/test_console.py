"""What a reader sees while something takes its time: in a pipe, and on a real terminal (a pty)."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

WORK = """
import time
from labkit.system.console import working
with working("Importing [vLLM]") as note:
    note("1 of 2")
    time.sleep({seconds})
"""


def run(seconds: float, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WORK.format(seconds=seconds)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)


def test_what_a_terminal_would_act_on_is_spelled_out() -> None:
    told = "from labkit.system.console import print_lines; print_lines('a\\x1b]0;title\\x07b\\n[c]\\u202e')"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout == "a\\x1b]0;title\\x07b\n[c]\\u202e\n"


def on_a_terminal(code: str, **environment: str) -> str:
    """What Python running the code sends to a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    known = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80"} | environment
    with subprocess.Popen([sys.executable, "-c", code], stdout=theirs, env=known):
        os.close(theirs)
        sent = b""
        try:
            while chunk := os.read(ours, 4096):
                sent += chunk
        except OSError:  # Linux's word for the end of a pty
            pass
    os.close(ours)
    return sent.decode()


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
    text = on_a_terminal(WORK.format(seconds=0.5), NO_COLOR=no_color)
    assert "Importing [vLLM] 1 of 2" in text
    assert "0:00:0" in text
    assert text.rstrip("\n").endswith("\x1b[2K")
    assert ("\x1b[3" in text) == (not no_color), "colours follow NO_COLOR"


def test_in_a_pipe_lines_are_80_columns_wide_whatever_terminal_is_near() -> None:
    code = "from labkit.system.console import console; print(console.width)"
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    ran = subprocess.run([sys.executable, "-c", code], stdin=theirs, stdout=subprocess.PIPE, env=environment, check=True)
    os.close(ours)
    os.close(theirs)
    assert ran.stdout.strip() == b"80"


def test_a_terminal_breaks_a_sentence_between_words_and_a_pipe_nowhere() -> None:
    path = "/" + "directory/" * 9
    text = "first words " * 6 + f"in {path} and a [name]\n  next"
    code = f"from labkit.system.console import print_text\nprint_text({text!r}, indent='    ')"
    lines = [f"    {'first words ' * 6}in", f"    {path}", "    and a [name]", "      next"]
    assert on_a_terminal(code).splitlines() == lines
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert piped.stdout.splitlines() == [" ".join([lines[0], path, "and a [name]"]), lines[3]]

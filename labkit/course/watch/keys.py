"""Reads single keys from a terminal, without Enter."""

from __future__ import annotations

import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def single_keys() -> Iterator[int | None]:
    """Yields the file descriptor to read keys from, or None without a terminal; restores the terminal's settings."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield None
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)  # Ctrl-C still sends SIGINT
        yield terminal
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)

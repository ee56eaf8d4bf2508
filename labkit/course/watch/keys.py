"""Single keys from a terminal, without Enter; the terminal is given back as it was."""

from __future__ import annotations

import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def single_keys() -> Iterator[int | None]:
    """Yields the file descriptor that keys come from, or None where nobody can press any: in a pipe."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield None
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)  # Ctrl-C is still Ctrl-C
        yield terminal
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)

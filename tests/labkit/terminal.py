"""A command in a real terminal of 80 columns and 24 lines, and what somebody sitting there would see."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pyte

from labkit.system.labs import ROOT

PATIENCE = 60.0
"""Seconds that anything may take on a machine that does other things as well."""


class Terminal:
    """``python -m labkit`` with these arguments; keys go in by ``press``, and ``lines`` is the screen."""

    def __init__(self, *arguments: str, height: int = 24, environment: dict[str, str] | None = None, cwd: Path = ROOT) -> None:
        self.screen = pyte.Screen(80, height)
        self.stream = pyte.ByteStream(self.screen)
        self.sent = b""
        left_out = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "LAB_IMPL")
        inherited = {name: value for name, value in os.environ.items() if name not in left_out}
        self.process = pexpect.spawn(
            sys.executable,
            ["-P", "-m", "labkit", *arguments],
            env=inherited | {"TERM": "xterm-256color"} | (environment or {}),
            dimensions=(height, 80),
            cwd=cwd,
        )

    @property
    def lines(self) -> list[str]:
        """What is on the screen, without the blanks at the ends."""
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        """The screen as one text."""
        return "\n".join(self.lines)

    def press(self, keys: str) -> None:
        """Types."""
        self.process.send(keys)

    def wait(self, seen: Callable[[str], bool] | str) -> str:
        """Waits until the screen shows a text, or what ``seen`` looks for; returns the screen."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if seen in self.text if isinstance(seen, str) else seen(self.text):
                return self.text
            if not self._take():
                break
        assert seen in self.text if isinstance(seen, str) else seen(self.text), f"never came: {seen}\n{self.text}"
        return self.text

    def end(self) -> int:
        """Waits for the process to end; its exit status."""
        while self._take():
            pass
        self.process.close()
        return self.process.exitstatus if self.process.exitstatus is not None else -(self.process.signalstatus or 0)

    def _take(self) -> bool:
        try:
            chunk = self.process.read_nonblocking(65536, timeout=0.2)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.sent += chunk
        self.stream.feed(chunk)
        return True

"""The machine as the doctor asks it: commands, files and numbers, through one door, where a recorded host can answer too."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 60
"""Seconds after which a command has not answered; the import of torch is the longest."""


@dataclass(frozen=True)
class Answer:
    """What a command said.

    Attributes:
        status: its exit status; 127 where there is no such command, 124 where it did not end.
        text: both of its streams.
    """

    status: int
    text: str

    @property
    def last(self) -> str:
        """The last line that is not empty."""
        return next((line.strip() for line in reversed(self.text.splitlines()) if line.strip()), "")


class Host:
    """This machine."""

    environment: Mapping[str, str] = os.environ

    def run(self, command: str) -> Answer:
        """Runs a command, given as it is typed, its words parted by single spaces."""
        try:
            done = subprocess.run(
                command.split(" "),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=PATIENCE,
                check=False,
            )
        except (FileNotFoundError, PermissionError):
            return Answer(127, "")
        except subprocess.TimeoutExpired:
            return Answer(124, f"no answer in {PATIENCE} seconds")
        return Answer(done.returncode, done.stdout.decode(errors="replace"))

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return Path(path).exists()

    def read(self, path: str) -> str:
        """A file's text, or nothing where it cannot be read."""
        try:
            return Path(path).read_text(errors="replace")
        except OSError:
            return ""

    def disk(self, path: str) -> tuple[int, int]:
        """Bytes of the file system that a folder is on: all, and free; nothing where there is no such folder."""
        try:
            usage = shutil.disk_usage(path)
        except OSError:
            return 0, 0
        return usage.total, usage.free

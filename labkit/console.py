"""The one Console of the project, and what a reader sees while something takes its time.

On a terminal ``working`` turns a spinner beside the elapsed time. In a pipe it prints plain lines: no control characters and
nothing that only a colour would say.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

# rich would take the width of the terminal that stdin is, even where the output goes into a pipe.
console = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 80)
"""Where everything is printed. rich itself honours NO_COLOR, COLUMNS and TERM=dumb."""

WORTH_SAYING = 2.0
"""Seconds after which it is worth a line that something is done."""

BETWEEN_NOTES = 10.0
"""Seconds between two notes in a pipe, where a line once written stays."""


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Shows that ``what`` is going on for as long as the block runs.

    Args:
        what: a phrase without a full stop, such as ``"Importing vLLM"``.

    Yields:
        A function to call with a few words of how far it is (``"41 of 93 MB"``), as often as wanted.
    """
    started = time.monotonic()
    # isatty as well: FORCE_COLOR makes rich take a pipe for a terminal, and a spinner there is thousands of control characters.
    shown = _spinner(what) if console.is_interactive and console.file.isatty() else _lines(what)
    with shown as note:
        yield note
    took = time.monotonic() - started
    if took > WORTH_SAYING:
        _print(f"{what}: done in {took:.1f} s")


@contextmanager
def _spinner(what: str) -> Iterator[Callable[[str], None]]:
    columns = SpinnerColumn("line"), TextColumn("{task.description} {task.fields[note]}", markup=False), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None, note="")
        yield lambda note: progress.update(task, note=note)


@contextmanager
def _lines(what: str) -> Iterator[Callable[[str], None]]:
    _print(f"{what} ...")
    last = time.monotonic()

    def note(words: str) -> None:
        nonlocal last
        if time.monotonic() - last > BETWEEN_NOTES:
            last = time.monotonic()
            _print(f"  {words}")

    yield note


def _print(line: str) -> None:
    # soft_wrap: a path that rich had broken at column 80 could not be copied.
    console.print(line, markup=False, soft_wrap=True)

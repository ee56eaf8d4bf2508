"""rich's Console, and progress displays: a spinner or a bar on a terminal; in a pipe, lines without control characters."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich import progress as bars
from rich.console import Console
from rich.filesize import decimal

from labkit.system.foreign_text import printable

# rich would use the width of stdin's terminal, even if the output goes into a pipe.
console = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 80)
"""All output is printed by this object. rich honours NO_COLOR, COLUMNS and TERM=dumb."""

MIN_REPORTED_SECONDS = 2.0  # work that took less prints no "done" line
SECONDS_BETWEEN_NOTES = 10.0  # in a pipe, where a printed line stays


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Shows ``what`` as running, until the block ends.

    Args:
        what: a phrase without a full stop, such as ``"Importing vLLM"``.

    Yields:
        A function that shows the progress in a few words (``"41 of 93 MB"``); it may be called at any rate.
    """
    text = bars.TextColumn("{task.description} {task.fields[note]}", markup=False)
    with _task(what, None, bars.SpinnerColumn("line"), text, bars.TimeElapsedColumn()) as update:
        yield lambda note: update(note=note)


@contextmanager
def transferring(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar of ``total`` bytes with rate and time left; in a pipe, a line before and a line after.

    Yields:
        A function that takes the number of bytes received since the last call; negative for bytes to receive again.
    """
    size = bars.TextColumn("{task.description}", markup=False), bars.BarColumn(20), bars.DownloadColumn()
    with _task(what, total, *size, bars.TransferSpeedColumn(), bars.TimeRemainingColumn()) as update:
        yield lambda count: update(advance=count)


def _has_terminal() -> bool:
    # isatty as well: with FORCE_COLOR rich treats a pipe as a terminal, and a spinner would print control characters there.
    return console.is_interactive and console.file.isatty()


@contextmanager
def _task(what: str, total: int | None, *columns: bars.ProgressColumn) -> Iterator[Callable[..., None]]:
    """Shows a task until the block ends, then the duration, if it was long and nothing was raised; yields the update function."""
    started = noted = time.monotonic()

    def print_note(note: str = "", advance: int = 0) -> None:
        nonlocal noted
        if note and time.monotonic() - noted > SECONDS_BETWEEN_NOTES:
            noted = time.monotonic()
            print_lines(f"  {note}")

    if _has_terminal():
        with bars.Progress(*columns, console=console, transient=True) as progress:
            yield partial(progress.update, progress.add_task(what, total=total, note=""))
    else:
        print_lines(f"{what} ..." if total is None else f"{what}, {decimal(total)} ...")
        yield print_note
    if (took := time.monotonic() - started) > MIN_REPORTED_SECONDS:
        print_lines(f"{what}: done in {took:.1f} s")


def print_text(text: str, indent: str = "", head: str = "") -> None:
    """Prints sentences. On a terminal, lines break between words and never inside a path; in a pipe no line is broken.

    Args:
        head: markup that replaces the indent of the first line.
    """
    wrapper = textwrap.TextWrapper(console.width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    lines = [
        part for line in text.splitlines() for part in ((_has_terminal() and wrapper.wrap(indent + line)) or [indent + line])
    ]
    if head:
        console.print(head, end="")
        lines[0] = lines[0].removeprefix(indent)
    print_lines(*lines)


def print_lines(*lines: str) -> None:
    """Prints lines without markup; a long line is not broken, so that a path in it can be copied."""
    for line in lines:
        console.print(printable(line, keep="\n"), markup=False, soft_wrap=True)

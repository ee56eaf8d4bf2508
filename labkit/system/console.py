"""The one Console of the project, and what a reader sees while something takes its time.

On a terminal ``working`` turns a spinner beside the elapsed time. In a pipe it prints plain lines: no control characters and
nothing that only a colour would say.
"""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

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
    with _timed(what), _spinner(what) if _has_terminal() else _lines(what) as note:
        yield note


@contextmanager
def transferring(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar of ``total`` bytes with rate and time left; where there is no terminal, a line before and one after.

    Yields:
        A function to call with how many bytes have come; with fewer than none where some have to come again.
    """
    if not _has_terminal():
        print_lines(f"{what}, {decimal(total)} ...")
        with _timed(what):
            yield lambda count: None
        return
    columns = TextColumn("{task.description}", markup=False), BarColumn(20), DownloadColumn()
    with (
        _timed(what),
        Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console, transient=True) as progress,
    ):
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


def _has_terminal() -> bool:
    # isatty as well: FORCE_COLOR makes rich take a pipe for a terminal, and a spinner there is thousands of control characters.
    return console.is_interactive and console.file.isatty()


@contextmanager
def _timed(what: str) -> Iterator[None]:
    """Says how long it took, if that was worth saying."""
    started = time.monotonic()
    yield
    took = time.monotonic() - started
    if took > WORTH_SAYING:
        print_lines(f"{what}: done in {took:.1f} s")


@contextmanager
def _spinner(what: str) -> Iterator[Callable[[str], None]]:
    columns = SpinnerColumn("line"), TextColumn("{task.description} {task.fields[note]}", markup=False), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None, note="")
        yield lambda note: progress.update(task, note=note)


@contextmanager
def _lines(what: str) -> Iterator[Callable[[str], None]]:
    print_lines(f"{what} ...")
    last = time.monotonic()

    def note(words: str) -> None:
        nonlocal last
        if time.monotonic() - last > BETWEEN_NOTES:
            last = time.monotonic()
            print_lines(f"  {words}")

    yield note


def print_text(text: str, indent: str = "", head: str = "") -> None:
    """Prints sentences. A terminal's lines end between two words, and no path is cut; in a pipe nothing is broken.

    Args:
        head: markup, which stands in the place of the first line's indent.
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
    """Prints each as it is: no markup is read, and no line is broken, since half a path could not be copied."""
    for line in lines:
        console.print(visible(line), markup=False, soft_wrap=True)


def visible(text: str) -> str:
    """The text with what a terminal would act on spelled out: logs, names of tensors and errors come from files of strangers."""
    return "".join(letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in text)

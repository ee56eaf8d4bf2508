"""The run on the terminal: what became of each request, in 80 columns and without colour."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from labkit.pictures.drawing import printable, short
from labkit.pictures.timeline import words
from labkit.pictures.timeline.read import StepTrace
from labkit.pictures.timeline.rows import rows

MOST = 40
"""Requests that are listed; the picture has them all."""


def show(trace: StepTrace, console: Console) -> None:
    """Prints a line per request, with the tokens it had from where, and the run in one line."""
    found = rows(trace)
    end = len(trace.steps) - 1
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("request", no_wrap=True)
    for name in ("prefill", "cached", "generated", "preempted"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("steps", no_wrap=True)
    table.add_column("ended", no_wrap=True)
    for row in found[:MOST]:
        counts = row.num_prefill_tokens, row.num_cached_tokens, row.num_sampled_tokens, row.num_preemptions
        steps = f"{trace.steps[row.first].step} to {trace.steps[row.last(end)].step}"
        ended = row.finish.reason if row.finish else "not yet"
        table.add_row(Text(short(row.request, 14)), *map(str, counts), steps, ended)
    console.print(f"recorded by {printable(trace.recorded_by)}", markup=False, soft_wrap=True)
    console.print(table)
    if len(found) > MOST:
        console.print(f"and {len(found) - MOST} more")
    console.print(words.totals(trace, found))
    console.print("prefill: tokens computed before a decode, again after each preemption")

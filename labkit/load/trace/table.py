"""Prints a trace as a table: one line per copy in a wide terminal, three short lines per copy in 80 columns."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from itertools import groupby

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from labkit.load.trace.boxes import describe_box
from labkit.load.trace.coverage import find_faults
from labkit.load.trace.records import Record, Trace
from labkit.system.foreign_text import printable

WIDE = ("checkpoint tensor", "shape", "mapping row", "parameter", "its shape", "destination", "source")
NARROW = ("checkpoint tensor\n  mapping row\nparameter", "shape\n\nits shape", "source\n\ndestination")


def print_trace(trace: Trace, console: Console | None = None) -> None:
    """Prints a table for each rank, the tensors that were not read, and the parameters that vLLM replaces after the load."""
    console = console or Console(highlight=False)
    _print(console, f"{trace.model}, loaded by vLLM {trace.vllm} (torch {trace.torch})")
    _print(console, f"parameters: {describe_device(trace.device)}")
    for (rank, size), group in groupby(trace.records, key=lambda record: (record.tp_rank, record.tp_size)):
        title, records = f"TP {size}, rank {rank}", list(group)
        table = _table(title, records, wide=True)
        if Measurement.get(console, console.options.update(max_width=1000), table).maximum > console.width:
            table = _table(title, records, wide=False)
        console.print()
        console.print(table)
    read = {record.tensor for record in trace.records}
    lines = [f"\nnot read by vLLM: {name} {shape}" for name, shape in trace.checkpoint_shapes.items() if name not in read]
    if repacked := [f"  {name}: {change}" for name, change in trace.repacked.items() if name in trace.parameter_shapes]:
        lines += ["\nafter the load, before it serves, vLLM replaces these parameters:", *repacked]
    for line in (*lines, *(f"\nnot run: {sentence}" for sentence in trace.not_run)):
        _print(console, line)


def print_coverage(trace: Trace, console: Console) -> bool:
    """Prints the faults of a load traced on all ranks, or that it has none and is whole; returns whether it is whole."""
    findings = find_faults(trace)
    console.print()
    for finding in findings:
        _print(console, str(finding))
    if findings:
        _print(console, f"NOT WHOLE: {_count(findings, 'fault')} in this load")
        return False
    ranks = _count({record.tp_rank for record in trace.records}, "rank")
    _print(console, f"whole: every row of {_count(trace.parameter_shapes, 'parameter')} on {ranks} was written once;")
    _print(console, f"       every row of {_count(trace.checkpoint_shapes, 'checkpoint tensor')} was read.")
    _print(console, "This check cannot find swapped or permuted rows: their shapes are right.")
    return True


def describe_device(device: str) -> str:
    """Words for the device that held the parameters, and for whether values were checked."""
    return "shapes only, on torch's meta device" if device == "meta" else f"on {device}, every record checked by value"


def _print(console: Console, line: str) -> None:
    console.print(printable(line, keep="\n"), markup=False, soft_wrap=True)


def _count(things: Sized, noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _table(title: str, records: Sequence[Record], wide: bool) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), leading=int(not wide))
    table.title_justify, table.title_style = "left", "bold"
    for column in WIDE if wide else NARROW:
        table.add_column(column, no_wrap=True, header_style="bold", overflow="fold")
    for r in records:
        tensor, mapping, parameter = map(printable, (r.tensor, str(r.mapping or "no row: keeps its name"), r.parameter))
        source, destination = describe_box(r.source, r.shape), describe_box(r.destination, r.parameter_shape)
        cells = (
            (tensor, f"{r.shape}", mapping, parameter, f"{r.parameter_shape}", destination, source)
            if wide
            else (f"{tensor}\n  {mapping}\n{parameter}", f"{r.shape}\n\n{r.parameter_shape}", f"{source}\n\n{destination}")
        )
        table.add_row(*map(Text, cells))  # as Text, because a name may contain markup
    return table

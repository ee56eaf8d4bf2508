"""A trace as a table: one line per copy where the terminal is wide enough, else three short lines that fit 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from itertools import groupby

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from labkit.checkpoints.headers import Shape
from labkit.load.trace.coverage import verify
from labkit.load.trace.records import Record, Trace, in_words


def show(trace: Trace, console: Console | None = None) -> None:
    """Prints the trace, a table for each rank, and which tensors of the checkpoint were not read at all.

    Args:
        console: where to; its width decides between one line per copy and three.
    """
    console = console or Console(highlight=False)
    console.print(f"{trace.model}, loaded by vLLM {trace.vllm} (torch {trace.torch})", markup=False, soft_wrap=True)
    console.print(f"parameters: {held(trace.device)}", markup=False, soft_wrap=True)
    for (rank, size), records in groupby(trace.records, key=lambda record: (record.tp_rank, record.tp_size)):
        title = f"TP {size}, rank {rank}"
        mine = list(records)
        table = _wide(mine, title)
        if Measurement.get(console, console.options.update(max_width=1000), table).maximum > console.width:
            table = _narrow(mine, title)
        console.print()
        console.print(table)
    read = {record.tensor for record in trace.records}
    for name, shape in trace.checkpoint_shapes.items():
        if name not in read:
            console.print(f"\nnot read by vLLM: {name} {_shape(shape)}", markup=False, soft_wrap=True)
    shown = {name: what for name, what in trace.repacked.items() if name in trace.parameter_shapes}
    if shown:
        console.print("\nonce loaded, vLLM makes something else of these parameters before it serves:", soft_wrap=True)
    for name, what in shown.items():
        console.print(f"  {name}: {what}", markup=False, soft_wrap=True)
    for sentence in trace.not_run:
        console.print(f"\nnot run: {sentence}", markup=False, soft_wrap=True)


def show_verdict(trace: Trace, console: Console) -> bool:
    """Prints whether the load was whole, or everything that is wrong with it; True if it was.

    Args:
        trace: the load on all ranks.
    """
    findings = verify(trace)
    console.print()
    for finding in findings:
        console.print(str(finding), markup=False, soft_wrap=True)
    if findings:
        console.print(f"NOT WHOLE: {_count(findings, 'part')} of this load went wrong")
        return False
    ranks = _count({record.tp_rank for record in trace.records}, "rank")
    console.print(
        f"whole: every row of {_count(trace.parameter_shapes, 'parameter')} on {ranks} was written once;", soft_wrap=True
    )
    console.print(f"       every row of {_count(trace.checkpoint_shapes, 'checkpoint tensor')} was read.")
    console.print("Swapped or permuted rows have the right shapes: no such check sees them.")
    return True


def _count(things: Sized, what: str) -> str:
    return f"{len(things)} {what}{'' if len(things) == 1 else 's'}"


def held(device: str) -> str:
    """What held the parameters, and so what the records are worth."""
    return "shapes only, on torch's meta device" if device == "meta" else f"on {device}, every record checked by value"


def _wide(records: Iterable[Record], title: str) -> Table:
    table = _table(title, "checkpoint tensor", "shape", "mapping row", "parameter", "its shape", "destination", "source")
    for record in records:
        table.add_row(
            record.tensor,
            _shape(record.shape),
            _mapping(record),
            record.parameter,
            _shape(record.parameter_shape),
            in_words(record.destination, record.parameter_shape),
            in_words(record.source, record.shape),
        )
    return table


def _narrow(records: Iterable[Record], title: str) -> Table:
    table = _table(title, "checkpoint tensor\n  mapping row\nparameter", "shape\n\nits shape", "source\n\ndestination", leading=1)
    for record in records:
        table.add_row(
            f"{record.tensor}\n  {_mapping(record)}\n{record.parameter}",
            f"{_shape(record.shape)}\n\n{_shape(record.parameter_shape)}",
            f"{in_words(record.source, record.shape)}\n\n{in_words(record.destination, record.parameter_shape)}",
        )
    return table


def _table(title: str, *columns: str, leading: int = 0) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        leading=leading,
    )
    for column in columns:
        table.add_column(column, no_wrap=True, header_style="bold", overflow="fold")
    return table


def _mapping(record: Record) -> str:
    return str(record.mapping) if record.mapping else "no row: keeps its name"


def _shape(shape: Shape) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"

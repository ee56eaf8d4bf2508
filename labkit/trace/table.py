"""A trace as a table: one line per copy where the terminal is wide enough, else three short lines that fit 80 columns."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from labkit.headers import Shape
from labkit.trace.records import Record, Span, Trace


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
            _part(record.destination, record.parameter_shape),
            _part(record.source, record.shape),
        )
    return table


def _narrow(records: Iterable[Record], title: str) -> Table:
    table = _table(title, "checkpoint tensor\n  mapping row\nparameter", "shape\n\nits shape", "source\n\ndestination", leading=1)
    for record in records:
        table.add_row(
            f"{record.tensor}\n  {_mapping(record)}\n{record.parameter}",
            f"{_shape(record.shape)}\n\n{_shape(record.parameter_shape)}",
            f"{_part(record.source, record.shape)}\n\n{_part(record.destination, record.parameter_shape)}",
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


def _part(spans: tuple[Span, ...], shape: Shape) -> str:
    """The rows, or the columns where only they are cut: ``rows 512:1024``, ``columns 0:7168``."""
    words = ["rows", "columns"]
    cut = [axis for axis, (span, size) in enumerate(zip(spans, shape, strict=True)) if span != (0, size)]
    return ", ".join(f"{words[axis]} {spans[axis][0]}:{spans[axis][1]}" for axis in cut or [0])

"""What is said of a slice: its place, and how the numbers follow from each other. Only what the trace's own numbers show."""

from __future__ import annotations

from collections.abc import Iterator

from labkit.checkpoints.headers import Shape
from labkit.load.trace.coverage import Finding
from labkit.load.trace.page.bars import Bar, Figure, Slice, cut_axes, unit
from labkit.load.trace.records import Record, Trace, in_words
from labkit.load.trace.table import held

MOST_TERMS = 6
"""A sum of more terms than these is not spelled out."""


def of_trace(trace: Trace) -> str:
    """Who loaded what, in a sentence."""
    sizes = {record.tp_size for record in trace.records}
    ranks = sorted({record.tp_rank for record in trace.records})
    which = f"rank{'s' * (len(ranks) > 1)} {_ranges(ranks)}" if ranks else "nothing was copied"
    size = f"TP {max(sizes)}, " if sizes else ""
    return f"Loaded by vLLM {trace.vllm} (torch {trace.torch}); {size}{which}; parameters: {held(trace.device)}"


def of_shape(shape: Shape) -> str:
    """A shape as Python writes it."""
    return str(tuple(shape))


def of_figure(figure: Figure) -> str:
    """What a figure's bars count and, where every rank has the same few slices, how their lengths add up."""
    what = f"bars show {figure.length} {figure.unit}"
    if len(figure.axes) == 2:
        what += f", and down them {figure.shape[figure.axes[1]]} {unit(figure.axes[1])}"
    if figure.what == "checkpoint tensor":
        return f"a checkpoint tensor, not a parameter; {what}"
    if figure.unit == "columns" and len(figure.axes) == 1:
        what += ", because columns are what the ranks divide" if len(figure.shape) == 2 else ""
    sums = {_sum(figure, bar) for bar in figure.bars}
    only = sums.pop() if len(sums) == 1 else None
    what += f" = {only}" if only else ""
    return what + (f"; vLLM replaces it after the load: {figure.repacked}" if figure.repacked else "")


def of_slice(figure: Figure, bar: Bar, piece: Slice) -> tuple[str, ...]:
    """Sentences: what is wrong, what was read, and where it landed."""
    faults = map(_sentence, piece.faults)
    if piece.record is None:
        return (*faults, *_without_record(piece))
    return (*faults, *_heads(piece.record, figure.head_size), *_read(piece.record), *_landed(figure, bar, piece))


def labels(figure: Figure, piece: Slice) -> tuple[str, ...]:
    """What can be written on a slice, from the most to the least; the first that fits is.

    Of a copy, the part of the checkpoint tensor as Python slices it: ``k_proj[512:1024], shard k``. Of the rest, its place.
    """
    name = ", ".join([piece.label, *dict.fromkeys(fault.fault for fault in piece.faults if fault.fault != piece.label)])
    least = "!" if piece.faults else piece.label.split("_")[0]
    if piece.record is None:
        return f"{name}, {':'.join(map(str, figure.along(piece)))}", name, least
    row = piece.record.mapping
    part = name.replace(piece.label, piece.label + _sliced(piece.record), 1)
    shard = [f"{part}, shard {row.shard}"] if row and row.shard is not None else []
    return tuple(dict.fromkeys([*shard, part, name, least]))


def of_place(figure: Figure, bar: Bar, piece: Slice) -> str:
    """A slice and its place, in one line."""
    rank = "" if bar.tp_rank is None else f" on rank {bar.tp_rank}"
    place = f"{piece.label}{rank}: {in_words(piece.part, figure.shape)} of {figure.name}"
    record = piece.record
    return place + (f", from {in_words(record.source, record.shape)} of {record.tensor}" if record else "")


def _sliced(record: Record) -> str:
    """``[512:1024]`` or ``[:, 0:7168]``; nothing where the tensor was read whole."""
    cut = cut_axes(record.source, record.shape)
    spans = [f"{start}:{stop}" if axis in cut else ":" for axis, (start, stop) in enumerate(record.source)]
    return f"[{', '.join(spans[: max(cut) + 1])}]" if cut else ""


def _sentence(finding: Finding) -> str:
    text = str(finding)
    return f"{text[0].upper()}{text[1:]}."


def _without_record(piece: Slice) -> Iterator[str]:
    if piece.kind == "padding":
        yield "Padding: the load filled this part with a number; no checkpoint tensor has values for it."
    elif piece.kind == "read":
        yield "Some rank read this part."


def _heads(record: Record, head_size: int | None) -> Iterator[str]:
    """How many heads the rows of q, k or v are."""
    row, rows = record.mapping, record.shape[0] if record.shape else 0
    plain = "float" in record.parameter_dtype  # else several numbers share a row
    if row and row.shard in ("q", "k", "v") and plain and head_size and rows and rows % head_size == 0:
        yield f"{rows // head_size} heads * {head_size} = {rows} rows."


def _read(record: Record) -> Iterator[str]:
    """How the source follows from the tensor's shape, the number of ranks, and the rank."""
    cut = cut_axes(record.source, record.shape)
    if len(cut) != 1:
        yield "The tensor was read whole." if not cut else "The tensor was read in part, along more than one axis."
        return
    axis = cut.pop()
    (start, stop), whole, rank, ranks = record.source[axis], record.shape[axis], record.tp_rank, record.tp_size
    length, one, many = stop - start, unit(axis).removesuffix("s"), unit(axis)
    parts = whole // length if length and whole % length == 0 else 0
    each = record.parameter_shape[axis] if axis < len(record.parameter_shape) else 0
    if parts == ranks and start == rank * length:
        yield f"{whole} {many} / {ranks} ranks = {length}."
        yield f"Rank {rank} reads from {one} {rank} * {length} = {start}."
    elif 1 < parts < ranks and ranks % parts == 0 and start == rank // (ranks // parts) * length:
        share = ranks // parts
        yield f"{whole} {many} are {parts} parts of {length}; {ranks} ranks / {parts} parts = {share} ranks to a part."
        yield f"Rank {rank} reads part {rank} // {share} = {rank // share}, from {one} {rank // share} * {length} = {start}."
    elif each and start == rank * each and length <= each:
        yield f"A rank holds {each} {many}; rank {rank} reads from {one} {rank} * {each} = {start}."
        if stop == whole and length < each:
            yield f"The tensor ends at {whole}: {whole} - {start} = {length} {many} are left to read."
    else:
        yield f"{length} of {whole} {many} were read, from {one} {start}."


def _landed(figure: Figure, bar: Bar, piece: Slice) -> Iterator[str]:
    """How the destination follows from the slices before it."""
    start = figure.along(piece)[0]
    one, before = figure.unit.removesuffix("s"), "above" if figure.unit == "rows" else "before"
    if bar.lanes > 1:
        yield f"It lands at {one} {start}."
        return
    if start == 0:
        yield f"It lands at {one} 0: nothing is {before} it."
        return
    earlier = [
        other
        for other in bar.slices
        if other.lane == piece.lane and figure.down(other) == figure.down(piece) and figure.along(other)[1] <= start
    ]
    lengths = [(other.label, figure.along(other)[1] - figure.along(other)[0]) for other in earlier]
    if not lengths or len(lengths) > MOST_TERMS or sum(length for _, length in lengths) != start:
        yield f"It lands at {one} {start}."
    elif len(lengths) == 1:
        yield f"It lands at {one} {start} = {start} {figure.unit} of {lengths[0][0]} {before} it."
    else:
        yield f"It lands at {one} {start} = {_plus(lengths)} {before} it."


def _sum(figure: Figure, bar: Bar) -> str | None:
    """A fused bar's length as a sum, where its slices lie end to end."""
    spans = [figure.along(piece) for piece in bar.slices]
    if not 1 < len(spans) <= MOST_TERMS or [start for start, _ in spans] != [0, *(stop for _, stop in spans[:-1])]:
        return None
    if spans[-1][1] != figure.length:
        return None
    return _plus([(piece.label, stop - start) for piece, (start, stop) in zip(bar.slices, spans, strict=True)])


def _plus(lengths: list[tuple[str, int]]) -> str:
    return " + ".join(f"{length} ({label})" for label, length in lengths)


def _ranges(numbers: list[int]) -> str:
    """``0 to 7`` where they follow each other, else ``0, 3``."""
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))

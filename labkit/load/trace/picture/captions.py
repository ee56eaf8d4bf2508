"""Captions of the HTML page and the SVG picture: labels of slices, and sentences that derive slices from shapes and ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from labkit.load.trace.boxes import axis_name, cut_axes, describe_box
from labkit.load.trace.picture.layout import Bar, Figure, Slice
from labkit.load.trace.records import Record, Trace
from labkit.load.trace.table import describe_device

MAX_TERMS = 6  # a sum of more terms is not written out
LEGEND = "a slice's label is what was read; its place in the bar is where it was written, to scale"


def trace_caption(trace: Trace) -> str:
    """A sentence without a full stop: the versions of vLLM and torch, the TP size, the ranks and the device."""
    sizes = {record.tp_size for record in trace.records}
    ranks = sorted({record.tp_rank for record in trace.records})
    consecutive = len(ranks) > 2 and len(ranks) == ranks[-1] - ranks[0] + 1
    numbers = f"{ranks[0]} to {ranks[-1]}" if consecutive else ", ".join(map(str, ranks))
    loaded = f"rank{'s' * (len(ranks) > 1)} {numbers}" if ranks else "nothing was copied"
    size = f"TP {max(sizes)}, " if sizes else ""
    return f"Loaded by vLLM {trace.vllm} (torch {trace.torch}); {size}{loaded}; parameters: {describe_device(trace.device)}"


def figure_caption(figure: Figure) -> str:
    """The length and the unit of a figure's bars and, if every rank has the same few slices, the sum of the slices' lengths."""
    text = f"bars show {figure.length} {figure.unit}"
    if len(figure.axes) == 2:
        text += f", and down them {figure.shape[figure.axes[1]]} {axis_name(figure.axes[1])}"
    if figure.what == "checkpoint tensor":
        return f"a checkpoint tensor, not a parameter; {text}"
    if figure.unit == "columns" and len(figure.axes) == 1 and len(figure.shape) == 2:
        text += ", because the ranks divide columns"
    only, *others = {_sum(figure, bar) for bar in figure.bars}
    text += f" = {only}" if only and not others else ""
    return text + (f"; vLLM replaces it after the load: {figure.repacked}" if figure.repacked else "")


def slice_labels(figure: Figure, piece: Slice) -> tuple[str, ...]:
    """Labels for a slice, from the longest to the shortest; the first that fits is drawn.

    A copy's longest label has the tensor's part in Python's notation and the shard: ``k_proj[512:1024], shard k``. The longest
    label of any other slice has its kind and its rows or columns: ``missing, 512:1024``.
    """
    name = ", ".join([piece.label, *dict.fromkeys(fault.fault for fault in piece.faults if fault.fault != piece.label)])
    shortest = "!" if piece.faults else piece.label.split("_")[0]
    if piece.record is None:
        return f"{name}, {':'.join(map(str, figure.along(piece)))}", name, shortest
    row = piece.record.mapping
    part = name.replace(piece.label, piece.label + _subscript(piece.record), 1)
    shard = [f"{part}, shard {row.shard}"] if row and row.shard is not None else []
    return tuple(dict.fromkeys([*shard, part, name, shortest]))


def slice_place(figure: Figure, bar: Bar, piece: Slice) -> str:
    """A sentence with the slice's part of the figure's tensor and, for a copy, the part of the checkpoint tensor."""
    rank = "" if bar.tp_rank is None else f" on rank {bar.tp_rank}"
    place = f"{piece.label}{rank}: {describe_box(piece.part, figure.shape)} of {figure.name}"
    record = piece.record
    return place + (f", from {describe_box(record.source, record.shape)} of {record.tensor}" if record else "") + "."


def slice_sentences(figure: Figure, bar: Bar, piece: Slice) -> tuple[str, ...]:
    """Sentences on a slice: its faults and, for a copy, which part was read and where that part was written."""
    faults = [f"{text[0].upper()}{text[1:]}." for text in map(str, piece.faults)]
    record = piece.record
    if record:
        return (*faults, *_heads(record, figure.head_size), *_source(record), *_destination(figure, bar, piece))
    if piece.kind == "padding":
        return (*faults, "Padding: the load filled this part with a number; no checkpoint tensor has values for it.")
    return (*faults, "Some rank read this part.") if piece.kind == "read" else tuple(faults)


def _subscript(record: Record) -> str:
    """The part that was read, as ``[512:1024]`` or ``[:, 0:7168]``; the empty text if the whole tensor was read."""
    cut = cut_axes(record.source, record.shape)
    spans = [f"{start}:{stop}" if axis in cut else ":" for axis, (start, stop) in enumerate(record.source)]
    return f"[{', '.join(spans[: max(cut) + 1])}]" if cut else ""


def _heads(record: Record, head_size: int | None) -> Iterator[str]:
    """A sentence with the number of heads, if the tensor is q, k or v and its parameter is floating point; else nothing."""
    row, rows = record.mapping, record.shape[0] if record.shape else 0
    plain = "float" in record.parameter_dtype  # in a packed type several numbers share a row
    if row and row.shard in ("q", "k", "v") and plain and head_size and rows and rows % head_size == 0:
        yield f"{rows // head_size} heads * {head_size} = {rows} rows."


def _source(record: Record) -> Iterator[str]:
    """Sentences that derive the part that was read from the tensor's shape, the number of ranks, and the rank."""
    cut = cut_axes(record.source, record.shape)
    if len(cut) != 1:
        yield "The whole tensor was read." if not cut else "A part of the tensor was read, cut along more than one axis."
        return
    axis = cut.pop()
    (start, stop), size, rank, ranks = record.source[axis], record.shape[axis], record.tp_rank, record.tp_size
    length, one, many = stop - start, axis_name(axis).removesuffix("s"), axis_name(axis)
    parts = size // length if length and size % length == 0 else 0
    each = record.parameter_shape[axis] if axis < len(record.parameter_shape) else 0
    if parts == ranks and start == rank * length:
        yield f"{size} {many} / {ranks} ranks = {length}."
        yield f"Rank {rank} reads from {one} {rank} * {length} = {start}."
    elif 1 < parts < ranks and ranks % parts == 0 and start == rank // (ranks // parts) * length:
        share = ranks // parts
        yield f"{size} {many} are {parts} parts of {length}; {ranks} ranks / {parts} parts = {share} ranks to a part."
        yield f"Rank {rank} reads part {rank} // {share} = {rank // share}, from {one} {rank // share} * {length} = {start}."
    elif each and start == rank * each and length <= each:
        yield f"A rank holds {each} {many}; rank {rank} reads from {one} {rank} * {each} = {start}."
        if stop == size and length < each:
            yield f"The tensor ends at {size}: {size} - {start} = {length} {many} are left to read."
    else:
        yield f"{length} of {size} {many} were read, from {one} {start}."


def _destination(figure: Figure, bar: Bar, piece: Slice) -> Iterator[str]:
    """A sentence that derives where the slice starts in the bar from the lengths of the slices before it."""
    start = figure.along(piece)[0]
    written = f"It is written from {figure.unit.removesuffix('s')} {start}"
    before = "above" if figure.unit == "rows" else "before"
    if bar.lanes == 1 and start == 0:
        yield f"{written}: nothing is {before} it."
        return
    lengths = [
        (other.label, figure.along(other)[1] - figure.along(other)[0])
        for other in bar.slices
        if other.lane == piece.lane and figure.down(other) == figure.down(piece) and figure.along(other)[1] <= start
    ]
    if bar.lanes > 1 or not lengths or len(lengths) > MAX_TERMS or sum(length for _, length in lengths) != start:
        yield f"{written}."
    elif len(lengths) == 1:
        yield f"{written} = {start} {figure.unit} of {lengths[0][0]} {before} it."
    else:
        yield f"{written} = {_plus(lengths)} {before} it."


def _sum(figure: Figure, bar: Bar) -> str | None:
    """The bar's length as a sum of the lengths of its slices, if 2 to MAX_TERMS slices fill the bar end to end; else None."""
    spans = [figure.along(piece) for piece in bar.slices]
    ends = [0, *(stop for _, stop in spans)]
    if not 1 < len(spans) <= MAX_TERMS or [start for start, _ in spans] != ends[:-1] or ends[-1] != figure.length:
        return None
    return _plus([(piece.label, stop - start) for piece, (start, stop) in zip(bar.slices, spans, strict=True)])


def _plus(lengths: Sequence[tuple[str, int]]) -> str:
    return " + ".join(f"{length} ({label})" for label, length in lengths)

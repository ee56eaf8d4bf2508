"""Lays out a trace in rows and columns, not yet in pixels: sections of a model, figures of tensors, bars of ranks, slices.

A bar shows, to scale, the axis along which its tensor is cut. If two axes are cut (experts and rows), the second axis runs down
the bar. Slices that overlap are drawn in separate lanes, one below the other.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal

from labkit.checkpoints.headers import Shape
from labkit.load.trace.boxes import Box, Span, axis_name, common, covered, cut_axes
from labkit.load.trace.coverage import Finding
from labkit.load.trace.records import Record, Trace

Kind = Literal["copy", "padding", "read", "missing", "twice", "cut off"]
What = Literal["parameter", "checkpoint tensor"]
LAYER = re.compile(r"^(.*?)\.?(?<![^.])(\d+)\.")


@dataclass(frozen=True)
class Slice:
    """A part of a tensor that is drawn as one rectangle.

    Attributes:
        kind: ``copy``: a part of a parameter that was copied into it. ``padding``: a part of a parameter that was filled with a
            number. ``read``: a part of a checkpoint tensor that a rank read. ``missing``, ``twice``, ``cut off``: see `Finding`.
        record: for a copy, its record in the trace; else None.
        label: for a copy, the short name of the checkpoint tensor (``q_proj``); else the kind.
        faults: the faults of this part; for a copy, the ``cut off`` and ``rounded`` faults of the copied tensor.
        lane: the number of the lane of the bar in which the slice is drawn, from 0 at the top.
    """

    kind: Kind
    label: str
    part: Box
    record: Record | None = None
    faults: tuple[Finding, ...] = ()
    lane: int = 0


@dataclass(frozen=True)
class Bar:
    """A parameter on one rank, or a checkpoint tensor (``tp_rank`` is None); the slices are sorted by lane and place."""

    tp_rank: int | None
    slices: tuple[Slice, ...]

    @property
    def name(self) -> str:
        """The label at the left of the bar."""
        return "all ranks" if self.tp_rank is None else f"rank {self.tp_rank}"

    @property
    def lanes(self) -> int:
        """The number of lanes, at least one."""
        return 1 + max((piece.lane for piece in self.slices), default=0)


@dataclass(frozen=True)
class Figure:
    """A tensor, with a bar for each rank.

    Attributes:
        what: a parameter, or a checkpoint tensor of which a part was read by no rank.
        shape: the tensor's shape on one rank.
        axes: the axis that runs along the bars and, if two axes are cut, the axis that runs down; empty for a scalar.
        repacked: a description of how vLLM changes the parameter after the load; None if it does not.
        head_size: D, the rows of one head; None if vLLM's attention layers have none, or several.
    """

    what: What
    name: str
    shape: Shape
    axes: tuple[int, ...]
    bars: tuple[Bar, ...]
    repacked: str | None
    head_size: int | None

    @property
    def length(self) -> int:
        """The length of a bar in rows or columns; 1 for a scalar or an empty tensor."""
        return (self.shape[self.axes[0]] if self.axes else 1) or 1

    @property
    def unit(self) -> str:
        """The unit along the bars: ``rows``, ``columns``, ``axis 2``."""
        return axis_name(self.axes[0] if self.axes else 0)

    def along(self, piece: Slice) -> Span:
        """The slice's start and stop along the bar, in rows or columns."""
        return piece.part[self.axes[0]] if self.axes else (0, 1)

    def down(self, piece: Slice) -> tuple[float, float]:
        """The slice's top and bottom in its lane, as shares of the lane's height from 0 at the top to 1."""
        if len(self.axes) < 2:
            return 0.0, 1.0
        start, stop = piece.part[self.axes[1]]
        return start / self.shape[self.axes[1]], stop / self.shape[self.axes[1]]

    @property
    def tones(self) -> Mapping[str, int]:
        """Label of a copy -> the number of its colour and pattern, from 0; a label has the same number on every rank."""
        labels = dict.fromkeys(piece.label for bar in self.bars for piece in bar.slices if piece.kind == "copy")
        return {label: number for number, label in enumerate(labels)}


@dataclass(frozen=True)
class Section:
    """The figures of one part of the model: a layer, the embeddings, or the norm and the head. The page shows one section."""

    title: str
    figures: tuple[Figure, ...]


def sections(trace: Trace, findings: Sequence[Finding]) -> tuple[Section, ...]:
    """The sections of the picture of a load: one per layer, for the embedding, and for norm and head.

    A tensor is a figure with a bar per rank; each copied, padded, faulty or read part is a slice of a bar.
    """
    figures = _figures(trace, findings)
    stacks = len({match[1] for figure in figures if (match := LAYER.match(figure.name))})
    by_title: dict[str, list[Figure]] = defaultdict(list)
    for figure in figures:
        title = "embeddings" if "embed" in figure.name else "norm and head"
        if match := LAYER.match(figure.name):
            title = f"layer {match[2]}" if stacks == 1 else f"{match[1]} {match[2]}".strip()
        by_title[title].append(figure)
    return tuple(Section(title, tuple(found)) for title, found in by_title.items())


def short_name(tensor: str) -> str:
    """A tensor's name without its layer and its last part: ``q_proj``; an expert keeps its number, ``5.w1``."""
    parts = LAYER.sub("", tensor, count=1).split(".")
    module = parts[:-1] if len(parts) > 1 else parts
    return ".".join(module[-2:]) if len(module) > 1 and module[-2].isdigit() else module[-1]


def _figures(trace: Trace, findings: Sequence[Finding]) -> list[Figure]:
    """A figure for each parameter, then one for each checkpoint tensor of which a part was read by no rank."""
    faults: dict[str, list[Finding]] = defaultdict(list)
    slices: dict[tuple[str, int | None], list[Slice]] = defaultdict(list)
    for finding in findings:
        if finding.fault in ("cut off", "rounded"):
            faults[finding.name].append(finding)
        if finding.fault != "rounded":
            slices[finding.name, finding.tp_rank].append(Slice(finding.fault, finding.fault, finding.part, None, (finding,)))
    for record in trace.records:
        piece = Slice("copy", short_name(record.tensor), record.destination, record, tuple(faults[record.tensor]))
        slices[record.parameter, record.tp_rank].append(piece)
    for fill in trace.fills:
        slices[fill.parameter, fill.tp_rank].append(Slice("padding", "padding", fill.destination))
    lost = dict.fromkeys(each.name for each in findings if each.fault == "cut off" and each.name in trace.checkpoint_shapes)
    for name in lost:
        read, _ = covered(record.source for record in trace.records if record.tensor == name)
        slices[name, None] += [Slice("read", "read", box) for box in read]

    def figure(what: What, name: str, shape: Shape, ranks: Sequence[int | None]) -> Figure:
        axes = _axes(shape, [piece for rank in ranks for piece in slices[name, rank]])
        bars = tuple(Bar(rank, _in_lanes(slices[name, rank], axes)) for rank in ranks)
        return Figure(what, name, shape, axes, bars, trace.repacked.get(name), trace.head_size)

    ranks = sorted({record.tp_rank for record in trace.records} | {fill.tp_rank for fill in trace.fills}) or [0]
    shown = [figure("parameter", name, shape, ranks) for name, shape in trace.parameter_shapes.items()]
    return shown + [figure("checkpoint tensor", name, trace.checkpoint_shapes[name], [None]) for name in lost]


def _axes(shape: Shape, pieces: Sequence[Slice]) -> tuple[int, ...]:
    """At most two axes: those along which slices are cut; if none is, those along which sources are cut; else axis 0."""
    cut = {axis for piece in pieces for axis in cut_axes(piece.part, shape)}
    records = [piece.record for piece in pieces if piece.record and len(piece.record.shape) == len(shape)]
    read = {axis for record in records for axis in cut_axes(record.source, record.shape)}
    return tuple(sorted(cut or read or range(len(shape[:1]))))[:2]


def _in_lanes(pieces: Iterable[Slice], axes: tuple[int, ...]) -> tuple[Slice, ...]:
    """Puts each slice in the first lane where it overlaps no slice placed before; slices of kind ``twice`` are placed last."""
    lanes: dict[int, list[Box]] = defaultdict(list)
    placed = []
    for piece in sorted(pieces, key=lambda piece: piece.kind == "twice"):
        place = tuple(piece.part[axis] for axis in axes)
        lane = next(lane for lane in count() if all(common(place, other) is None for other in lanes[lane]))
        lanes[lane].append(place)
        placed.append(replace(piece, lane=lane))
    return tuple(sorted(placed, key=lambda piece: (piece.lane, piece.part)))

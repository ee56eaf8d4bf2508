"""Lays out a trace in rows and columns, not yet in pixels: sections of a model, figures of tensors, bars of ranks, slices.

A bar shows the axis of its tensor that is cut, to scale. Where two axes are cut, as experts and rows are, the second runs down
the bar. Slices that overlap get separate lanes, one below the other.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from labkit.checkpoints.headers import Shape
from labkit.load.trace.boxes import Box, Span, axis_name, covered, cut_axes
from labkit.load.trace.coverage import Finding
from labkit.load.trace.records import Record, Trace

Kind = Literal["copy", "padding", "read", "missing", "twice", "cut off"]
LAYER = re.compile(r"^(.*?)\.?(?<![^.])(\d+)\.")


@dataclass(frozen=True)
class Slice:
    """A part of a tensor that is drawn as one rectangle.

    Attributes:
        kind: ``copy``: a record. ``padding``: filled by the load without a tensor. ``read``: a part of a checkpoint tensor that
            some rank read. ``missing``, ``twice`` and ``cut off``: a fault, as in `Finding`.
        label: the short name of its checkpoint tensor (``q_proj``), or the kind.
        part: the part of the bar's tensor.
        record: the copy; None for all kinds but ``copy``.
        faults: its faults; for a copy, those of its checkpoint tensor.
        lane: the lane of the bar that it is drawn in, from 0.
    """

    kind: Kind
    label: str
    part: Box
    record: Record | None = None
    faults: tuple[Finding, ...] = ()
    lane: int = 0


@dataclass(frozen=True)
class Bar:
    """A tensor on one rank (None for a checkpoint tensor, which all ranks read); the slices are sorted by lane and place."""

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
        name: the tensor's name.
        shape: its shape on one rank.
        axes: the axis that runs along the bars and, where two are cut, the one that runs down; none for a scalar.
        bars: rank after rank.
        repacked: how vLLM changes it after the load, or None.
        head_size: D, where vLLM's attention has one.
    """

    what: Literal["parameter", "checkpoint tensor"]
    name: str
    shape: Shape
    axes: tuple[int, ...]
    bars: tuple[Bar, ...]
    repacked: str | None = None
    head_size: int | None = None

    @property
    def length(self) -> int:
        """The length of a bar in rows or columns; 1 for a scalar, and for a tensor that has none."""
        return (self.shape[self.axes[0]] if self.axes else 1) or 1

    @property
    def unit(self) -> str:
        """The unit along the bars: ``rows``, ``columns``, ``axis 2``."""
        return axis_name(self.axes[0] if self.axes else 0)

    def along(self, piece: Slice) -> Span:
        """The slice's place along the bar, in rows or columns."""
        return piece.part[self.axes[0]] if self.axes else (0, 1)

    def down(self, piece: Slice) -> tuple[float, float]:
        """The slice's place in its lane, from 0 at the top to 1."""
        if len(self.axes) < 2:
            return 0.0, 1.0
        start, stop = piece.part[self.axes[1]]
        return start / self.shape[self.axes[1]], stop / self.shape[self.axes[1]]

    @property
    def tones(self) -> Mapping[str, int]:
        """A number for the tone and pattern of each copy's label, the same on every rank."""
        labels = dict.fromkeys(piece.label for bar in self.bars for piece in bar.slices if piece.kind == "copy")
        return {label: number for number, label in enumerate(labels)}


@dataclass(frozen=True)
class Section:
    """A section of the model that is shown at a time: a layer, the embeddings, or the norm and the head."""

    title: str
    figures: tuple[Figure, ...]


def sections(trace: Trace, findings: Sequence[Finding]) -> tuple[Section, ...]:
    """Lays out the trace: a slice for every record, and one more for every finding that concerns a part of a tensor.

    Args:
        findings: of this trace, or of a larger one that contains it; those about other tensors are left out.
    """
    figures = [*_parameter_figures(trace, findings), *_cut_off_figures(trace, findings)]
    prefixes = {match[1] for figure in figures if (match := LAYER.match(figure.name))}
    by_title: dict[str, list[Figure]] = defaultdict(list)
    for figure in figures:
        by_title[_section_title(figure.name, len(prefixes))].append(figure)
    return tuple(Section(title, tuple(found)) for title, found in by_title.items())


def short_name(tensor: str) -> str:
    """A tensor's name without its layer and its last part: ``q_proj``; an expert keeps its number, ``5.w1``."""
    parts = LAYER.sub("", tensor, count=1).split(".")
    module = parts[:-1] if len(parts) > 1 else parts
    return ".".join(module[-2:]) if len(module) > 1 and module[-2].isdigit() else module[-1]


def _parameter_figures(trace: Trace, findings: Sequence[Finding]) -> list[Figure]:
    ranks = sorted({record.tp_rank for record in trace.records} | {fill.tp_rank for fill in trace.fills}) or [0]
    faults: dict[str, list[Finding]] = defaultdict(list)
    slices: dict[tuple[str, int], list[Slice]] = defaultdict(list)
    for finding in findings:
        if finding.fault in ("cut off", "rounded"):
            faults[finding.name].append(finding)
    for record in trace.records:
        piece = Slice("copy", short_name(record.tensor), record.destination, record, tuple(faults[record.tensor]))
        slices[record.parameter, record.tp_rank].append(piece)
    for fill in trace.fills:
        slices[fill.parameter, fill.tp_rank].append(Slice("padding", "padding", fill.destination))
    for finding in findings:
        if finding.tp_rank is not None and finding.fault in ("missing", "twice"):
            piece = Slice(finding.fault, finding.fault, finding.part, None, (finding,))
            slices[finding.name, finding.tp_rank].append(piece)
    figures = []
    for name, shape in trace.parameter_shapes.items():
        axes = _axes(shape, [piece for rank in ranks for piece in slices[name, rank]])
        bars = tuple(Bar(rank, _in_lanes(slices[name, rank], axes)) for rank in ranks)
        figures.append(Figure("parameter", name, shape, axes, bars, trace.repacked.get(name), trace.head_size))
    return figures


def _cut_off_figures(trace: Trace, findings: Sequence[Finding]) -> list[Figure]:
    lost: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        if finding.fault == "cut off" and finding.name in trace.checkpoint_shapes:
            lost[finding.name].append(finding)
    figures = []
    for name, found in lost.items():
        read, _ = covered(record.source for record in trace.records if record.tensor == name)
        pieces = [Slice("read", "read", box) for box in read]
        pieces += [Slice("cut off", "cut off", finding.part, None, (finding,)) for finding in found]
        shape = trace.checkpoint_shapes[name]
        axes = _axes(shape, pieces)
        figures.append(Figure("checkpoint tensor", name, shape, axes, (Bar(None, _in_lanes(pieces, axes)),)))
    return figures


def _axes(shape: Shape, pieces: Iterable[Slice]) -> tuple[int, ...]:
    """The axes, two at most, along which the slices are cut; where none is cut, the axis along which the ranks read."""
    cut, read = set(), set()
    for piece in pieces:
        cut |= cut_axes(piece.part, shape)
        if piece.record and len(piece.record.shape) == len(shape):
            read |= cut_axes(piece.record.source, piece.record.shape)
    return tuple(sorted(cut or read or range(len(shape[:1]))))[:2]


def _in_lanes(pieces: Iterable[Slice], axes: tuple[int, ...]) -> tuple[Slice, ...]:
    """Puts each slice in the first lane where it overlaps no other; ``twice`` comes last, below the slices that overlap."""
    lanes: list[list[Slice]] = []
    for piece in sorted(pieces, key=lambda piece: piece.kind == "twice"):
        free = (number for number, lane in enumerate(lanes) if not any(_overlap(piece, other, axes) for other in lane))
        number = next(free, len(lanes))
        lanes += [[]] * (number == len(lanes))
        lanes[number] = [*lanes[number], replace(piece, lane=number)]
    return tuple(sorted((piece for lane in lanes for piece in lane), key=lambda piece: (piece.lane, piece.part)))


def _overlap(one: Slice, other: Slice, axes: tuple[int, ...]) -> bool:
    return all(max(one.part[axis][0], other.part[axis][0]) < min(one.part[axis][1], other.part[axis][1]) for axis in axes)


def _section_title(name: str, stacks: int) -> str:
    if match := LAYER.match(name):
        return f"layer {match[2]}" if stacks == 1 else f"{match[1]} {match[2]}".strip()
    return "embeddings" if "embed" in name else "norm and head"

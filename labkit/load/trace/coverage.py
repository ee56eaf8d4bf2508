"""Whether a load was whole: which rows of a parameter nothing was written to, which were written twice, what was never read.

The check that vLLM does not make: its own asks whether each parameter's *name* came up
(vllm/model_executor/model_loader/default_loader.py:520), not whether its rows did.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from labkit.checkpoints.headers import UNREAD_SUFFIXES, Shape
from labkit.load.trace.records import Span, Trace, in_words

Box = tuple[Span, ...]
"""A rectangle of a tensor, one span per dimension."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a load.

    Attributes:
        fault: ``missing``: a part of a parameter that nothing was written to. ``twice``: one that was written more than once.
            ``cut off``: a part of a checkpoint tensor that no rank read. ``rounded``: values were changed by a conversion.
        name: the parameter; for ``cut off`` and ``rounded`` the checkpoint tensor.
        part: which part of it, one span per dimension.
        shape: the whole of it.
        tp_rank: the rank it happened on; None where it concerns all of them together.
    """

    fault: Literal["missing", "twice", "cut off", "rounded"]
    name: str
    part: Box
    shape: Shape
    tp_rank: int | None = None

    def __str__(self) -> str:
        part, whole = in_words(self.part, self.shape), "x".join(map(str, self.shape))
        said = {
            "missing": f"missing: {part} of {self.name} ({whole}) were never written on rank {self.tp_rank}",
            "twice": f"twice: {part} of {self.name} ({whole}) were written more than once on rank {self.tp_rank}",
            "cut off": f"cut off: {part} of {self.name} ({whole}) were read by no rank",
            "rounded": f"rounded: values of {self.name} ({whole}) were changed by the conversion to the parameter's element type",
        }
        return said[self.fault]


def verify(trace: Trace) -> list[Finding]:
    """Everything that is wrong with a load, rank after rank; what no rank read only when all ranks of the group are there."""
    ranks = sorted({record.tp_rank for record in trace.records}) or [0]
    written: dict[tuple[int, str], list[Box]] = defaultdict(list)
    read: dict[str, list[Box]] = defaultdict(list)
    for record in trace.records:
        written[record.tp_rank, record.parameter].append(record.destination)
        read[record.tensor].append(record.source)
    filled: dict[tuple[int, str], list[Box]] = defaultdict(list)
    for fill in trace.fills:
        filled[fill.tp_rank, fill.parameter].append(fill.destination)

    findings = []
    for rank in ranks:
        for name, shape in trace.parameter_shapes.items():
            once, twice = covered(written[rank, name])
            missing = without(whole(shape), [*once, *filled[rank, name]])
            findings += [Finding("missing", name, box, shape, rank) for box in missing]
            findings += [Finding("twice", name, box, shape, rank) for box in twice]
    if all(len(ranks) == record.tp_size for record in trace.records[:1]):
        for name, shape in trace.checkpoint_shapes.items():
            if not name.endswith(UNREAD_SUFFIXES):
                findings += [Finding("cut off", name, box, shape) for box in without(whole(shape), read[name])]
    shapes = {name: trace.checkpoint_shapes[name] for name in trace.rounded}
    return findings + [Finding("rounded", name, whole(shape), shape) for name, shape in shapes.items()]


def covered(boxes: Iterable[Box]) -> tuple[list[Box], list[Box]]:
    """What the boxes cover at least once, and what they cover more than once; each as boxes that do not overlap."""
    once: list[Box] = []
    twice: list[Box] = []
    for box in boxes:
        for both in [common(box, other) for other in once]:
            twice += without(both, twice) if both is not None else []
        once += without(box, once)
    return _joined(once), _joined(twice)


def without(box: Box, others: Iterable[Box]) -> list[Box]:
    """What is left of a box when others are taken out of it, as boxes that do not overlap; neighbours are one."""
    left = [box] if all(start < stop for start, stop in box) else []
    for other in others:
        left = [piece for each in left for piece in _minus(each, other)]
    return _joined(left)


def _minus(box: Box, other: Box) -> list[Box]:
    """A box without another: axis by axis, what lies before and behind the other; then on with what is between."""
    both = common(box, other)
    if both is None:
        return [box]
    pieces, rest = [], list(box)
    for axis, ((start, stop), (first, last)) in enumerate(zip(box, both, strict=True)):
        for side in ((start, first), (last, stop)):
            if side[0] < side[1]:
                pieces.append((*rest[:axis], side, *rest[axis + 1 :]))
        rest[axis] = (first, last)
    return pieces


def common(one: Box, other: Box) -> Box | None:
    """What two boxes have in common, or None; an empty box has nothing in common with any."""
    both = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
    return both if all(start < stop for start, stop in both) else None


def whole(shape: Shape) -> Box:
    """All of a tensor of this shape."""
    return tuple((0, size) for size in shape)


def _joined(boxes: Iterable[Box]) -> list[Box]:
    """The same part in fewer boxes: two that agree in all axes but one, and touch along that one, are one."""
    joined = list(boxes)
    for axis in range(len(joined[0]) if joined else 0):
        rows: dict[Box, list[Span]] = defaultdict(list)
        for box in sorted(joined):
            spans = rows[*box[:axis], *box[axis + 1 :]]
            if spans and spans[-1][1] == box[axis][0]:
                spans[-1] = (spans[-1][0], box[axis][1])
            else:
                spans.append(box[axis])
        joined = [(*rest[:axis], span, *rest[axis:]) for rest, spans in rows.items() for span in spans]
    return joined

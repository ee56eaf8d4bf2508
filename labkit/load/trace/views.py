"""Which part of a tensor a view of it is: the geometry under the recorder.

    base (4, 6), strides (6, 1)              a view that begins at offset 8 with strides (6, 1) and shape (2, 3)
    offset 8 = row 1 * 6 + column 2          is rows 1:3, columns 2:5

Reshaped and transposed views are rectangles too, as long as their elements are those of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from labkit.load.trace.records import Span

Box = tuple[Span, ...]


@dataclass(frozen=True)
class Pair:
    """Two views with the same elements in the same order, each a rectangle of its own base."""

    one: Tensor
    one_box: Box
    two: Tensor
    two_box: Box


def span_of(view: Tensor, base: Tensor) -> Box | None:
    """Which part of ``base`` a view of it is, one span per dimension; None where no rectangle of ``base`` is it.

    Args:
        view: shares its storage with ``base``; it may be narrowed, transposed, reshaped, or several of these.
        base: dense: its elements fill its storage's stretch without a gap, in whatever order of axes.
    """
    if not view.numel():
        return ((0, 0),) * base.dim()
    offset = int(view.storage_offset()) - int(base.storage_offset())
    spans = [(0, 1)] * base.dim()
    # The axes from the slowest to the fastest; one of size 1 has no stride worth the name.
    axes = sorted((axis for axis, size in enumerate(base.shape) if size > 1), key=base.stride, reverse=True)
    for axis in axes:
        start, offset = divmod(offset, base.stride(axis))
        spans[axis] = (start, start + 1)
    places = {base.stride(axis): place for place, axis in enumerate(axes)}
    for stride, length in _runs(view):
        place = places.get(stride)
        while length > 1:
            if place is None or place < 0:
                return None
            axis = axes[place]
            start, size = spans[axis][0], base.shape[axis]
            if start + length <= size:
                spans[axis], length = (start, start + length), 1
            elif start == 0 and length % size == 0:
                spans[axis], length, place = (0, size), length // size, place - 1
            else:
                return None
    return tuple(spans)


def _runs(view: Tensor) -> list[tuple[int, int]]:
    """The view's axes as (stride, length), from the slowest to the fastest; those that follow on from each other are one."""
    runs: list[tuple[int, int]] = []
    for stride, size in sorted(zip(view.stride(), view.shape, strict=True), reverse=True):
        if size > 1:
            runs.append((stride, size))
        if len(runs) > 1 and runs[-2][0] == runs[-1][0] * runs[-1][1]:
            (_, outer), (inner_stride, inner) = runs[-2:]
            runs[-2:] = [(inner_stride, outer * inner)]
    return runs


def pairs(one: Tensor, one_base: Tensor, two: Tensor, two_base: Tensor) -> Iterator[Pair]:
    """Two views of one shape in pieces that are rectangles of both their bases; whole where they are already."""
    one_box, two_box = span_of(one, one_base), span_of(two, two_base)
    if one_box is not None and two_box is not None:
        yield Pair(one, one_box, two, two_box)
        return
    yield from (pair for mine, theirs in split(one, two) for pair in pairs(mine, one_base, theirs, two_base))


def split(one: Tensor, two: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Two views of one shape, cut into slices along the outermost axis that has more than one."""
    axis = next(axis for axis, size in enumerate(one.shape) if size > 1)
    return zip(one.unbind(axis), two.unbind(axis), strict=True)


def reshaped(view: Tensor, box: Box) -> Tensor | None:
    """The view with one axis for each of a box, without a copy; None where its strides do not allow it."""
    try:
        return view.view([stop - start for start, stop in box])
    except RuntimeError:
        return None


def inside(tensor: Tensor, box: Box, within: Box) -> Tensor:
    """The part of ``tensor`` that ``box`` is, where the tensor as a whole stands for ``within``."""
    return tensor[tuple(slice(start - origin, stop - origin) for (start, stop), (origin, _) in zip(box, within, strict=True))]

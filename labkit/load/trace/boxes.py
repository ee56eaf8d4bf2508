"""Boxes: rectangular parts of tensors, their arithmetic, and the box that a view of a tensor covers.

    base (4, 6), strides (6, 1)              a view with offset 8, strides (6, 1) and shape (2, 3)
    offset 8 = row 1 * 6 + column 2          covers rows 1:3, columns 2:5

A reshaped or transposed view covers a box too, if the view has exactly the box's elements. torch is imported for types alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from labkit.checkpoints.headers import Shape

if TYPE_CHECKING:
    from torch import Tensor

Span = tuple[int, int]  # half-open: [start, stop)
Box = tuple[Span, ...]  # a rectangular part of a tensor, one span per dimension


def whole(shape: Shape) -> Box:
    """The box that covers a whole tensor of this shape."""
    return tuple((0, size) for size in shape)


def cut_axes(box: Box, shape: Shape) -> set[int]:
    """The axes along which a box is less than the whole tensor."""
    return {axis for axis, (span, size) in enumerate(zip(box, shape, strict=True)) if span != (0, size)}


def axis_name(axis: int) -> str:
    """The name of an axis: ``rows`` for 0, ``columns`` for 1, then ``axis 2`` and so on."""
    return ("rows", "columns")[axis] if axis < 2 else f"axis {axis}"


def describe_box(box: Box, shape: Shape) -> str:
    """Formats a box by the cut axes: ``rows 512:1024``; by all rows if no axis is cut; ``the value`` for a scalar."""
    axes = sorted(cut_axes(box, shape)) or range(min(1, len(shape)))
    return ", ".join(f"{axis_name(axis)} {box[axis][0]}:{box[axis][1]}" for axis in axes) or "the value"


def common(one: Box, other: Box) -> Box | None:
    """The intersection of two boxes; None if it is empty."""
    both = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
    return both if all(start < stop for start, stop in both) else None


def covered(boxes: Iterable[Box]) -> tuple[list[Box], list[Box]]:
    """The parts that the boxes cover at least once, and the parts that they cover more than once, as boxes without overlap."""
    once: list[Box] = []
    twice: list[Box] = []
    for box in boxes:
        for both in [common(box, other) for other in once]:
            twice += without(both, twice) if both is not None else []
        once += without(box, once)
    return _merged(once), _merged(twice)


def without(box: Box, others: Iterable[Box]) -> list[Box]:
    """A box minus other boxes, as boxes that do not overlap; adjacent boxes are merged."""
    left = [box] if all(start < stop for start, stop in box) else []
    for other in others:
        left = [piece for each in left for piece in _minus(each, other)]
    return _merged(left)


def _minus(box: Box, other: Box) -> list[Box]:
    """A box minus ``other``: along each axis, cuts off the pieces before and behind ``other``, and goes on with the middle."""
    both = common(box, other)
    if both is None:
        return [box]
    pieces: list[Box] = []
    rest = list(box)
    for axis, ((start, stop), (first, last)) in enumerate(zip(box, both, strict=True)):
        sides = (side for side in ((start, first), (last, stop)) if side[0] < side[1])
        pieces += [(*rest[:axis], side, *rest[axis + 1 :]) for side in sides]
        rest[axis] = (first, last)
    return pieces


def _merged(boxes: Iterable[Box]) -> list[Box]:
    """Covers the same part with fewer boxes: boxes that are adjacent along one axis and equal along the others become one."""
    merged = list(boxes)
    for axis in range(len(merged[0]) if merged else 0):
        spans_beside: dict[Box, list[Span]] = defaultdict(list)
        for box in sorted(merged):
            spans = spans_beside[*box[:axis], *box[axis + 1 :]]
            if spans and spans[-1][1] == box[axis][0]:
                spans[-1] = (spans[-1][0], box[axis][1])
            else:
                spans.append(box[axis])
        merged = [(*rest[:axis], span, *rest[axis:]) for rest, spans in spans_beside.items() for span in spans]
    return merged


def box_of(view: Tensor, base: Tensor) -> Box | None:
    """The box that ``view`` covers in ``base``; None if the view's elements are not exactly those of a box.

    Args:
        view: shares its storage with ``base``; it may be narrowed, transposed, reshaped, or several of these.
        base: a dense tensor: its elements have no gaps between them in the storage; the axes may be in any order.
    """
    if not view.numel():
        return ((0, 0),) * base.dim()
    first = int(view.storage_offset()) - int(base.storage_offset())
    last = first + sum((size - 1) * stride for size, stride in zip(view.shape, view.stride(), strict=True))
    box = [(0, 1)] * base.dim()
    # From the slowest axis to the fastest; the stride of an axis of size 1 means nothing.
    for axis in sorted((axis for axis, size in enumerate(base.shape) if size > 1), key=base.stride, reverse=True):
        (start, first), (end, last) = divmod(first, base.stride(axis)), divmod(last, base.stride(axis))
        box[axis] = (start, end + 1)
    # The view covers the box from its first to its last element if view and box have the same runs, so the same elements.
    return tuple(box) if _runs(base, [stop - start for start, stop in box]) == _runs(view, view.shape) else None


def _runs(tensor: Tensor, shape: Iterable[int]) -> list[tuple[int, int]]:
    """(stride, length) of each axis of a part of ``tensor``, the largest stride first; contiguous axes are merged."""
    runs: list[tuple[int, int]] = []
    for stride, size in sorted(zip(tensor.stride(), shape, strict=True), reverse=True):
        if size > 1 and runs and runs[-1][0] == stride * size:
            runs[-1] = (stride, runs[-1][1] * size)
        elif size > 1:
            runs.append((stride, size))
    return runs


def box_pairs(one: Tensor, one_base: Tensor, two: Tensor, two_base: Tensor) -> Iterator[tuple[Tensor, Box, Tensor, Box]]:
    """Cuts two views of one shape into pieces that cover a box in both bases; yields (piece, box, other piece, its box)."""
    one_box, two_box = box_of(one, one_base), box_of(two, two_base)
    if one_box is not None and two_box is not None:
        yield one, one_box, two, two_box
    else:
        yield from (pair for mine, theirs in split(one, two) for pair in box_pairs(mine, one_base, theirs, two_base))


def split(one: Tensor, two: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Cuts two views of one shape into pairs of slices, one for each index of the first axis that is longer than 1."""
    axis = next(axis for axis, size in enumerate(one.shape) if size > 1)
    return zip(one.unbind(axis), two.unbind(axis), strict=True)


def reshaped(view: Tensor, box: Box) -> Tensor | None:
    """The view in the shape of a box, without a copy; None if the view's strides do not allow that shape."""
    try:
        return view.view([stop - start for start, stop in box])
    except RuntimeError:
        return None


def inside(tensor: Tensor, box: Box, within: Box) -> Tensor:
    """The part of ``tensor`` that is at ``box``, if all of ``tensor`` is at the box ``within``."""
    return tensor[tuple(slice(start - origin, stop - origin) for (start, stop), (origin, _) in zip(box, within, strict=True))]

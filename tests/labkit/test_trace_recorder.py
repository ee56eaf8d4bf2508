"""The recorder against loaders written here: it needs torch alone, so every way to copy can be tried."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labkit.trace.recorder import Copy, CopyRecorder, span_of
from labkit.trace.records import TraceError


@st.composite
def parts(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """A shape of one to three dimensions, and a part of it that may be empty."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    spans = []
    for size in shape:
        start = draw(st.integers(0, size))
        spans.append((start, draw(st.integers(start, size))))
    return shape, tuple(spans)


@given(parts(), st.sampled_from(["cpu", "meta"]), st.integers(0, 5))
def test_a_part_is_told_by_offset_and_strides(part: Any, device: str, before: int) -> None:
    """Also where the tensor itself begins somewhere inside its storage, as in a memory-mapped file."""
    shape, spans = part
    numel = torch.Size(shape).numel()
    base = torch.empty(before + numel, device=device)[before:].view(shape)
    view = base
    for axis, (start, stop) in enumerate(spans):
        view = view.narrow(axis, start, stop - start)
    told = span_of(view, base)
    if view.numel():
        assert told == spans
    else:
        assert tuple(stop - start for start, stop in told) == tuple(view.shape)


def test_a_transposed_view_is_refused() -> None:
    base = torch.empty(4, 3)
    with pytest.raises(TraceError, match=r"is no rectangle of a tensor of shape \(4, 3\)"):
        span_of(base.t(), base)


def test_copies_are_told_apart_by_storage() -> None:
    """Rows 2 and 3 of the fused parameter from the last two rows of b, whatever else is copied meanwhile."""
    fused, scratch = torch.zeros(4, 3), torch.zeros(4, 3)
    tensors = {"a": torch.rand(2, 3), "b": torch.rand(4, 3)}
    recorder = CopyRecorder({"fused": fused})
    with recorder:
        for name, tensor in recorder.watch(tensors.items()):
            tensor.shard_id = {"a": 0, "b": "v"}[name]  # type: ignore[attr-defined]
            scratch.copy_(torch.ones(4, 3))
            fused.narrow(0, 0 if name == "a" else 2, 2).copy_(tensor[-2:])
    assert recorder.copies == [
        Copy("a", "fused", ((0, 2), (0, 3)), ((0, 2), (0, 3)), 0),
        Copy("b", "fused", ((2, 4), (0, 3)), ((2, 4), (0, 3)), "v"),
    ]
    recorder.check_values()


def test_tensors_that_share_one_storage_are_told_apart() -> None:
    """Two views of one memory-mapped file, both handed over before the first is copied."""
    everything = torch.rand(6)
    parameter = torch.zeros(6)
    recorder = CopyRecorder({"p": parameter})
    with recorder:
        for (_, tensor), place in zip(list(recorder.watch([("a", everything[:4]), ("b", everything[4:])])), (2, 0), strict=True):
            parameter[place : place + len(tensor)].copy_(tensor)
    assert recorder.copies == [Copy("a", "p", ((2, 6),), ((0, 4),), None), Copy("b", "p", ((0, 2),), ((0, 2),), None)]
    recorder.check_values()


def test_a_copy_from_elsewhere_is_not_passed_over() -> None:
    parameter = torch.zeros(4, 3)
    recorder = CopyRecorder({"p": parameter})
    ((_, tensor),) = recorder.watch([("a", torch.rand(4, 3))])
    with recorder, pytest.raises(TraceError, match="written from a tensor that is no part of a checkpoint tensor"):
        parameter.copy_(tensor + 1)


def test_a_value_that_changed_after_the_copy_is_named() -> None:
    parameter = torch.zeros(4, 3)
    recorder = CopyRecorder({"p": parameter})
    with recorder:
        for _, tensor in recorder.watch([("a", torch.rand(2, 3)), ("b", torch.rand(2, 3))]):
            parameter[2:].copy_(tensor) if len(recorder.tensors) > 1 else parameter[:2].copy_(tensor)
    recorder.check_values()
    parameter[3, 1] += 1
    with pytest.raises(TraceError, match=r"p does not hold b: its part \[\(2, 4\), \(0, 3\)\] differs"):
        recorder.check_values()


def test_a_part_that_was_written_again_is_judged_by_the_last_copy() -> None:
    parameter = torch.zeros(4)
    recorder = CopyRecorder({"p": parameter})
    with recorder:
        for _, tensor in recorder.watch([("a", torch.rand(4)), ("b", torch.rand(4))]):
            parameter.copy_(tensor)
    assert [copy.tensor for copy in recorder.copies] == ["a", "b"]
    recorder.check_values()


def test_a_rounded_copy_and_a_nan_count_as_held() -> None:
    """A float32 tensor into a bfloat16 parameter: what is held is the rounded value, and NaN equals itself."""
    parameter = torch.zeros(3, dtype=torch.bfloat16)
    recorder = CopyRecorder({"p": parameter})
    with recorder:
        for _, tensor in recorder.watch([("a", torch.tensor([1.0001, torch.nan, 3.0]))]):
            parameter.copy_(tensor)
    recorder.check_values()

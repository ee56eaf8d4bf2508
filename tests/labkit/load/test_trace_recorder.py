"""The recorder with small loaders that copy in every way; needs torch alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labkit.load.trace.boxes import box_of, box_pairs
from labkit.load.trace.recorder import Copy, CopyRecorder
from labkit.system.errors import UserError


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
def test_box_of_reads_offset_and_strides(part: Any, device: str, before: int) -> None:
    """Also where the tensor itself begins somewhere inside its storage, as in a memory-mapped file."""
    shape, spans = part
    numel = torch.Size(shape).numel()
    base = torch.empty(before + numel, device=device)[before:].view(shape)
    view = base
    for axis, (start, stop) in enumerate(spans):
        view = view.narrow(axis, start, stop - start)
    box = box_of(view, base)
    assert box == (spans if view.numel() else ((0, 0),) * len(shape))
    # Transposed, and flattened where that needs no copy, it covers the same box.
    assert box_of(view.permute(*reversed(range(len(shape)))), base) == box
    if view.is_contiguous():
        assert box_of(view.reshape(-1), base) == box


def test_a_view_that_is_no_rectangle_is_cut_into_some() -> None:
    """Every other row: two rectangles of two rows each would need a gap, so each row is its own."""
    base, rows = torch.empty(6, 3), torch.empty(3, 3)
    assert box_of(base[::2], base) is None
    assert [(one_box[0], two_box[0]) for _, one_box, _, two_box in box_pairs(base[::2], base, rows, rows)] == [
        ((0, 1), (0, 1)),
        ((2, 3), (1, 2)),
        ((4, 5), (2, 3)),
    ]


HEADS = 2


def turned(tensor: torch.Tensor) -> torch.Tensor:
    """GPT-2: a transposed matrix."""
    return tensor.t()


def sorted_heads(tensor: torch.Tensor) -> torch.Tensor:
    """Bloom: q, k, v of one head after the other on disk, all q, all k, all v in the parameter."""
    return tensor.view(HEADS, 3, -1, tensor.shape[-1]).transpose(0, 1).reshape(tensor.shape)


def joined_heads(tensor: torch.Tensor) -> torch.Tensor:
    """Falcon: the same by narrowing, and putting together again."""
    split = tensor.view(HEADS, 3, -1, tensor.shape[-1])
    return torch.cat([split.narrow(1, part, 1).reshape(-1, tensor.shape[-1]) for part in range(3)])


def stacked(tensor: torch.Tensor) -> torch.Tensor:
    return torch.stack([tensor[6:].clone(), tensor[:6].t().contiguous().t()]).view(tensor.shape)


@pytest.mark.parametrize("change", [turned, sorted_heads, joined_heads, stacked])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_tensor_made_from_a_checkpoint_tensor_is_traced_to_its_elements(change: Any, device: str) -> None:
    """Against torch itself: the copies, done again from the records alone, give the parameter that the loader made."""
    tensor = torch.arange(12.0 * 4).view(12, 4)
    loaded = change(tensor)
    parameter = torch.zeros(loaded.shape, device=device)
    recorder = CopyRecorder({"p": parameter})
    with recorder:
        for _, each in recorder.watch([("a", tensor.to(device))]):
            made = change(each)
            half = len(made) // 2
            parameter[:half].copy_(made[:half])
            parameter[half:].copy_(made[half:])
    again = torch.zeros(loaded.shape)
    for copy in recorder.copies:
        part = tensor[tuple(slice(*span) for span in copy.source)]
        again[tuple(slice(*span) for span in copy.destination)] = part.t() if change is turned else part
    assert torch.equal(again, loaded)
    assert not any(copy.changed for copy in recorder.copies)
    if device == "cpu":
        recorder.check_values()


def test_a_tensor_with_computed_values_is_traced_and_marked_as_changed() -> None:
    """Mamba stores the logarithm of A; its loader takes the power."""
    parameter = torch.zeros(4, 3)
    recorder = CopyRecorder({"p": parameter})
    with recorder:
        for _, tensor in recorder.watch([("a", torch.rand(8, 3))]):
            parameter.copy_(-torch.exp(tensor[4:].float()))
    assert recorder.copies == [Copy("a", "p", ((0, 4), (0, 3)), ((4, 8), (0, 3)), None, changed=True)]
    recorder.check_values()


def test_other_tensors_that_are_written_become_parameters() -> None:
    """A buffer; and Phi's head has a bias that the loader makes when it meets one, on the CPU while all else is on meta."""
    held = {"mean": torch.zeros(2), "constant": torch.zeros(2)}
    recorder = CopyRecorder({"p": torch.zeros(2)}, lambda: held)
    with recorder:
        for _, tensor in recorder.watch([("a", torch.rand(2)), ("b", torch.rand(3, device="meta"))]):
            if len(tensor) == 3:
                held["bias"] = torch.zeros(3)
            held["bias" if len(tensor) == 3 else "mean"].copy_(tensor)
            torch.zeros(len(tensor)).copy_(tensor)
    assert list(recorder.parameters) == ["p", "mean", "bias"]
    assert recorder.copies == [Copy("a", "mean", ((0, 2),), ((0, 2),), None), Copy("b", "bias", ((0, 3),), ((0, 3),), None)]


def test_copies_are_distinguished_by_storage() -> None:
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


def test_tensors_that_share_one_storage_are_distinguished() -> None:
    """Two views of one memory-mapped file, both handed over before the first is copied."""
    everything = torch.rand(6)
    parameter = torch.zeros(6)
    recorder = CopyRecorder({"p": parameter})
    with recorder:
        for (_, tensor), place in zip(list(recorder.watch([("a", everything[:4]), ("b", everything[4:])])), (2, 0), strict=True):
            parameter[place : place + len(tensor)].copy_(tensor)
    assert recorder.copies == [Copy("a", "p", ((2, 6),), ((0, 4),), None), Copy("b", "p", ((0, 2),), ((0, 2),), None)]
    recorder.check_values()


def test_a_copy_from_an_unknown_tensor_is_an_error() -> None:
    parameter = torch.zeros(4, 3)
    recorder = CopyRecorder({"p": parameter})
    ((_, tensor),) = recorder.watch([("a", torch.rand(4, 3))])
    with recorder, pytest.raises(UserError, match="written from a tensor that is no part of a checkpoint tensor"):
        parameter.copy_(tensor.sum(0).expand(4, 3))


def test_a_value_that_changed_after_the_copy_is_named() -> None:
    parameter = torch.zeros(4, 3)
    recorder = CopyRecorder({"p": parameter})
    with recorder:
        for _, tensor in recorder.watch([("a", torch.rand(2, 3)), ("b", torch.rand(2, 3))]):
            parameter[2:].copy_(tensor) if len(recorder.tensors) > 1 else parameter[:2].copy_(tensor)
    recorder.check_values()
    parameter[3, 1] += 1
    with pytest.raises(UserError, match=r"p does not hold b: its part \[\(2, 4\), \(0, 3\)\] differs"):
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

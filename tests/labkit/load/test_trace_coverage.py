"""Coverage of a load: box arithmetic against counting every element, findings and messages against numbers computed by hand."""

from __future__ import annotations

import io
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from captured import CAPTURED_FILES, captured
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from labkit.load.trace import Trace, print_coverage
from labkit.load.trace.boxes import covered, describe_box, without
from labkit.load.trace.coverage import Finding, find_faults
from labkit.load.trace.records import Fill
from labkit.system.labs import find_lab, load_implementation

SPAN = st.tuples(st.integers(0, 5), st.integers(0, 5)).map(lambda pair: (min(pair), max(pair)))
BOXES = st.lists(st.tuples(SPAN, SPAN, SPAN), max_size=5)


def painted(boxes: Any) -> Any:
    """How often each element of a (5, 5, 5) tensor is in one of the boxes."""
    counts = np.zeros((5, 5, 5), int)
    for box in boxes:
        counts[tuple(slice(*span) for span in box)] += 1
    return counts


@given(BOXES)
def test_what_is_covered_once_and_twice_is_what_counting_says(boxes: Any) -> None:
    """The boxes that come back do not overlap either: painting them gives 0 and 1 alone."""
    once, twice = covered(boxes)
    counts = painted(boxes)
    assert (painted(once) == (counts > 0)).all()
    assert (painted(twice) == (counts > 1)).all()
    assert (painted(without(((0, 5), (0, 5), (0, 5)), boxes)) == (counts == 0)).all()


def test_neighbours_come_back_as_one() -> None:
    assert covered([((0, 2), (0, 3)), ((2, 4), (0, 3)), ((0, 4), (0, 3))]) == ([((0, 4), (0, 3))], [((0, 4), (0, 3))])
    assert without(((0, 9), (0, 3)), [((2, 4), (0, 3)), ((4, 5), (0, 3))]) == [((0, 2), (0, 3)), ((5, 9), (0, 3))]
    assert without((), []) == [()]
    assert without((), [()]) == []


@pytest.mark.parametrize("path", CAPTURED_FILES, ids=lambda path: path.stem)
def test_the_lab_and_the_tool_find_the_same(path: Path) -> None:
    """Lab 02's solution counts the cells of a grid and computes the padding; ``find_faults`` subtracts boxes."""
    trace = Trace.read(path)
    diagnose = load_implementation(find_lab("02").implementation("solution")).diagnose
    theirs = diagnose([record.as_dict() for record in trace.records], trace.checkpoint_shapes, trace.parameter_shapes)
    ours = find_faults(trace)
    assert {(f.fault, f.name, f.part, f.tp_rank) for f in ours} == {(f.fault, f.name, f.part, f.tp_rank) for f in theirs}
    assert bool(ours) == path.stem.startswith("fault-")


def test_a_vocabularys_padding_is_no_fault_if_it_was_filled() -> None:
    """131 rows on two ranks of 96: rank 1 has 35 of them and 61 of zeros."""
    trace = captured("tiny-tp2")
    heads = [fill for fill in trace.fills if fill.parameter == "lm_head.weight"]
    assert heads == [Fill("lm_head.weight", ((35, 96), (0, 64)), 1)]
    unfilled = replace(trace, fills=tuple(fill for fill in trace.fills if fill not in heads))
    assert find_faults(unfilled) == [Finding("missing", "lm_head.weight", ((35, 96), (0, 64)), (96, 64), 1)]


def test_cut_off_is_reported_only_for_all_ranks_together() -> None:
    trace = captured("fault-mha-into-gqa")
    assert [finding.fault for finding in find_faults(trace)] == ["cut off", "cut off"]
    assert find_faults(trace.of_rank(1)) == []


def test_messages_have_the_numbers() -> None:
    assert describe_box(((512, 1024), (0, 4096)), (1024, 4096)) == "rows 512:1024"
    assert describe_box(((0, 4096), (0, 7168)), (4096, 14336)) == "columns 0:7168"
    assert describe_box(((0, 3), (0, 4)), (3, 4)) == "rows 0:3"
    assert describe_box(((1, 3), (2, 4)), (3, 4)) == "rows 1:3, columns 2:4"
    assert describe_box((), ()) == "the value"
    said = [str(Finding(fault, "p", ((1, 3), (0, 4)), (3, 4), 1)) for fault in ("missing", "twice", "cut off", "rounded")]
    assert said[0] == "missing: rows 1:3 of p (3x4) were never written on rank 1"
    assert said[1] == "twice: rows 1:3 of p (3x4) were written more than once on rank 1"
    assert said[2] == "cut off: rows 1:3 of p (3x4) were read by no rank"
    assert said[3] == "rounded: values of p (3x4) were changed by the conversion to the parameter's element type"


def verdict(name: str) -> tuple[bool, str]:
    console = Console(width=80, highlight=False, record=True, file=io.StringIO())
    return print_coverage(captured(name), console), console.export_text()


def test_the_verdict_is_describe_box() -> None:
    assert verdict("llama-3-8b-tp2") == (
        True,
        "\nwhole: every row of 195 parameters on 2 ranks was written once;\n"
        "       every row of 291 checkpoint tensors was read.\n"
        "This check cannot find swapped or permuted rows: their shapes are right.\n",
    )
    held, said = verdict("fault-o-proj-too-wide")
    assert not held
    assert said == (
        "\ncut off: columns 128:160 of model.layers.1.self_attn.o_proj.weight (64x160) were read by no rank\n"
        "NOT WHOLE: 1 fault in this load\n"
    )


def test_every_element_of_a_whole_load_is_accounted_for() -> None:
    """Elements copied and filled on a rank are together those of its parameters."""
    trace = captured("tiny-tp2")
    for rank in (0, 1):
        mine = trace.of_rank(rank)
        boxes = [record.destination for record in mine.records] + [fill.destination for fill in mine.fills]
        held = sum(prod(stop - start for start, stop in box) for box in boxes)
        assert held == sum(prod(shape) for shape in trace.parameter_shapes.values())

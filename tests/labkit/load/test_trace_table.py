"""The table of a trace as plain text, in 80 columns and in a wide terminal."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from captured import captured
from rich.console import Console

from labkit.load.trace import EXAMPLE_TENSORS, Trace, print_trace, select


def printed(trace: Trace, width: int) -> str:
    stream = io.StringIO()
    print_trace(trace, Console(file=stream, width=width))
    return stream.getvalue()


@pytest.fixture(scope="module")
def five() -> Trace:
    return select(captured("llama-3-8b-tp2"), EXAMPLE_TENSORS)


def test_eighty_columns_are_enough(five: Trace) -> None:
    text = printed(five, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    for words in (
        "TP 2, rank 0",
        "TP 2, rank 1",
        ".k_proj -> .qkv_proj, shard k",
        "(3072, 4096)",
        "rows 2048:2560",
        "rows 512:1024",
    ):
        assert words in text
    assert "columns 7168:14336" in text, "down_proj is cut along columns"


def test_the_longest_names_and_numbers_fit_too() -> None:
    """Layer 125 of a model as wide as Llama-3.1-405B, one rank of two."""
    record = next(r for r in captured("llama-3-8b-tp2").records if "v_proj" in r.tensor)
    record = replace(
        record,
        tensor="model.layers.125.self_attn.v_proj.weight",
        parameter="model.layers.125.self_attn.qkv_proj.weight",
        shape=(128256, 16384),
        source=((0, 128256), (26624, 53248)),
    )
    trace = replace(captured("llama-3-8b-tp2"), records=(record,), checkpoint_shapes={})
    text = printed(trace, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert record.parameter in text
    assert "columns 26624:53248" in text


def test_a_wide_terminal_has_one_line_per_tensor(five: Trace) -> None:
    lines = printed(five, 200).splitlines()
    line = next(line for line in lines if "k_proj.weight" in line)
    for words in (
        "(1024, 4096)",
        ".k_proj -> .qkv_proj, shard k",
        "qkv_proj.weight",
        "(3072, 4096)",
        "rows 2048:2560",
        "rows 0:512",
    ):
        assert words in line


def test_a_tensor_that_no_rank_read_is_named() -> None:
    trace = captured("fault-bias-unread")
    assert "not read by vLLM: model.layers.1.self_attn.q_proj.bias (128,)" in printed(trace, 80)
    assert "not read" not in printed(captured("tiny-tp2"), 80)

"""The trace as data: its JSON form, errors for other JSON, atomic writes, selections."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from captured import CAPTURED, CAPTURED_FILES, captured
from hypothesis import given
from hypothesis import strategies as st

from labkit.load.trace import EXAMPLE_TENSORS, MappingRow, Record, Trace, select
from labkit.load.trace.records import Fill
from labkit.system.errors import UserError

SPANS = st.lists(st.tuples(st.integers(0, 9), st.integers(10, 20)), min_size=1, max_size=2).map(tuple)
SHAPES = st.lists(st.integers(1, 200000), min_size=1, max_size=2).map(tuple)
MAPPINGS = st.none() | st.builds(MappingRow, st.text(), st.text(), st.sampled_from(["q", "k", "v", 0, 1]))
RECORDS = st.builds(
    Record,
    tensor=st.text(),
    shape=SHAPES,
    dtype=st.none() | st.sampled_from(["BF16", "F32"]),
    file=st.none() | st.text(),
    bytes=st.none() | st.tuples(st.integers(0, 9), st.integers(10, 20)),
    mapping=MAPPINGS,
    parameter=st.text(),
    parameter_shape=SHAPES,
    parameter_dtype=st.text(),
    destination=SPANS,
    source=SPANS,
    tp_rank=st.integers(0, 7),
    tp_size=st.integers(1, 8),
)
FILLS = st.builds(Fill, st.text(), SPANS, st.integers(0, 7))
SHAPES_BY_NAME = st.dictionaries(st.text(), SHAPES, max_size=3)
TRACES = st.builds(
    Trace,
    *[st.text()] * 4,
    st.lists(RECORDS, max_size=3).map(tuple),
    SHAPES_BY_NAME,
    SHAPES_BY_NAME,
    fills=st.lists(FILLS, max_size=2).map(tuple),
    rounded=st.lists(st.text(), max_size=2).map(tuple),
    repacked=st.dictionaries(st.text(), st.text(), max_size=2),
    not_run=st.lists(st.text(), max_size=2).map(tuple),
    head_size=st.none() | st.integers(1, 256),
)


@given(TRACES)
def test_json_brings_back_the_same_trace(trace: Trace) -> None:
    assert Trace.from_json(trace.to_json()) == trace


def test_the_file_form_is_the_documented_one_with_a_record_on_a_line() -> None:
    text = (CAPTURED / "llama-3-8b-tp2.json").read_text()
    data = json.loads(text)
    assert list(data) == [
        *["vllm", "torch", "device", "model", "records", "checkpoint_shapes", "parameter_shapes", "fills", "rounded", "repacked"],
        "not_run",
        "head_size",
    ]
    k_proj = next(r for r in data["records"] if r["tensor"] == "model.layers.0.self_attn.k_proj.weight" and r["tp_rank"] == 1)
    assert k_proj == {
        "tensor": "model.layers.0.self_attn.k_proj.weight",
        "shape": [1024, 4096],
        "dtype": None,
        "file": None,
        "bytes": None,
        "mapping": {"from": ".k_proj", "to": ".qkv_proj", "shard": "k"},
        "parameter": "model.layers.0.self_attn.qkv_proj.weight",
        "parameter_shape": [3072, 4096],
        "parameter_dtype": "bfloat16",
        "destination": [[2048, 2560], [0, 4096]],
        "source": [[512, 1024], [0, 4096]],
        "tp_rank": 1,
        "tp_size": 2,
    }
    lines = [json.loads(line.rstrip(",")) for line in text.splitlines() if line.startswith('{"tensor"')]
    assert lines == data["records"]


@pytest.mark.parametrize("path", CAPTURED_FILES, ids=lambda path: path.stem)
def test_every_recording_is_complete_and_names_no_folder_of_a_machine(path: Path) -> None:
    trace = Trace.read(path)
    assert trace.to_json() == path.read_text()
    assert {record.tensor for record in trace.records} <= set(trace.checkpoint_shapes)
    assert {record.parameter for record in trace.records} <= set(trace.parameter_shapes)
    assert "/" not in trace.model


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not a trace"),
        ("[]", "not a trace"),
        ('{"vllm": "1"}', "'torch' is missing"),
        ('{"vllm": "1", "torch": "2", "device": "meta", "model": "m", "records": [{}]}', "'tensor' is missing"),
    ],
)
def test_other_json_is_refused_with_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=said) as refused:
        Trace.read(tmp_path / "x.json")
    assert "x.json" in str(refused.value)
    assert "record it again" in str(refused.value)


@pytest.mark.parametrize(
    ("field", "value"), [("shape", 5), ("parameter_shape", None), ("source", [5]), ("destination", [[0, 1, 2]]), ("source", None)]
)
def test_a_record_with_a_malformed_shape_or_part_is_refused(field: str, value: object) -> None:
    data = json.loads((CAPTURED / "tiny-tp2.json").read_text())
    data["records"][0][field] = value
    with pytest.raises(UserError, match="not a trace"):
        Trace.from_json(json.dumps(data))


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, file_size_limit: Callable[[int], None]) -> None:
    trace, path = captured("tiny-tp2"), tmp_path / "a.json"
    trace.write(path)
    assert Trace.read(path) == trace
    with pytest.raises(UserError, match="cannot write"):
        trace.write(tmp_path / "missing" / "a.json")
    file_size_limit(1000)
    with pytest.raises(UserError, match=r"cannot write .*a\.json: File too large"):
        trace.write(path)
    assert Trace.read(path) == trace
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_select_keeps_the_order_asked_for_on_every_rank() -> None:
    chosen = select(captured("llama-3-8b-tp2"), EXAMPLE_TENSORS)
    assert [record.tensor for record in chosen.records] == [*EXAMPLE_TENSORS, *EXAMPLE_TENSORS]
    assert [record.tp_rank for record in chosen.records] == [0] * 5 + [1] * 5
    assert list(chosen.checkpoint_shapes) == list(EXAMPLE_TENSORS)
    assert len(chosen.parameter_shapes) == 3


def test_select_names_the_nearest_when_there_is_no_such_tensor() -> None:
    trace = captured("smollm2-tp3")
    with pytest.raises(
        UserError, match=r"smollm2.* has no tensor 'model.layers.0.self_atn.q_proj.weight'; nearest: .*q_proj.weight"
    ):
        select(trace, ["model.layers.0.self_atn.q_proj.weight"])
    with pytest.raises(UserError, match=r"its names look like model\.embed_tokens\.weight"):
        select(trace, ["?"])

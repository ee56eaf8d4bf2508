"""Dummy weights: values that anybody can work out again, and in which a slice in the wrong place shows."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recordings import TINY
from safetensors import safe_open
from safetensors.torch import save_file

from labkit.checkpoints.fetch.checkpoint import hub_ids
from labkit.checkpoints.fetch.dummy_weights import EVERY, METADATA, disk_bytes, dummy_fault, dummy_values, write_dummy
from labkit.checkpoints.headers import read_header
from labkit.checkpoints.known_models import implied_shapes, known_names, resolve
from labkit.load.trace import trace_load
from labkit.load.trace.coverage import find_faults

Q, K, V = (f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv")


def by_hand(name: str, row: int, column: int) -> int:
    """The rule of labkit/checkpoints/fetch/dummy_weights.py for one value, in words of the standard library."""
    (row_word,) = struct.unpack_from("<H", hashlib.shake_128(f"{name} rows".encode()).digest(2 * row + 2), 2 * row)
    (column_word,) = struct.unpack_from("<H", hashlib.shake_128(f"{name} columns".encode()).digest(2 * column + 2), 2 * column)
    return 0x3A00 ^ (0x81FF & (row_word ^ column_word))


@given(st.sampled_from([Q, K, "lm_head.weight"]), st.integers(0, 299), st.integers(0, 63))
def test_a_value_is_what_the_rule_says(name: str, row: int, column: int) -> None:
    assert dummy_values(name, (300, 64), range(300))[row, column] == by_hand(name, row, column)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama-3-8B's shapes in one file."""
    file = tmp_path_factory.mktemp("llama") / "model.safetensors"
    write_dummy(file, resolve("llama-3-8b").shapes)
    return file


def test_the_file_is_a_safetensors_file_of_the_true_shapes_and_says_what_it_is(llama: Path) -> None:
    shapes = resolve("llama-3-8b").shapes
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in read_header(llama).items()} == {
        name: ("BF16", shape) for name, shape in shapes.items()
    }
    assert len(shapes) == 291
    with safe_open(llama, framework="pt") as file:
        assert file.metadata() == METADATA
        k = file.get_slice(K)[1000:1001, :]
        later = file.get_slice("model.layers.31.mlp.down_proj.weight")[EVERY : EVERY + 2, :].view(torch.int16)
        norm = file.get_tensor("model.layers.17.input_layernorm.weight").view(torch.int16)
    assert k.view(torch.int16)[0, 7].item() & 0xFFFF == by_hand(K, 1000, 7)
    assert later[0, 9].item() & 0xFFFF == by_hand("model.layers.31.mlp.down_proj.weight", EVERY, 9)
    assert not later[1].any()
    assert norm[5].item() & 0xFFFF == by_hand("model.layers.17.input_layernorm.weight", 0, 5)
    assert 2**-11 <= k.abs().min() < k.abs().max() < 2**-7


def test_the_holes_take_no_room(llama: Path) -> None:
    held = llama.stat()
    written = disk_bytes(resolve("llama-3-8b").shapes)
    assert held.st_size > 16_060_000_000
    assert written <= held.st_blocks * 512 < 600_000_000


def test_what_lies_in_the_file_can_be_checked_at_any_time(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write_dummy(file, implied_shapes(TINY))
    assert dummy_fault(file) is None
    at = read_header(file)["model.norm.weight"].bytes[0]
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(b"\0\0")
    assert dummy_fault(file) == "model.norm.weight of model.safetensors has wrong values in rows 0 to 0"
    with file.open("r+b") as opened:
        opened.truncate(at)
    assert "fetch it again" in (dummy_fault(file) or "")


@pytest.mark.parametrize("wrong", ["k and v exchanged", "q turned by a head", "gate of another layer"])
def test_a_slice_in_the_wrong_place_shows(wrong: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write_dummy(file, implied_shapes(TINY))
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    gate = "model.layers.{}.mlp.gate_proj.weight"
    if wrong == "k and v exchanged":
        tensors[K], tensors[V] = tensors[V], tensors[K]
    elif wrong == "q turned by a head":
        tensors[Q] = tensors[Q].roll(8, 0).contiguous()
    else:
        tensors[gate.format(0)] = tensors[gate.format(1)].clone()
    save_file(tensors, file)
    assert dummy_fault(file) is not None


@given(st.integers(1, 1023))
def test_no_shift_of_rows_looks_like_none(shift: int) -> None:
    rows = dummy_values(K, (1024, 16), range(1024))
    assert (rows[shift:] != rows[:-shift]).any()
    assert len(np.unique(rows, axis=0)) > 500


def test_the_real_vllm_loads_them(tmp_path: Path) -> None:
    """Through the trace, which sees that each value of each parameter is the one in the file."""
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    write_dummy(tmp_path / "model.safetensors", implied_shapes(TINY))
    traced = trace_load(tmp_path, 2, range(2), "cpu")
    assert find_faults(traced) == []


def test_every_gated_family_of_llama_is_known() -> None:
    """Each hub id leads to a known config; here to the number of parameters that its model card gives, in billions."""
    assert set(hub_ids().values()) <= set(known_names())
    for model, billions in {
        "meta-llama/Llama-2-7b-hf": 6.74,
        "meta-llama/Llama-2-70b-chat-hf": 68.98,
        "meta-llama/Meta-Llama-3-8B-Instruct": 8.03,
        "meta-llama/Llama-3.1-405B": 405.85,
        "meta-llama/Llama-3.2-1B-Instruct": 1.24,
        "meta-llama/Llama-3.2-3B": 3.21,
        "meta-llama/Llama-3.3-70B-Instruct": 70.55,
    }.items():
        count = sum(math.prod(shape) for shape in resolve(hub_ids()[model]).shapes.values())
        assert round(count / 1e9, 2) == billions, model

"""Headers: what is read is what the safetensors library reads, and whatever is wrong ends in one sentence."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from labkit.checkpoints.headers import BITS, INDEX, MAX_HEADER, read_checkpoint, read_header
from labkit.system.errors import UserError


def written(folder: Path, header: Any, data: bytes = b"", name: str = "model.safetensors") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / name
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return file


def entry(dtype: Any = "F32", shape: Any = (2, 3), offsets: Any = (0, 24)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refusal(file: Path) -> str:
    with pytest.raises(UserError) as refused:
        read_header(file)
    assert str(file) in str(refused.value)
    return str(refused.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the tests of hypothesis, which write one file again and again."""
    return tmp_path_factory.mktemp("headers")


TYPES = ["float32", "float16", "int64", "int8", "uint8", "bool", "int32"]
ARRAYS = st.dictionaries(
    st.text("abc.é", min_size=1, max_size=6),
    st.tuples(
        st.lists(st.integers(0, 4), max_size=3),
        st.sampled_from(TYPES),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(arrays=ARRAYS, seed=st.integers(0, 2**32 - 1))
def test_what_is_read_is_what_the_library_reads(
    arrays: dict[str, Any], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Names, shapes and types; and the bytes at each range are the array's."""
    file = tmp_path_factory.mktemp("h") / "a.safetensors"
    draw = np.random.default_rng(seed)
    values = {name: draw.integers(0, 2, shape).astype(dtype) for name, (shape, dtype) in arrays.items()}
    save_file(values, file, metadata={"format": "np"})
    stored = read_header(file)
    with safe_open(file, framework="numpy") as theirs:
        assert set(stored) == set(theirs.keys())
        for name in theirs.keys():  # noqa: SIM118
            part = theirs.get_slice(name)
            assert (stored[name].shape, stored[name].dtype) == (tuple(part.get_shape()), part.get_dtype())
            start, stop = stored[name].bytes
            assert file.read_bytes()[start:stop] == values[name].tobytes()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries({"dtype": JSON | st.just("F32"), "shape": JSON, "data_offsets": JSON})
HEADERS = st.binary(max_size=60) | (JSON | st.dictionaries(st.text(max_size=3), ENTRIES | JSON, max_size=2)).map(
    lambda value: json.dumps(value).encode()
)


@settings(max_examples=300, deadline=None)
@given(header=HEADERS, data=st.binary(max_size=30), length=st.none() | st.binary(min_size=8, max_size=8))
def test_any_bytes_are_a_checkpoint_or_a_sentence(header: bytes, data: bytes, length: bytes | None, folder: Path) -> None:
    file = folder / "a.safetensors"
    file.write_bytes((length or len(header).to_bytes(8, "little")) + header + data)
    with suppress(UserError):
        assert all(0 <= tensor.bytes[0] <= tensor.bytes[1] <= file.stat().st_size for tensor in read_header(file).values())


BROKEN = {
    "overlap": ({"a": entry(), "b": entry(offsets=(12, 36))}, b"\0" * 36, "b begins at byte"),
    "a hole": ({"a": entry(), "b": entry(offsets=(28, 52))}, b"\0" * 52, "b begins at byte"),
    "more data than promised": ({"a": entry()}, b"\0" * 25, "is cut off or is no safetensors file: its header promises"),
    "less data than promised": ({"a": entry()}, b"\0" * 23, "is cut off or is no safetensors file: its header promises"),
    "a range that is not the shape's": (
        {"a": entry(offsets=(0, 20))},
        b"\0" * 20,
        "its data_offsets 0 to 20 hold 20",
    ),
    "a range that goes backwards": ({"a": entry(offsets=(24, 0))}, b"\0" * 24, "24 to 0 hold -24"),
    "a negative size": ({"a": entry(shape=(-2, -3))}, b"\0" * 24, "is not one of safetensors"),
    "a size that is true": ({"a": entry(shape=(True, 6))}, b"\0" * 24, "is not one of safetensors"),
    "a type that there is not": ({"a": entry(dtype="F33")}, b"\0" * 24, "is not one of safetensors"),
    "a type that is a list": ({"a": entry(dtype=[])}, b"\0" * 24, "is not one of safetensors"),
    "three offsets": ({"a": entry(offsets=(0, 1, 2))}, b"\0" * 24, "is not one of safetensors"),
    "a list": ([1], b"", "holds no JSON object"),
    "no JSON": (b"{", b"", "is not JSON"),
    "half a character": (b'{"\xc3": 1}', b"", "is not JSON"),
    "a shape that is text": ({"a": entry(shape="", offsets=(0, 4))}, b"\0" * 4, "is not one of safetensors"),
    "a shape that is an object": ({"a": entry(shape={}, offsets=(0, 4))}, b"\0" * 4, "is not one of safetensors"),
    "a product of more digits than Python prints": (
        b'{"a":{"dtype":"F32","shape":[%b,%b],"data_offsets":[0,0]}}' % (b"9" * 4000, b"9" * 4000),
        b"",
        "is not one of safetensors",
    ),
    "a product beyond 64 bits": ({"a": entry(shape=(2**40, 2**40, 0), offsets=(0, 0))}, b"", "is not one of safetensors"),
    "UTF-16": (json.dumps({"a": entry()}).encode("utf-16-le"), b"\0" * 24, "is not JSON"),
    "a byte order mark": (b"\xef\xbb\xbf" + json.dumps({"a": entry()}).encode(), b"\0" * 24, "is not JSON"),
    "half of a surrogate pair": ({"\ud800": entry()}, b"\0" * 24, "is not JSON"),
    "a field given twice": (
        b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"\0" * 4,
        "'dtype' is given twice",
    ),
    "NaN": (b'{"__metadata__":{"a":NaN}}', b"", "NaN is no JSON"),
    "metadata that is no text": ({"__metadata__": {"a": 1}}, b"", "does not map names to texts"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_header_is_refused_here_and_by_the_library(name: str, tmp_path: Path) -> None:
    header, data, said = BROKEN[name]
    file = written(tmp_path, header, data)
    assert said in refusal(file)
    with pytest.raises((SafetensorError, OverflowError)), safe_open(file, framework="numpy"):
        pass


def test_a_name_given_twice_is_refused_as_the_format_has_it(tmp_path: Path) -> None:
    """The library keeps the last; the format's text disallows it, and another reader would keep the first."""
    twice = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}'
    assert "'a' is given twice" in refusal(written(tmp_path, twice, b"\0" * 4))


@pytest.mark.parametrize("dtype", BITS)
def test_every_element_type_is_one_of_the_library_and_as_wide(dtype: str, tmp_path: Path) -> None:
    file = written(tmp_path, {"a": entry(dtype, (8,), (0, BITS[dtype]))}, b"\0" * BITS[dtype])
    with safe_open(file, framework="numpy") as theirs:
        assert theirs.get_slice("a").get_dtype() == read_header(file)["a"].dtype == dtype


def test_a_path_that_the_system_refuses(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        read_checkpoint(tmp_path / ("a" * 300))


def test_depth_and_length_are_bounded(tmp_path: Path) -> None:
    assert "is not JSON" in refusal(written(tmp_path, b'{"a":' + b"[" * 100_000))
    short = tmp_path / "short.safetensors"
    short.write_bytes(b"\xff" * 8)
    assert "its header alone would take 18,446,744,073,709,551,623" in refusal(short)
    short.write_bytes(b"abc")
    assert "(3 bytes) is cut off" in refusal(short)
    long = tmp_path / "long.safetensors"
    with long.open("wb") as file:
        file.write((MAX_HEADER + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER + 100)
    assert "a header of 100,000,001 bytes is over the limit of 100,000,000" in refusal(long)


def test_elements_of_half_a_byte_and_tensors_of_none(tmp_path: Path) -> None:
    file = written(
        tmp_path, {"a": entry("F4", (2, 6), (0, 6)), "b": entry("F32", (0, 3), (6, 6)), "c": entry("U8", (), (6, 7))}, b"\0" * 7
    )
    assert [(tensor.shape, tensor.bytes[1] - tensor.bytes[0]) for tensor in read_header(file).values()] == [
        ((2, 6), 6),
        ((0, 3), 0),
        ((), 1),
    ]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "a.ckpt"])
def test_pickles_are_not_opened(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    (tmp_path / name).chmod(0)
    assert "is a pickle, and reading one runs the code in it" in refusal(tmp_path / name)
    with pytest.raises(UserError, match=f"only {name}, a pickle"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("outside", ["../a.safetensors", "/etc/passwd", "sub/a.safetensors", "..", "", 3])
def test_an_index_that_names_what_is_outside_is_refused(outside: Any, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": outside}}))
    with pytest.raises(UserError, match="is no file name in its folder; fetch the checkpoint again"):
        read_checkpoint(tmp_path)


def test_of_a_name_in_two_files_the_later_is_given(tmp_path: Path) -> None:
    """As vLLM reads it, which copies both."""
    written(tmp_path, {"a": entry()}, b"\0" * 24, "model-1.safetensors")
    written(tmp_path, {"a": entry(shape=(6,))}, b"\0" * 24, "model-2.safetensors")
    assert read_checkpoint(tmp_path)["a"].shape == (6,)
    assert read_checkpoint(tmp_path / "model-1.safetensors")["a"].shape == (2, 3)

"""Dummy weights: a checkpoint with a model's tensor names, shapes and element type, whose values follow from a rule.

The value of a tensor at (row, column) is the bf16 number whose 16 bits are

    0x3A00  xor  (0x81FF  and  (rows[row]  xor  columns[column]))

where rows and columns are the little-endian words of SHAKE128("<tensor> rows") and SHAKE128("<tensor> columns"). So each value is
finite, its magnitude is between 2**-11 and 2**-7, and a slice in the wrong place has wrong values. A tensor of one dimension is
one row.

Layer 0 is written in full, of every other matrix each 256th row; the other rows are holes in the file, which read as zeros and
need no disk space: 16.06 GB of Llama-3-8B need 0.5 GB of disk. The safetensors library would write the zeros to disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.checkpoints.headers import Shape, read_header
from labkit.system.errors import UserError

Words = NDArray[np.uint16]
EVERY = 256
"""The step between written rows of a matrix outside layer 0."""
MAX_VALUES = 1 << 22
"""The most values computed at once, at 2 bytes each."""
PAGE = 4096
"""The page size in bytes; the data begins at a multiple of it, so that it covers the fewest pages."""

METADATA = {"format": "pt", "mini-vllm-labs": "DUMMY weights, not the model's own: shapes are true, values are made up"}


def write_dummy(file: Path, shapes: Mapping[str, Shape]) -> None:
    """Writes one safetensors file, bf16, whose data begins at a multiple of PAGE; raises OSError if the disk is full."""
    header: dict[str, Any] = {"__metadata__": METADATA}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        data = opened.tell()
        for name, shape in shapes.items():
            at = data + header[name]["data_offsets"][0]
            for row, words in _written(name, shape):
                opened.seek(at + 2 * row * words.shape[1])
                opened.write(words.data)
        opened.truncate(data + end)


def disk_bytes(shapes: Mapping[str, Shape]) -> int:
    """The bytes of values that ``write_dummy`` writes, without the holes."""
    return sum(2 * len(_rows(name, shape)) * shape[-1] for name, shape in shapes.items())


def dummy_fault(file: Path) -> str | None:
    """The first fault of a file of dummy weights in words: a broken header, or rows that violate the rule; or None."""
    try:
        stored = read_header(file)
        with file.open("rb") as opened:
            for name, tensor in stored.items():
                for row, words in _written(name, tensor.shape):
                    opened.seek(tensor.bytes[0] + 2 * row * words.shape[1])
                    if opened.read(words.nbytes) != words.tobytes():
                        return f"{name} of {file.name} has wrong values in rows {row} to {row + len(words) - 1}"
    except UserError as error:
        return str(error)
    return None


def dummy_values(name: str, shape: Shape, rows: range) -> Words:
    """The bf16 bit patterns of the given rows of a tensor: uint16 of shape (len(rows), columns)."""
    count, columns = (1, *shape)[-2:]
    row_words = _words(f"{name} rows", count)[rows.start : rows.stop : rows.step]
    column_words = _words(f"{name} columns", columns) & np.uint16(0x81FF)
    return (row_words & np.uint16(0x81FF) ^ np.uint16(0x3A00))[:, None] ^ column_words


def _words(of: str, count: int) -> Words:
    return np.frombuffer(hashlib.shake_128(of.encode()).digest(2 * count), dtype="<u2")


def _rows(name: str, shape: Shape) -> range:
    return range(0, (1, *shape)[-2], 1 if name.startswith("model.layers.0.") else EVERY)


def _written(name: str, shape: Shape) -> Iterator[tuple[int, Words]]:
    """Yields each block of adjacent rows to write: the number of the first row, and the values, of shape (rows, columns)."""
    rows = _rows(name, shape)
    size = max(1, MAX_VALUES // shape[-1])
    for first in range(0, len(rows), size):
        block = rows[first : first + size]
        words = dummy_values(name, shape, block)
        if rows.step == 1:
            yield block.start, words
        else:
            yield from ((row, words[[index]]) for index, row in enumerate(block))

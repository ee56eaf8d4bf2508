"""Dummy weights: a checkpoint of a model's true names, shapes and type, with values that anybody can work out again.

The value of a tensor at (row, column) is the bf16 number whose 16 bits are

    0x3A00  xor  (0x81FF  and  (rows[row]  xor  columns[column]))

where rows and columns are the little-endian words of SHAKE128("<tensor> rows") and SHAKE128("<tensor> columns"). So each is
finite, between 2**-11 and 2**-7 either side of zero, and a slice that ends up elsewhere does not look like what belongs there.
A tensor of one dimension is one row.

Layer 0 is written in full, of every other matrix each 256th row; the rest are holes in the file, which read as zeros and take no
room on disk: 16.06 GB of Llama-3-8B are 0.5 GB there.
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
"""Of a matrix outside layer 0, each so many-th row is written."""

AT_ONCE = 1 << 22
"""Values computed in one go, at 2 bytes each."""

PAGE = 4096
"""Bytes; data that begins on one touches the fewest pages."""

METADATA = {"format": "pt", "mini-vllm-labs": "DUMMY weights, not the model's own: shapes are true, values are made up"}
"""The safetensors metadata of a file of dummy weights."""


def write_dummy(file: Path, shapes: Mapping[str, Shape]) -> None:
    """Writes one safetensors file, bf16, its data beginning at a page.

    Raises:
        OSError: no room, or no leave to write.
    """
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
    """How many bytes of values ``write_dummy`` writes; the holes are not counted."""
    return sum(2 * len(_rows(name, shape)) * shape[-1] for name, shape in shapes.items())


def dummy_fault(file: Path) -> str | None:
    """What is wrong with a file of dummy weights: a broken header, or the first value that is not what the rule above says."""
    try:
        stored = read_header(file)
        with file.open("rb") as opened:
            for name, tensor in stored.items():
                for row, words in _written(name, tensor.shape):
                    opened.seek(tensor.bytes[0] + 2 * row * words.shape[1])
                    if opened.read(words.nbytes) != words.tobytes():
                        return f"{name} of {file.name} has other values at row {row} or in the {len(words)} from it"
    except UserError as error:
        return str(error)
    return None


def dummy_values(name: str, shape: Shape, rows: range) -> Words:
    """The bits of a tensor's values in some rows: uint16 of shape (len(rows), columns)."""
    count, columns = (1, *shape)[-2:]
    row_words = _words(f"{name} rows", count)[rows.start : rows.stop : rows.step]
    column_words = _words(f"{name} columns", columns) & np.uint16(0x81FF)
    return (row_words & np.uint16(0x81FF) ^ np.uint16(0x3A00))[:, None] ^ column_words


def _words(of: str, count: int) -> Words:
    return np.frombuffer(hashlib.shake_128(of.encode()).digest(2 * count), dtype="<u2")


def _rows(name: str, shape: Shape) -> range:
    """The rows that are written."""
    return range(0, (1, *shape)[-2], 1 if name.startswith("model.layers.0.") else EVERY)


def _written(name: str, shape: Shape) -> Iterator[tuple[int, Words]]:
    """Rows that lie one behind the other, and the number of the first; a few at a time."""
    rows = _rows(name, shape)
    together = max(1, AT_ONCE // shape[-1])
    for first in range(0, len(rows), together):
        some = rows[first : first + together]
        words = dummy_values(name, shape, some)
        if rows.step == 1:
            yield some.start, words
        else:
            yield from ((row, words[[at]]) for at, row in enumerate(some))

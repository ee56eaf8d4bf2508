"""What a checkpoint holds, from the headers of its safetensors files alone: names, shapes, types, and where the bytes lie.

    0        8              8 + N                                                  size of the file
    |  N     |  JSON header |  data: every tensor at its data_offsets, no gap        |

No byte of data is read, so 16 GB take as long as 16 MB. The format: github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

from labkit.system.errors import UserError

Shape = tuple[int, ...]

MAX_HEADER = 100_000_000
"""Bytes; the safetensors library refuses longer headers, and so do we."""

BITS = {
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
    **{"BOOL": 8, "U8": 8, "I8": 8},
    **{"F8_E4M3": 8, "F8_E4M3FNUZ": 8, "F8_E5M2": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8},
    **{"I16": 16, "U16": 16, "F16": 16, "BF16": 16},
    **{"I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64},
}
"""Bits of an element, by the names that the format gives to element types."""

MAX_NUMBER = 2**64 - 1
"""The format's numbers are 64 bits wide, and so are the products of a shape."""

INDEX = "model.safetensors.index.json"
LEFT_OVER = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", ".g_idx")
"""Ends of names that a checkpoint may hold and no load need read: rope is computed, and GPTQ's order of groups has a parameter
where the groups are out of order, and else says nothing."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class HeaderError(UserError):
    """A checkpoint's headers cannot be read; the message is a sentence with the file, the numbers and what to do."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as a safetensors file holds it.

    Attributes:
        file: the file.
        dtype: its element type in the format's words, ``BF16``.
        shape: its shape.
        bytes: where its data lies in the file, [start, stop), counted from the file's beginning.
    """

    file: Path
    dtype: str
    shape: Shape
    bytes: tuple[int, int]


def read_checkpoint(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a directory, of the files that its index names or of all it has; or of a single file.

    A name that stands in two files is given as the later file holds it, which is the one that vLLM keeps.

    Raises:
        HeaderError: nothing there to read, pickled files, an index that names what is not there or lies outside, a broken header.
    """
    try:
        files = [path] if path.is_file() else weight_files(path)
        remark = "" if files else _pickled(path)
    except OSError as error:
        raise HeaderError(f"{path} cannot be read: {error.strerror}; look at the path and its permissions") from error
    if not files:
        raise HeaderError(f"there is no safetensors file in {path}{remark}; fetch one that has")
    return {name: tensor for file in files for name, tensor in read_header(file).items()}


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a directory: those its index names, or all there are.

    Raises:
        HeaderError: the index cannot be read, names a file that is not there, or one outside the directory.
    """
    index = directory / INDEX
    if not index.is_file():
        return sorted(directory.glob("*.safetensors"))
    try:
        read = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=_object)
        names = sorted(set(read["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HeaderError(f"{index} has no weight_map that can be read ({error!r:.200}); fetch it again") from error
    for name in names:
        if not isinstance(name, str) or name != Path(name).name or name in ("", ".."):
            raise HeaderError(f"{index} names {name!r}, which is no file name in its own folder; nothing outside it is read")
        if not (directory / name).is_file():
            raise HeaderError(f"{index} names {name}, and there is no such file beside it; fetch the checkpoint again")
    return [directory / name for name in names]


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of one safetensors file, in the order in which the header has them.

    Raises:
        HeaderError: a pickle, no safetensors file, a header of an absurd length, one that does not agree with itself or with the
            file's size.
    """
    if file.suffix in PICKLES:
        raise HeaderError(f"{file} is a pickle, and reading one runs the code in it; convert it to safetensors first")
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or length > size - 8:
                raise HeaderError(f"{_broken(file, size)}: its header alone would take {8 + length:,}; fetch it again")
            if length > MAX_HEADER:
                raise HeaderError(f"{_broken(file, size)}: a header of {length:,} bytes is over the limit of {MAX_HEADER:,}")
            header = json.loads(opened.read(length).decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_number)
    except OSError as error:
        raise HeaderError(f"{file} cannot be read: {error.strerror}; look at its permissions, or fetch it again") from error
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"{_broken(file, size)}: its header is not JSON ({error}); fetch it again") from error
    if not isinstance(header, dict):
        raise HeaderError(f"{_broken(file, size)}: its header holds no JSON object; fetch it again")
    metadata = header.get("__metadata__")
    if metadata is not None and not (isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())):
        raise HeaderError(f"{file}: the header's __metadata__ is not text by names ({metadata!r:.200}); fetch the file again")
    tensors = {name: _stored(file, name, entry, 8 + length) for name, entry in header.items() if name != "__metadata__"}
    _check_layout(file, size, 8 + length, tensors)
    return tensors


def _stored(file: Path, name: str, entry: Any, data: int) -> StoredTensor:
    """One entry of a header, whose data begins at byte ``data``."""
    try:
        dtype, dimensions, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        start, stop = offsets
        sound = (
            isinstance(dimensions, list)
            and isinstance(offsets, list)
            and dtype in BITS
            and all(type(number) is int and 0 <= number <= MAX_NUMBER for number in (*dimensions, start, stop))
            and all(size * BITS[dtype] <= MAX_NUMBER for size in accumulate(dimensions, _capped))
        )
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise HeaderError(
            f"{file}: the header's entry for {name!r} is not one of safetensors ({entry!r:.200}); fetch the file again"
        )
    shape, bits = tuple(dimensions), prod(dimensions) * BITS[dtype]
    if bits != (stop - start) * 8:
        raise HeaderError(
            f"{file}: {name} is {dtype} of shape {shape!r:.200}, {bits:,} bits, and its data_offsets "
            f"{start:,} to {stop:,} hold {stop - start:,} bytes; fetch the file again"
        )
    return StoredTensor(file, dtype, shape, (data + start, data + stop))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a name given twice would mean one thing to one reader and another to the next."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in found if names.count(name) > 1)!r:.200} stands in it twice")
    for name, value in pairs:
        for text in (name, value):
            if isinstance(text, str):
                text.encode("utf-8")  # refuses half of a surrogate pair, which no terminal prints
    return found


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _capped(product: int, size: int) -> int:
    """A product that stops growing once it is beyond the format's numbers: a long shape must not cost minutes."""
    return min(product * size, MAX_NUMBER + 1) if product <= MAX_NUMBER else product


def _check_layout(file: Path, size: int, data: int, tensors: Mapping[str, StoredTensor]) -> None:
    """Sees that the tensors lie one behind the other, from the header's end to the file's."""
    end = data
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].bytes):
        if tensor.bytes[0] != end:
            raise HeaderError(
                f"{file}: {name} begins at byte {tensor.bytes[0]:,}, and what is before it ends at {end:,}; fetch the file again"
            )
        end = tensor.bytes[1]
    if end != size:
        raise HeaderError(f"{_broken(file, size)}: its header promises {end:,} bytes; fetch it again")


def _broken(file: Path, size: int) -> str:
    return f"{file} ({size:,} bytes) is cut off or is no safetensors file"


def _pickled(directory: Path) -> str:
    """A remark on the pickles of a directory, if there are any."""
    if not directory.is_dir():
        return ", and no such directory either"
    found = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLES)
    return f", only {found[0]}, a pickle: reading one runs the code in it" if found else ""

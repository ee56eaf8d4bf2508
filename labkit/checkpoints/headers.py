"""Reader of safetensors headers: the names, shapes, element types and byte ranges of a checkpoint's tensors.

    0        8              8 + N                                                  size of the file
    |  N     |  JSON header |  data: every tensor at its data_offsets, no gap        |

No data is read, so 16 GB take as long as 16 MB. The format: github.com/huggingface/safetensors, "Format". The safetensors library
is not used here: it gives no byte ranges, accepts a name given twice, and its errors have no numbers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from operator import mul
from pathlib import Path
from typing import Any

from labkit.system.errors import UserError

Shape = tuple[int, ...]

MAX_HEADER = 100_000_000
"""The largest header in bytes, the same limit as the safetensors library's."""
BITS = {
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0"), 8),
    **{"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32},
    **{"I64": 64, "U64": 64, "F64": 64, "C64": 64},
}
"""Bits per element of each element type of the format."""
MAX_NUMBER = 2**64 - 1
"""The largest number in a header, and the largest number of bits of a tensor: the format has 64-bit integers."""
INDEX = "model.safetensors.index.json"
UNREAD_SUFFIXES = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", ".g_idx")
"""Suffixes of tensors that a load may ignore: rope is computed, and GPTQ's g_idx matters only where its parameter exists."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file; its data is the range ``bytes``, [start, stop), from the beginning of the file."""

    file: Path
    dtype: str
    shape: Shape
    bytes: tuple[int, int]


def read_checkpoint(path: Path) -> dict[str, StoredTensor]:
    """Tensor name -> tensor, of a file or of a directory's ``weight_files``; the last file with a name counts, as in vLLM.

    Raises UserError if there is no safetensors file, or if the index or a file cannot be read or is broken.
    """
    try:
        if not path.exists():
            raise UserError(f"there is no {path}; give a directory with safetensors, or one such file")
        files = [path] if path.is_file() else weight_files(path)
        pickled = [] if files else sorted(each.name for each in path.iterdir() if each.suffix in PICKLES)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; look at the path and its permissions") from error
    if not files:
        only = f", only {pickled[0]}, a pickle: reading one runs the code in it" if pickled else ""
        raise UserError(f"there is no safetensors file in {path}{only}; fetch a checkpoint that has one")
    return {name: tensor for file in files for name, tensor in read_header(file).items()}


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a directory, sorted: those that its index names, or all if it has no index.

    Raises UserError if the index cannot be read, or names a missing file or a file in another directory.
    """
    index = directory / INDEX
    if not index.is_file():
        return sorted(directory.glob("*.safetensors"))
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=_object)["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index} has no weight_map that can be read ({error!r:.200}); fetch it again") from error
    for name in names:
        if not isinstance(name, str) or name != Path(name).name or name in ("", ".."):
            raise UserError(f"{index} names {name!r}, which is no file name in its folder; fetch the checkpoint again")
        if not (directory / name).is_file():
            raise UserError(f"{index} names {name}, and there is no such file beside it; fetch the checkpoint again")
    return [directory / name for name in names]


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Tensor name -> tensor of one safetensors file, in the header's order; raises UserError if the file is broken."""
    if file.suffix in PICKLES:
        raise UserError(f"{file} is a pickle, and reading one runs the code in it; convert it to safetensors first")
    try:
        size = file.stat().st_size
        broken = f"{file} ({size:,} bytes) is cut off or is no safetensors file"
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or length > size - 8:
                raise UserError(f"{broken}: its header alone would take {8 + length:,} bytes; fetch it again")
            if length > MAX_HEADER:
                raise UserError(f"{broken}: a header of {length:,} bytes is over the limit of {MAX_HEADER:,}")
            header = json.loads(opened.read(length).decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_number)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; look at its permissions, or fetch it again") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{broken}: its header is not JSON ({error}); fetch it again") from error
    if not isinstance(header, dict):
        raise UserError(f"{broken}: its header holds no JSON object; fetch it again")
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not (isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())):
        raise UserError(f"{file}: the header's __metadata__ does not map names to texts ({metadata!r:.200}); fetch it again")
    end = 8 + length
    tensors = {name: _stored(file, name, entry, end) for name, entry in header.items()}
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].bytes):
        if tensor.bytes[0] != end:
            raise UserError(
                f"{file}: {name} begins at byte {tensor.bytes[0]:,}, and the data before it ends at {end:,}; fetch the file again"
            )
        end = tensor.bytes[1]
    if end != size:
        raise UserError(f"{broken}: its header promises {end:,} bytes; fetch it again")
    return tensors


def _stored(file: Path, name: str, entry: Any, data: int) -> StoredTensor:
    """The tensor of one header entry, in a file whose data begins at byte ``data``; raises UserError if the entry is wrong."""
    match entry:
        case {"dtype": str(dtype), "shape": list(dimensions), "data_offsets": [start, stop]} if (
            dtype in BITS
            and all(type(number) is int and 0 <= number <= MAX_NUMBER for number in (*dimensions, start, stop))
            and all(size * BITS[dtype] <= MAX_NUMBER for size in accumulate(dimensions, mul))  # stops at the first that is not
        ):
            shape, bits = tuple(dimensions), prod(dimensions) * BITS[dtype]
        case _:
            raise UserError(
                f"{file}: the header's entry for {name!r} is not one of safetensors ({entry!r:.200}); fetch the file again"
            )
    if bits != (stop - start) * 8:
        raise UserError(
            f"{file}: {name} is {dtype} of shape {shape!r:.200}, {bits:,} bits, and its data_offsets "
            f"{start:,} to {stop:,} hold {stop - start:,} bytes; fetch the file again"
        )
    return StoredTensor(file, dtype, shape, (data + start, data + stop))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The dict of a JSON object; raises ValueError for a duplicate name, of which readers keep the first or the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in found if names.count(name) > 1)!r:.200} is given twice")
    for text in (text for pair in pairs for text in pair if isinstance(text, str)):
        text.encode("utf-8")  # refuses half of a surrogate pair, which no terminal prints
    return found


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no JSON")

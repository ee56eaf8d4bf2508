"""Reads a Hugging Face directory: config.json and safetensors files. Nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor


class CheckpointError(Exception):
    """A directory cannot be served; the message names the file and what to do."""


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; raises CheckpointError if the file is missing, is no JSON, or has no object at the top."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"there is no {path.name} in {path.parent}; give a model's directory, with config.json and safetensors files"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); fetch the checkpoint again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, not an object; fetch the checkpoint again")
    return data


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a directory by name, memory-mapped: a tensor's bytes are read when they are used.

    As in vLLM, a tensor that the index leaves out is found in the headers of the files that the index names.

    Args:
        single: name of the file with all tensors, unless ``single``.index.json exists and names several files.

    Attributes:
        stored_again: tensor name -> the other files that have a tensor of this name, which is not read from them.

    Raises:
        CheckpointError: a file is missing, truncated or not safetensors.
    """

    def __init__(self, folder: Path, single: str = "model.safetensors") -> None:
        self.folder, self.single, self.index = folder, single, f"{single}.index.json"
        self._open = {file: self._open_file(file) for file in sorted(set(self._files.values()) or {self.single})}
        held = {file: set(handle.keys()) for file, handle in self._open.items()}
        for name, file in self._files.items():
            if name not in held[file]:
                raise CheckpointError(f"{self.index} places {name} in {file}, which does not hold it; fetch the checkpoint again")
        self.stored_again: dict[str, list[str]] = {}
        for file, names in held.items():
            for name in sorted(names):
                if self._files.setdefault(name, file) != file:
                    self.stored_again.setdefault(name, []).append(file)

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._open[self._files[name]].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def file(self, name: str) -> str:
        """Returns the name of the file that a tensor is read from."""
        return self._files[name]

    def release(self, file: str) -> None:
        """Releases the mapped memory of a file by opening it again."""
        self._open[file] = self._open_file(file)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape, from the file's header."""
        return tuple(self._open[self._files[name]].get_slice(name).get_shape())

    @cached_property
    def _files(self) -> dict[str, str]:
        """Tensor name -> file name, from the index; empty when there is none."""
        index = self.folder / self.index
        if not index.exists():
            return {}
        files = read_json(index).get("weight_map")
        if not isinstance(files, dict) or not all(
            isinstance(f, str) and f == Path(f).name and f not in ("", "..") for f in files.values()
        ):
            raise CheckpointError(f"{index} has no weight_map of tensor names to file names in this folder; fetch it again")
        return files

    def _open_file(self, file: str) -> Any:
        path = self.folder / file
        try:
            return safe_open(path, framework="pt")
        except FileNotFoundError:
            indexed = (self.folder / self.index).exists()
            named = f"{self.index} names {file}" if indexed else f"there is no {self.index} and no {file}"
            raise CheckpointError(f"{path} is missing ({named}); fetch the checkpoint again") from None
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is no whole safetensors file: {damage(path) or error}; fetch the checkpoint again"
            ) from error


def damage(path: Path) -> str | None:
    """Returns a description of a safetensors file's wrong length; None when the length is right or the header is no JSON.

    The format: 8 bytes, the header's length N; N bytes of JSON with every tensor's data_offsets; the data.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if 8 + header_size > size:
            return f"it has {size} bytes, and its header alone would take {8 + header_size}"
        try:
            header = json.loads(file.read(header_size))
            end = 8 + header_size + max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
    return f"it has {size} bytes, and its header promises {end}" if size != end else None

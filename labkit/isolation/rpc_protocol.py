"""RPC protocol between the judge and the learner's process: messages of JSON, followed by the bytes of tensors.

Plain values are sent; any other object stays in its process and is sent as a number.

    8 bytes: length of the JSON   8 bytes: length of the tensors   JSON: {"call": 0, "name": "translate", ...}   tensors
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, ItemsView, Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_MESSAGE = 1 << 28
"""Bytes of a message. The largest one of an honest file is a layer's weights, a few MB."""

MODULES = ("mini_vllm.",)
"""Packages whose dataclasses and functions both processes know by name."""


class ProtocolError(Exception):
    """A message or a value that the protocol does not allow."""


def send(end: socket.socket, message: dict[str, Any], parts: Iterable[bytes | memoryview] = ()) -> None:
    """Sends one message and the bytes of its tensors."""
    text, rest = json.dumps(message).encode(), b"".join(parts)
    end.sendall(len(text).to_bytes(8, "little") + len(rest).to_bytes(8, "little") + text + rest)


def receive(end: socket.socket) -> tuple[dict[str, Any], bytearray]:
    """Receives one message and the bytes of its tensors.

    Raises:
        EOFError: the other process has closed the connection.
        ProtocolError: the message is too large or not JSON.
    """
    lengths = _exactly(end, 16)
    text, rest = int.from_bytes(lengths[:8], "little"), int.from_bytes(lengths[8:], "little")
    if text + rest > MAX_MESSAGE:
        raise ProtocolError(f"a message of {text + rest} bytes; the limit is {MAX_MESSAGE}")
    try:
        message = json.loads(_exactly(end, text))
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a message that is not JSON") from error
    if not isinstance(message, dict):
        raise ProtocolError("a message that is not a JSON object")
    return message, _exactly(end, rest)


def _exactly(end: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view, got = memoryview(data), 0
    while got < count:
        if not (more := end.recv_into(view[got:])):
            raise EOFError
        got += more
    return data


class Packer:
    """Packs values as JSON, and the bytes of their tensors as ``parts``.

    Args:
        other: packs a value that is not plain; it gets the value, and the function that packs values.

    Attributes:
        tensors: the tensors, by the offset of their bytes.
        parts: their bytes.
    """

    def __init__(self, other: Callable[[Any, Callable[[Any], Any]], dict[str, Any]]) -> None:
        self.other = other
        self.tensors: dict[int, Tensor] = {}
        self.parts: list[bytes | memoryview] = []
        self._size = 0

    def pack(self, value: Any) -> Any:
        """The value as JSON: itself, or an object with one key, the kind of the value."""
        kind = type(value)
        if value is None or kind in (bool, int, float, str):
            return value
        if isinstance(value, np.generic):
            return self.pack(value.item())
        for plain in (int, float, str):
            if isinstance(value, plain):
                return plain(value)
        if isinstance(value, Tensor):
            packed = self._bytes_of(value.detach())
            if value.numel():
                self.tensors[packed[2]] = value
            return {"tensor": packed}
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            return {"array": self._bytes_of(torch.from_numpy(np.ascontiguousarray(value)))}
        if isinstance(value, (bytes, bytearray)):
            return {"bytes": self._bytes_of(torch.frombuffer(bytearray(value), dtype=torch.uint8)) if value else None}
        for name, container in (("list", list), ("tuple", tuple), ("set", set), ("frozenset", frozenset)):
            if isinstance(value, container):
                return {name: [self.pack(each) for each in value]}
        if isinstance(value, ItemsView):
            return {"items": [[self.pack(key), self.pack(each)] for key, each in value]}
        if isinstance(value, dict):
            return {"dict": [[self.pack(key), self.pack(each)] for key, each in value.items()]}
        if isinstance(value, slice):
            return {"slice": [self.pack(each) for each in (value.start, value.stop, value.step)]}
        if isinstance(value, range):
            return {"range": [value.start, value.stop, value.step]}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, Path):
            return {"path": str(value)}
        if is_dataclass(value) and kind.__module__.startswith(MODULES):
            known = {field.name: self.pack(getattr(value, field.name)) for field in fields(value) if field.init}
            return {"known": [f"{kind.__module__}:{kind.__qualname__}", known]}
        return self.other(value, self.pack)

    def _bytes_of(self, tensor: Tensor) -> list[Any]:
        flat = tensor.cpu().contiguous().reshape(-1)
        data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        start, self._size = self._size, self._size + len(data)
        self.parts.append(data)
        return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), start]


class Unpacker:
    """Unpacks the values of a message.

    Args:
        data: the bytes of the message's tensors.
        other: unpacks a kind that is not plain; it gets the kind, the value, and the function that unpacks values.

    Attributes:
        memory: the memory of each tensor, by the offset of its bytes.
    """

    def __init__(self, data: bytearray, other: Callable[[str, Any, Callable[[Any], Any]], Any]) -> None:
        self.data, self.other = data, other
        self.memory: dict[int, bytearray] = {}

    def unpack(self, packed: Any) -> Any:
        """The inverse of :meth:`Packer.pack`.

        Raises:
            ProtocolError: :meth:`Packer.pack` does not produce such a value.
        """
        if not isinstance(packed, dict):
            return packed
        try:
            ((kind, value),) = packed.items()
            return self._unpack(kind, value)
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise ProtocolError(f"a value that cannot be unpacked: {error}") from error

    def _unpack(self, kind: str, value: Any) -> Any:
        if kind in CONTAINERS:
            return CONTAINERS[kind](self.unpack(each) for each in value)
        if kind in ("dict", "items"):
            pairs = {self.unpack(key): self.unpack(each) for key, each in value}
            return pairs.items() if kind == "items" else pairs
        if kind == "slice":
            return slice(*(self.unpack(each) for each in value))
        if kind == "range":
            return range(*value)
        if kind in ("tensor", "array", "bytes"):
            tensor = self._tensor(*(value or ("uint8", [0], 0)))
            return tensor if kind == "tensor" else tensor.numpy() if kind == "array" else tensor.numpy().tobytes()
        if kind == "dtype":
            return _dtype(value)
        if kind == "path":
            return Path(value)
        return self.other(kind, value, self.unpack)

    def written(self) -> dict[int, bytearray]:
        """The memory of the tensors that were written to since they were received."""
        return {start: memory for start, memory in self.memory.items() if memory != self.data[start : start + len(memory)]}

    def _tensor(self, dtype_name: str, shape: list[int], start: int) -> Tensor:
        dtype = _dtype(dtype_name)
        count = int(np.prod(shape, dtype=np.int64))
        memory = self.data[start : start + count * dtype.itemsize]
        if min(shape, default=0) < 0 or start < 0 or len(memory) != count * dtype.itemsize:
            raise ProtocolError(f"a tensor of shape {shape} with {len(memory)} bytes")
        if not count:
            return torch.empty(shape, dtype=dtype)
        self.memory[start] = memory
        return torch.frombuffer(memory, dtype=dtype).view(shape)


CONTAINERS: dict[str, Callable[[Iterable[Any]], Any]] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise ProtocolError(f"{name!r} is not a dtype")
    return dtype


def unpack_dataclass(name: str, values: dict[str, Any]) -> Any:
    """A dataclass of mini_vllm, from its name and the values of its fields.

    Raises:
        ProtocolError: mini_vllm has no dataclass of this name.
    """
    cls = resolve_name(name)
    if not (isinstance(cls, type) and is_dataclass(cls)):
        raise ProtocolError(f"{name!r} is not a dataclass of the engine")
    return cls(**values)


def resolve_name(name: str) -> Any:
    """The object that mini_vllm defines as ``module:name``, in a module that is imported already.

    Raises:
        ProtocolError: there is no such object, or another package defines it: through the modules that an engine module imports,
            a name could reach the exception that skips a test.
    """
    module, _, qualname = name.partition(":")
    if not module.startswith(MODULES) or module not in sys.modules:
        raise ProtocolError(f"{name!r} is not in the engine")
    found: Any = sys.modules[module]
    for part in qualname.split("."):
        found = getattr(found, part)
    if not str(getattr(found, "__module__", "")).startswith(MODULES):
        raise ProtocolError(f"{name!r} is not defined in the engine")
    return found

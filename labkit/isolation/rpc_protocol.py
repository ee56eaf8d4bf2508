"""What goes over the socket: a length, JSON, and after it the bytes of tensors. Only plain values; anything else is an object
that stays where it is and goes by its number.

    8 bytes: of the JSON   8 bytes: of the rest   JSON: {"call": 0, "name": "translate", ...}   tensors, end to end
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

LARGEST = 1 << 28
"""Bytes of a message. The largest honest one is a layer's weights, a few MB."""

MODULES = ("mini_vllm.",)
"""Whose dataclasses and functions both sides know by name."""


class WireError(Exception):
    """What came is no message, or what is to go cannot."""


def send(end: socket.socket, message: dict[str, Any], parts: Iterable[bytes | memoryview] = ()) -> None:
    """Sends one message and the bytes that belong to it."""
    text, rest = json.dumps(message).encode(), b"".join(parts)
    end.sendall(len(text).to_bytes(8, "little") + len(rest).to_bytes(8, "little") + text + rest)


def receive(end: socket.socket) -> tuple[dict[str, Any], bytearray]:
    """One message and its bytes.

    Raises:
        EOFError: the other side is gone.
        WireError: what came is no message.
    """
    lengths = _exactly(end, 16)
    text, rest = int.from_bytes(lengths[:8], "little"), int.from_bytes(lengths[8:], "little")
    if text + rest > LARGEST:
        raise WireError(f"a message of {text + rest} bytes; {LARGEST} are the most")
    try:
        message = json.loads(_exactly(end, text))
    except (ValueError, RecursionError) as error:
        raise WireError("a message that is no JSON") from error
    if not isinstance(message, dict):
        raise WireError("a message that is no object")
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
    """Puts values into JSON, and their tensors' bytes into ``parts``.

    Args:
        other: what becomes of anything that is no plain value; it is given that, and what packs values.

    Attributes:
        tensors: every tensor that was packed, by where its bytes begin.
        parts: their bytes.
    """

    def __init__(self, other: Callable[[Any, Callable[[Any], Any]], dict[str, Any]]) -> None:
        self.other = other
        self.tensors: dict[int, Tensor] = {}
        self.parts: list[bytes | memoryview] = []
        self._size = 0

    def pack(self, value: Any) -> Any:
        """The value in JSON's terms: itself, or an object with one key, its kind."""
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
    """The values of a message again.

    Args:
        data: the bytes that came with it.
        other: what becomes of a kind that is not a plain value's; it is given the kind, the value, and what unpacks values.

    Attributes:
        memory: what each tensor lives in, by where its bytes began.
    """

    def __init__(self, data: bytearray, other: Callable[[str, Any, Callable[[Any], Any]], Any]) -> None:
        self.data, self.other = data, other
        self.memory: dict[int, bytearray] = {}

    def unpack(self, packed: Any) -> Any:
        """The inverse of :meth:`Packer.pack`.

        Raises:
            WireError: it is none that was packed.
        """
        if not isinstance(packed, dict):
            return packed
        try:
            ((kind, value),) = packed.items()
            return self._unpack(kind, value)
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise WireError(f"a value that cannot be read: {error}") from error

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
        """The memory of those tensors that are no longer what came."""
        return {start: memory for start, memory in self.memory.items() if memory != self.data[start : start + len(memory)]}

    def _tensor(self, dtype_name: str, shape: list[int], start: int) -> Tensor:
        dtype = _dtype(dtype_name)
        count = int(np.prod(shape, dtype=np.int64))
        memory = self.data[start : start + count * dtype.itemsize]
        if min(shape, default=0) < 0 or start < 0 or len(memory) != count * dtype.itemsize:
            raise WireError(f"a tensor of shape {shape} in {len(memory)} bytes")
        if not count:
            return torch.empty(shape, dtype=dtype)
        self.memory[start] = memory
        return torch.frombuffer(memory, dtype=dtype).view(shape)


CONTAINERS: dict[str, Callable[[Iterable[Any]], Any]] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise WireError(f"{name!r} is no dtype")
    return dtype


def known_value(name: str, values: dict[str, Any]) -> Any:
    """A dataclass of mini_vllm, from the name and the fields that :class:`Packer` gave it.

    Raises:
        WireError: there is none of that name.
    """
    cls = known_name(name)
    if not (isinstance(cls, type) and is_dataclass(cls)):
        raise WireError(f"{name!r} is no dataclass of the engine")
    return cls(**values)


def known_name(name: str) -> Any:
    """What mini_vllm calls ``module:name``, where the module is imported already.

    Raises:
        WireError: there is none, or what has the name was defined elsewhere: a module of the engine has others in it, and by way
            of torch they lead to the exception that makes a test skipped.
    """
    module, _, qualname = name.partition(":")
    if not module.startswith(MODULES) or module not in sys.modules:
        raise WireError(f"{name!r} is not of the engine")
    found: Any = sys.modules[module]
    for part in qualname.split("."):
        found = getattr(found, part)
    if not str(getattr(found, "__module__", "")).startswith(MODULES):
        raise WireError(f"{name!r} is in the engine and not of it")
    return found

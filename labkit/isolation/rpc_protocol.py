"""RPC protocol between the judge and the learner's process: messages of JSON, followed by the bytes of tensors.

Plain values are sent; any other object stays in its process and is sent as a number.

    8 bytes: length of the JSON   8 bytes: length of the tensors   JSON: {"call": 0, "name": "translate", ...}   tensors
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, ItemsView, Iterable, Sequence
from copy import copy
from dataclasses import fields, is_dataclass
from itertools import chain
from operator import attrgetter
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

    EOFError: the other process has closed the connection. ProtocolError: the message is too large or not a JSON object.
    """
    lengths = _exactly(end, 16)
    text, rest = int.from_bytes(lengths[:8], "little"), int.from_bytes(lengths[8:], "little")
    if text + rest > MAX_MESSAGE:
        raise ProtocolError(f"the message has {text + rest} bytes; the limit is {MAX_MESSAGE}")
    try:
        message = dict(json.loads(_exactly(end, text)))
    except (ValueError, TypeError, RecursionError) as error:
        raise ProtocolError("the message is not a JSON object") from error
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
        other: function that packs a value that is not plain; its arguments are the value and ``pack``.

    Attributes:
        given: the packed containers and tensors, in the order of packing, in which the other process unpacks them.
        known: id of each object that the other process sent -> the number in that process's ``given`` as which it is packed.
        parts: the bytes of the tensors.
    """

    def __init__(self, other: Callable[[Any, Callable[[Any], Any]], dict[str, Any]]) -> None:
        self.other = other
        self.given: list[Any] = []
        self.known: dict[int, int] = {}
        self.parts: list[bytes | memoryview] = []
        self._size = 0

    def pack(self, value: Any) -> Any:
        """Returns the value as JSON: unchanged if JSON has its type, else an object with one key, the kind of the value."""
        kind = type(value)
        if value is None or kind in (bool, int, float, str):
            return value
        if id(value) in self.known:
            return {"given": self.known[id(value)]}
        if isinstance(value, np.generic):
            return self.pack(value.item())
        for plain in (int, float, str):
            if isinstance(value, plain):
                return plain(value)
        if isinstance(value, Tensor):
            return {"tensor": self._bytes_of(value)}
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            return {"array": self._bytes_of(torch.from_numpy(np.ascontiguousarray(value)))}
        if isinstance(value, (bytes, bytearray)):
            return {"bytes": self._bytes_of(torch.from_numpy(np.frombuffer(bytearray(value), np.uint8)))}
        for name, (plain_kind, parts, _) in KINDS.items():
            if isinstance(value, plain_kind):
                packed = [self.pack(each) for each in parts(value)]
                self.given.append(value)
                return {name: packed}
        if is_dataclass(value) and kind.__module__.startswith(MODULES):
            known = {field.name: self.pack(getattr(value, field.name)) for field in fields(value) if field.init}
            return {"known": [f"{kind.__module__}:{kind.__qualname__}", known]}
        return self.other(value, self.pack)

    def _bytes_of(self, tensor: Tensor) -> list[Any]:
        self.given.append(tensor)
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        start, self._size = self._size, self._size + len(data)
        self.parts.append(data)
        return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), start]


class Unpacker:
    """Unpacks the values of a message; after the call that got them, finds the tensors and containers that the call has changed.

    Args:
        data: the bytes of the message's tensors.
        other: function that unpacks a value of a kind that is not plain; its arguments are the kind, the value and ``unpack``.
        sent: ``given`` of the Packer of the request that this message answers.

    Attributes:
        given: the unpacked containers and tensors, in the order of unpacking.
    """

    def __init__(self, data: bytearray, other: Callable[[str, Any, Callable[[Any], Any]], Any], sent: Sequence[Any] = ()) -> None:
        self.data, self.other, self.sent = data, other, sent
        self.given: list[Any] = []
        self._before: list[tuple[Any, Any]] = []
        self._memory: dict[int, tuple[int, bytearray]] = {}

    def unpack(self, packed: Any) -> Any:
        """Returns the value that :meth:`Packer.pack` packed as this JSON; ProtocolError: ``pack`` never returns such JSON."""
        if not isinstance(packed, dict):
            return packed
        try:
            ((kind, value),) = packed.items()
            if kind in KINDS:
                return self._keep(KINDS[kind][2]([self.unpack(each) for each in value]))
            if kind in ("tensor", "array", "bytes"):
                tensor = self._tensor(*value)
                return tensor if kind == "tensor" else tensor.numpy() if kind == "array" else tensor.numpy().tobytes()
            return self.sent[value] if kind == "given" else self.other(kind, value, self.unpack)
        except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
            raise ProtocolError(f"it sent a value that cannot be unpacked: {error}") from error

    def written(self) -> list[tuple[int, bytearray]]:
        """Returns each received tensor whose bytes have changed: its number in ``given``, and its memory, with the new bytes."""
        return [
            (number, memory)
            for number, (start, memory) in self._memory.items()
            if memory != self.data[start : start + len(memory)]
        ]

    def changed(self) -> list[int]:
        """Returns numbers in ``given``: containers whose elements, and tensors whose shape, stride, dtype or memory changed."""
        return [number for number, (before, _) in enumerate(self._before) if before != _structure(self.given[number])]

    def _keep(self, value: Any) -> Any:
        self.given.append(value)
        self._before.append((_structure(value), copy(value) if isinstance(value, (list, dict, set)) else None))
        return value

    def _tensor(self, dtype_name: str, shape: list[int], start: int) -> Tensor:
        dtype = _dtype(dtype_name)
        count = int(np.prod(shape, dtype=np.int64))
        memory = self.data[start : start + count * dtype.itemsize]
        if min(shape, default=0) < 0 or start < 0 or len(memory) != count * dtype.itemsize:
            raise ProtocolError(f"it sent {len(memory)} of the {count * dtype.itemsize} bytes of a {dtype} tensor {shape}")
        if count:
            self._memory[len(self.given)] = start, memory
        flat = torch.frombuffer(memory, dtype=dtype) if count else torch.empty(0, dtype=dtype)
        return self._keep(flat.view(shape))  # type: ignore[no-any-return]


def _structure(value: Any) -> Any:
    """A value that differs once a container has other elements, or a tensor another shape or memory, if elements stay alive."""
    match value:
        case Tensor():
            return value.shape, value.stride(), value.dtype, value.data_ptr()
        case dict():
            return [*map(id, chain(*value.items()))]
        case list() | set():
            return [*map(id, value)]


def _bounds(value: Any) -> list[Any]:
    return [value.start, value.stop, value.step]


KINDS: dict[str, tuple[type, Callable[[Any], Iterable[Any]], Callable[[list[Any]], Any]]] = {
    **{each.__name__: (each, list, each) for each in (list, tuple, set, frozenset)},
    "items": (ItemsView, lambda value: [dict(value)], lambda parts: parts[0].items()),
    "dict": (dict, lambda value: chain(*value.items()), lambda parts: dict(zip(parts[::2], parts[1::2], strict=True))),
    "slice": (slice, _bounds, lambda parts: slice(*parts)),
    "range": (range, _bounds, lambda parts: range(*parts)),
    "dtype": (torch.dtype, lambda value: [str(value).removeprefix("torch.")], lambda parts: _dtype(*parts)),
    "path": (Path, lambda value: [str(value)], lambda parts: Path(*parts)),
}
"""Kind of plain value -> its type, the function that splits a value into parts, and the function that joins the parts."""


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise ProtocolError(f"it sent the dtype {name!r}, which torch does not have")
    return dtype


def unpack_dataclass(name: str, values: dict[str, Any]) -> Any:
    """Returns an instance of a dataclass of mini_vllm with these field values; ProtocolError: there is no such dataclass."""
    if not (isinstance(cls := resolve_name(name), type) and is_dataclass(cls)):
        raise ProtocolError(f"it sent an object of class {name!r}, which is no dataclass of mini_vllm")
    return cls(**values)


def resolve_name(name: str) -> Any:
    """Returns the object that mini_vllm defines as ``module:name``, in a module that is imported already.

    Raises:
        ProtocolError: there is no such object, or another package defines it: through the modules that an engine module imports,
            a name could reach the exception that skips a test.
    """
    module, _, qualname = name.partition(":")
    if not module.startswith(MODULES) or module not in sys.modules:
        raise ProtocolError(f"it sent the name {name!r}, which is in no imported module of mini_vllm")
    found = attrgetter(qualname)(sys.modules[module])
    if not str(getattr(found, "__module__", "")).startswith(MODULES):
        raise ProtocolError(f"it sent the name {name!r}, which mini_vllm does not define")
    return found

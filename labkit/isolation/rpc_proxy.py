"""RPC proxies for the objects in the learner's process: each call and each attribute access is a request to that process.

For mini_vllm and for a test a proxy behaves like its object: it has ``forward``, it is a torch module whose layers can be read,
or a dataclass that is compared by its fields. A request returns a plain value or another proxy.
"""

from __future__ import annotations

import builtins
import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import make_dataclass
from functools import lru_cache
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch
from torch import nn

import mini_vllm.forward_context as forward_context
from labkit.isolation.rpc_protocol import Packer, ProtocolError, Unpacker, receive, resolve_name, send, unpack_dataclass
from labkit.system.errors import UserError
from mini_vllm.contract import ModelLostError
from mini_vllm.forward_context import KVCache
from mini_vllm.loading.checkpoint import Checkpoint
from mini_vllm.models.registry import register_model

INTERRUPT_SECONDS = 10.0
"""Seconds that the learner's process has to send the line that it runs; it has as many again to stop."""


class LearnerError(Exception):
    """An error of the learner's file whose type the judge does not know."""


class ProcessLostError(ModelLostError):
    """The learner's process no longer answers; the message says why."""


class LearnerTraceback(Exception):
    """The lines of the learner's file that an error came through; this exception is the error's ``__cause__``."""


class LearnerConnection:
    """The judge's connection to the learner's process.

    Args:
        calls: the socket for requests and their answers.
        interrupts: the socket that interrupts a request that takes too long.
        describe_exit: returns a sentence about how the process ended.

    Attributes:
        lost: the reason why no request is answered any more; empty while the process answers.
        released: numbers of objects that have no proxy any more; the next request frees them.
    """

    def __init__(self, path: Path, calls: socket.socket, interrupts: socket.socket, describe_exit: Callable[[], str]) -> None:
        self.path, self.calls, self.interrupts, self.describe_exit = path, calls, interrupts, describe_exit
        self.lost = ""
        self.released: deque[int] = deque()
        self._released_kv: deque[int] = deque()
        self._kv_numbers: WeakKeyDictionary[KVCache, int] = WeakKeyDictionary()
        self._kv_unused = count(1)

    def wait_ready(self) -> None:
        """Waits until the process has imported torch and the engine; the learner's file is not among its imports."""
        try:
            receive(self.calls)
        except (EOFError, OSError, ProtocolError):
            self.lost = f"the process for {self.path.name} did not start: {self.describe_exit()}"

    def request(self, operation: str, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None, **more: Any) -> Any:
        """Sends one request and returns its result.

        Raises:
            ProcessLostError: the process no longer answers.
            Exception: the learner's code raised it; its type is one that the judge knows, its cause a :class:`LearnerTraceback`.
        """
        if self.lost:
            raise ProcessLostError(self.lost)
        packer = Packer(self._pack_other)
        request = {"do": operation, "free": _drain(self.released), "free_kv": _drain(self._released_kv)}
        request |= more | {"around": self._torch_state(packer), "args": packer.pack(args), "kwargs": packer.pack(kwargs or {})}
        try:
            send(self.calls, request, packer.parts)
            message, data = receive(self.calls)
        except (EOFError, ConnectionError, ProtocolError):
            self.lost = self.describe_exit()
            raise ProcessLostError(self.lost) from None
        except BaseException as timeout:  # pytest-timeout raises while receive() waits
            raise timeout from self._interrupt()
        try:
            return self._result(message, data, packer)
        except ProtocolError as error:
            self.lost = f"{self.path.name} has broken the connection to the tests ({error}), so nothing more is graded"
            raise ProcessLostError(self.lost) from None

    def _result(self, message: dict[str, Any], data: bytearray, packer: Packer) -> Any:
        """Changes the arguments and registers models as the call did; returns the call's value or raises the call's error."""
        unpacker = Unpacker(data, self._unpack_other, packer.given)
        try:
            for number, packed in message["wrote"]:
                tensor, new = packer.given[number], unpacker.unpack(packed)
                with torch.no_grad():
                    tensor.data.copy_(new.view(tensor.dtype).view(tensor.shape))
            for number, packed in message["changed"]:
                _change(packer.given[number], unpacker.unpack(packed))
            for name, packed in message["registered"]:
                register_model(str(name), unpacker.unpack(packed))
            if "error" not in message:
                return unpacker.unpack(message["value"])
            error, traceback = self._error(message["error"], unpacker)
        except ProtocolError:
            raise
        except Exception as wrong:
            raise ProtocolError(f"it sent an invalid answer, {type(wrong).__name__}: {wrong}"[:300]) from wrong
        raise error from traceback

    def _error(self, packed: dict[str, Any], unpacker: Unpacker) -> tuple[Exception, LearnerTraceback]:
        names, text, traceback = packed["names"], str(packed["text"])[:20000], self._traceback(packed["lines"])
        if names[0] == "labkit.system.errors:UserError":
            return UserError(text), traceback
        if names[0] in ("builtins:SystemExit", "builtins:KeyboardInterrupt"):
            return LearnerError(f"{self.path.name} ended with {names[0][9:]}({text}); remove the call that exits"), traceback
        for kind in filter(None, map(_find_exception, names)):
            error = kind.__new__(kind)
            Exception.__init__(error, text)
            if kind is KeyError:
                error.args = (text.strip("'\""),)
            vars(error).update({key: unpacker.unpack(each) for key, each in packed["attributes"].items() if key == "faults"})
            return error, traceback
        return LearnerError(f"{names[0].rpartition(':')[2]}: {text}"), traceback

    def _traceback(self, lines: Any) -> LearnerTraceback:
        return LearnerTraceback("".join(f"\n{self.path.name}:{int(line)}: in {name}" for line, name in lines[:20]))

    def _interrupt(self) -> LearnerTraceback:
        """Interrupts the process; returns the lines that the process was running. Sets ``lost`` if the process does not stop."""
        lines: list[Any] = []
        try:
            self.interrupts.settimeout(INTERRUPT_SECONDS)
            self.interrupts.send(b"!")
            lines = receive(self.interrupts)[0]["lines"]
            self.calls.settimeout(INTERRUPT_SECONDS)
            receive(self.calls)
            self.calls.settimeout(None)
        except (OSError, EOFError, ProtocolError, KeyError):
            self.lost = f"{self.path.name} did not come to an end and could not be interrupted; look for a loop that never ends"
        with suppress(TypeError, ValueError):
            return self._traceback(lines)
        return LearnerTraceback()

    def _torch_state(self, packer: Packer) -> dict[str, Any]:
        """The judge's torch settings and forward context, which the learner's process sets while it runs the request."""
        state: dict[str, Any] = {
            "dtype": packer.pack(torch.get_default_dtype()),
            "threads": torch.get_num_threads(),
            "inference": torch.is_inference_mode_enabled(),
            "grad": torch.is_grad_enabled(),
        }
        if (context := forward_context._current.get()) is not None:
            cache = context.kv_cache
            if cache not in self._kv_numbers:
                self._kv_numbers[cache] = next(self._kv_unused)
                finalize(cache, self._released_kv.append, self._kv_numbers[cache])
            state["kv_cache"] = [self._kv_numbers[cache], cache.num_blocks, cache.block_size]
            state["step"] = context.to_json()
        return state

    def _pack_other(self, value: Any, pack: Callable[[Any], Any]) -> dict[str, Any]:
        if issubclass(type(value), Proxy):
            return {"object": object.__getattribute__(value, "_rpc_number")}
        if isinstance(value, Checkpoint):
            return {"checkpoint": [str(value.folder), value.single]}
        if hasattr(value, "__next__"):
            return {"iterator": [pack(each) for each in value]}
        raise TypeError(f"a {type(value).__name__} cannot be sent to the learner's process; send plain values")

    def _unpack_other(self, kind: str, value: Any, unpack: Callable[[Any], Any]) -> Any:
        if kind == "known":
            return unpack_dataclass(value[0], {name: unpack(each) for name, each in value[1].items()})
        if kind != "object":
            raise ProtocolError(f"it sent a value of kind {str(kind)[:40]!r}, which does not exist")
        number, names, of_fields = value
        return _proxy_class(tuple(map(str, names)), None if of_fields is None else tuple(map(str, of_fields)))(self, int(number))


class Proxy:
    """Proxy for the object that has this number in the learner's process; number 0 is the learner's module."""

    _rpc: LearnerConnection
    _rpc_number: int
    _rpc_class: type | None = None

    def __init__(self, connection: LearnerConnection, number: int) -> None:
        object.__setattr__(self, "_rpc", connection)
        object.__setattr__(self, "_rpc_number", number)
        if number:
            finalize(self, connection.released.append, number)

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":  # isinstance() reads it
            return object.__getattribute__(self, "_rpc_class") or type(self)
        if name.startswith(("_rpc", "__")):
            return object.__getattribute__(self, name)
        return self._rpc_request("get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._rpc_request("set", name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        return self._rpc_request("call", *args, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rpc_request("list"))

    def __len__(self) -> int:
        return int(self._rpc_request("len"))

    def __bool__(self) -> bool:
        return self._rpc_request("bool") is True

    def __getitem__(self, key: Any) -> Any:
        return self._rpc_request("item", key)

    def __deepcopy__(self, memo: Any) -> Proxy:
        return self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of the graded file>"

    def _rpc_request(self, operation: str, /, *args: Any, **kwargs: Any) -> Any:
        return self._rpc.request(operation, args, kwargs, object=self._rpc_number)


class ModuleProxy(Proxy):
    """The learner's module. ``__file__`` and ``__name__`` come from the judge, not from the module."""

    def __init__(self, connection: LearnerConnection) -> None:
        super().__init__(connection, 0)
        object.__setattr__(self, "__file__", str(connection.path))
        object.__setattr__(self, "__name__", connection.path.stem)


def _change(own: Any, new: Any) -> None:
    """Changes the judge's object ``own`` in place to ``new``, the object's state after the call."""
    match new:
        case torch.Tensor():
            own.data = new
        case list():
            own[:] = new
        case dict() | set():
            own.clear()
            own.update(new)
        case _:
            raise ProtocolError(
                f"it sent a {type(new).__name__} as an argument's new content; only tensors, lists, dicts and sets can change"
            )


@lru_cache(256)
def _proxy_class(names: tuple[str, ...], of_fields: tuple[str, ...] | None) -> type[Proxy]:
    """The proxy class for a class and its bases, named most derived first; isinstance() and dataclasses.fields() work with it."""
    name = names[0].rpartition(":")[2]
    bases = (Proxy, nn.Module) if "torch.nn.modules.module:Module" in names else (Proxy,)
    kind: Any = type(name, bases, {})
    if of_fields is not None:
        kind = make_dataclass(name, of_fields, bases=bases, init=False, repr=False, eq=False)
        kind.__eq__ = lambda a, b: type(a) is type(b) and _values(a, of_fields) == _values(b, of_fields)
        kind.__hash__ = lambda a: hash(_values(a, of_fields))
    kind._rpc_class = next(filter(None, map(_find_class, names)), None)
    return kind  # type: ignore[no-any-return]


def _values(proxy: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(getattr(proxy, name) for name in names)


def _find_class(name: str) -> type | None:
    """The class of mini_vllm with this name, or None."""
    with suppress(ProtocolError, AttributeError):
        return found if isinstance(found := resolve_name(name), type) else None
    return None


def _find_exception(name: str) -> type[Exception] | None:
    """The exception class of Python or of mini_vllm with this name, or None."""
    module, _, qualname = name.partition(":")
    found = getattr(builtins, qualname, None) if module == "builtins" else _find_class(name)
    simple = isinstance(found, type) and issubclass(found, Exception) and not issubclass(found, (ExceptionGroup, UnicodeError))
    return found if simple else None


def _drain(numbers: deque[int]) -> list[int]:
    return [numbers.popleft() for _ in range(len(numbers))]


def delegate_engine_functions(monkeypatch: Any) -> None:
    """Patches mini_vllm's functions that work on a model's internals: for a proxy, the learner's process runs them."""
    for module, name, source in (
        ("mini_vllm.build", "process_weights_after_loading", "mini_vllm.layers.quantization"),
        ("mini_vllm.kernels.install", "install_kernels", "mini_vllm.kernels.install"),
        ("mini_vllm.lora", "load_lora", "mini_vllm.loading.lora"),
    ):
        monkeypatch.setattr(f"{module}.{name}", _delegated(getattr(import_module(module), name), f"{source}:{name}"))


def _delegated(local: Callable[..., Any], name: str) -> Callable[..., Any]:
    def call(model: Any, *args: Any) -> Any:
        if issubclass(type(model), Proxy):
            return object.__getattribute__(model, "_rpc").request("engine", (model, *args), name=name)
        return local(model, *args)

    return call

"""What stands for the learner's objects in the judge: each call, and each attribute that is read, is asked of the other process.

To mini_vllm and to a test a stand-in is what it stands for: an object with ``forward``, a torch module whose layers can be looked
at, a dataclass that is compared by its fields. What comes back of a call is a plain value or the next stand-in.
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
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch
from torch import nn

import mini_vllm.forward_context as forward_context
from labkit.labs import LabError
from labkit.remote.wire import Packer, Unpacker, WireError, known_name, known_value, receive, send
from mini_vllm.contract import ModelLostError
from mini_vllm.forward_context import KVCache
from mini_vllm.loading.checkpoint import Checkpoint
from mini_vllm.models.registry import register_model

PATIENCE = 10.0
"""Seconds for the other process to say where it is, and as many to stop."""


class LearnerError(Exception):
    """The learner's file raised something that is of no type that the judge knows."""


class LostError(ModelLostError):
    """The process with the learner's file is gone, and with it every later answer; the message says what it did."""


class At(Exception):
    """Where in the learner's file it happened; the cause of what is raised here."""


class Remote:
    """The learner's file, from afar.

    Args:
        path: the file.
        calls: where requests go and answers come from.
        interruptions: where a request that takes too long is interrupted.
        how_it_ended: says in words how the other process came to its end, once it is known to be gone.
    """

    def __init__(self, path: Path, calls: socket.socket, interruptions: socket.socket, how_it_ended: Callable[[], str]) -> None:
        self.path, self.calls, self.interruptions, self.how_it_ended = path, calls, interruptions, how_it_ended
        self.lost = ""
        self.free: deque[int] = deque()
        self._free_kv: deque[int] = deque()
        self._kv_numbers: WeakKeyDictionary[KVCache, int] = WeakKeyDictionary()
        self._kv_next = 0

    def wait(self) -> None:
        """Until the other process has imported what it needs, which the learner's file is no part of."""
        try:
            receive(self.calls)
        except (EOFError, OSError, WireError):
            self.lost = f"the process for {self.path.name} did not start: {self.how_it_ended()}"

    def ask(self, what: str, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None, **more: Any) -> Any:
        """One request, and what came of it.

        Raises:
            LostError: there is no other process any more.
            Exception: what the learner's code raised, as the type the judge knows it by; its cause is an :class:`At`.
        """
        if self.lost:
            raise LostError(self.lost)
        packer = Packer(self._sent)
        request = {"do": what, "free": _emptied(self.free), "free_kv": _emptied(self._free_kv), "around": self._around(packer)}
        request |= more | {"args": packer.pack(args), "kwargs": packer.pack(kwargs or {})}
        try:
            send(self.calls, request, packer.parts)
            message, data = receive(self.calls)
        except (EOFError, ConnectionError, WireError):
            self.lost = self.how_it_ended()
            raise LostError(self.lost) from None
        except BaseException as late:  # pytest-timeout raises in the midst of it
            raise late from self._interrupt()
        try:
            return self._received(message, data, packer)
        except WireError as error:
            self.lost = f"{self.path.name} has broken the connection to the tests ({error}), so nothing more is graded"
            raise LostError(self.lost) from None

    def _received(self, message: dict[str, Any], data: bytearray, packer: Packer) -> Any:
        unpacker = Unpacker(data, self._come)
        try:
            for start, packed in message["wrote"]:
                tensor, new = packer.tensors[start], unpacker.unpack(packed)
                with torch.no_grad():
                    tensor.data.copy_(new.view(tensor.dtype).view(tensor.shape))
            for name, packed in message["registered"]:
                register_model(str(name), unpacker.unpack(packed))
            if "error" in message:
                error, at = self._error(message["error"], unpacker)
            else:
                return unpacker.unpack(message["value"])
        except WireError:
            raise
        except Exception as wrong:
            raise WireError(f"{type(wrong).__name__}: {wrong}"[:300]) from wrong
        raise error from at

    def _error(self, packed: dict[str, Any], unpacker: Unpacker) -> tuple[Exception, At]:
        text, at = str(packed["text"])[:20000], self._at(packed["lines"])
        if packed["names"][0] == "labkit.labs:LabError":
            return LabError(text), at
        if packed["names"][0] in ("builtins:SystemExit", "builtins:KeyboardInterrupt"):
            return LearnerError(f"{self.path.name} ended with {packed['names'][0][9:]}({text}); take out what exits"), at
        for name in packed["names"]:
            kind = _exception(name)
            if kind is not None:
                error = kind.__new__(kind)
                Exception.__init__(error, text)
                if kind is KeyError:
                    error.args = (text.strip("'\""),)
                vars(error).update({key: unpacker.unpack(each) for key, each in packed["attributes"].items() if key == "faults"})
                return error, at
        return LearnerError(f"{packed['names'][0].rpartition(':')[2]}: {text}"), at

    def _at(self, lines: Any) -> At:
        return At("".join(f"\n{self.path.name}:{int(line)}: in {name}" for line, name in lines[:20]))

    def _interrupt(self) -> At:
        """Asks where it is and stops it there; a process that does not stop is given up."""
        lines: list[Any] = []
        try:
            self.interruptions.settimeout(PATIENCE)
            self.interruptions.send(b"!")
            lines = receive(self.interruptions)[0]["lines"]
            self.calls.settimeout(PATIENCE)
            receive(self.calls)
            self.calls.settimeout(None)
        except (OSError, EOFError, WireError, KeyError):
            self.lost = f"{self.path.name} did not come to an end and could not be interrupted; look for a loop that never ends"
        with suppress(TypeError, ValueError):
            return self._at(lines)
        return At()

    def _around(self, packer: Packer) -> dict[str, Any]:
        around: dict[str, Any] = {
            "dtype": packer.pack(torch.get_default_dtype()),
            "threads": torch.get_num_threads(),
            "inference": torch.is_inference_mode_enabled(),
            "grad": torch.is_grad_enabled(),
        }
        if (context := forward_context._current.get()) is not None:
            cache = context.kv_cache
            if cache not in self._kv_numbers:
                self._kv_next += 1
                self._kv_numbers[cache] = self._kv_next
                finalize(cache, self._free_kv.append, self._kv_next)
            around["kv_cache"] = [self._kv_numbers[cache], cache.num_blocks, cache.block_size]
            around["step"] = context.to_json()
        return around

    def _sent(self, value: Any, pack: Callable[[Any], Any]) -> dict[str, Any]:
        if issubclass(type(value), StandIn):
            return {"object": object.__getattribute__(value, "_remote_number")}
        if isinstance(value, Checkpoint):
            return {"checkpoint": [str(value.folder), value.single]}
        if hasattr(value, "__next__"):
            return {"iterator": [pack(each) for each in value]}
        raise TypeError(f"a {type(value).__name__} cannot be handed to the learner's process; send plain values")

    def _come(self, kind: str, value: Any, unpack: Callable[[Any], Any]) -> Any:
        if kind == "known":
            return known_value(value[0], {name: unpack(each) for name, each in value[1].items()})
        if kind != "object":
            raise WireError(f"{str(kind)[:40]!r} is no kind of value")
        number, names, of_fields = value
        cls = _kind(tuple(map(str, names)), None if of_fields is None else tuple(map(str, of_fields)))
        return cls(self, int(number))


class StandIn:
    """An object of the other process, by its number; 0 is the learner's module."""

    _remote: Remote
    _remote_number: int
    _remote_class: type | None = None

    def __init__(self, remote: Remote, number: int) -> None:
        object.__setattr__(self, "_remote", remote)
        object.__setattr__(self, "_remote_number", number)
        if number:
            finalize(self, remote.free.append, number)

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":  # what isinstance() asks for
            return object.__getattribute__(self, "_remote_class") or type(self)
        if name.startswith(("_remote", "__")):
            return object.__getattribute__(self, name)
        return self._remote_do("get", name=name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._remote_do("set", name=name, args=(value,))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        return self._remote_do("call", args, kwargs)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._remote_do("list"))

    def __len__(self) -> int:
        return int(self._remote_do("len"))

    def __bool__(self) -> bool:
        return self._remote_do("bool") is True

    def __getitem__(self, key: Any) -> Any:
        return self._remote_do("item", (key,))

    def __deepcopy__(self, memo: Any) -> StandIn:
        return self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of the graded file>"

    def _remote_do(
        self, what: str, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None, name: str | None = None
    ) -> Any:
        return self._remote.ask(what, args, kwargs, object=self._remote_number, name=name)


class RemoteModule(StandIn):
    """The learner's module. ``__file__`` and ``__name__`` are the judge's own, not what the module says they are."""

    def __init__(self, remote: Remote) -> None:
        super().__init__(remote, 0)
        object.__setattr__(self, "__file__", str(remote.path))
        object.__setattr__(self, "__name__", remote.path.stem)


@lru_cache(256)
def _kind(names: tuple[str, ...], of_fields: tuple[str, ...] | None) -> type[StandIn]:
    """The stand-in's class for a class of these names, its own first: one that isinstance() and dataclasses.fields() know."""
    name = names[0].rpartition(":")[2]
    bases = (StandIn, nn.Module) if "torch.nn.modules.module:Module" in names else (StandIn,)
    kind: Any = type(name, bases, {})
    if of_fields is not None:
        kind = make_dataclass(name, of_fields, bases=bases, init=False, repr=False, eq=False)
        kind.__eq__ = lambda a, b: type(a) is type(b) and _values(a, of_fields) == _values(b, of_fields)
        kind.__hash__ = lambda a: hash(_values(a, of_fields))
    kind._remote_class = next(filter(None, map(_engine_class, names)), None)
    return kind  # type: ignore[no-any-return]


def _values(thing: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(getattr(thing, name) for name in names)


def _engine_class(name: str) -> type | None:
    try:
        found = known_name(name)
    except (WireError, AttributeError):
        return None
    return found if isinstance(found, type) else None


def _exception(name: str) -> type[Exception] | None:
    """The exception of Python or of mini_vllm that has this name."""
    module, _, qualname = name.partition(":")
    found = getattr(builtins, qualname, None) if module == "builtins" else _engine_class(name)
    simple = isinstance(found, type) and issubclass(found, Exception) and not issubclass(found, (ExceptionGroup, UnicodeError))
    return found if simple else None


def _emptied(numbers: deque[int]) -> list[int]:
    return [numbers.popleft() for _ in range(len(numbers))]


def hand_over(monkeypatch: Any) -> None:
    """What mini_vllm does to a model besides calling it: of a stand-in, the other process does it."""
    for module, name, at in (
        ("mini_vllm.build", "process_weights_after_loading", "mini_vllm.layers.quantization"),
        ("mini_vllm.kernels.install", "install_kernels", "mini_vllm.kernels.install"),
        ("mini_vllm.lora", "load_lora", "mini_vllm.loading.lora"),
    ):
        monkeypatch.setattr(f"{module}.{name}", _handed_over(getattr(import_module(module), name), f"{at}:{name}"))


def _handed_over(here: Callable[..., Any], name: str) -> Callable[..., Any]:
    def there(model: Any, *args: Any) -> Any:
        if issubclass(type(model), StandIn):
            return object.__getattribute__(model, "_remote").ask("engine", (model, *args), name=name)
        return here(model, *args)

    return there

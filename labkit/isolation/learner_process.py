"""The learner's process: imports the learner's file and answers the judge's requests until the judge closes the connection.

judge.py starts this process in the sandbox of sandbox.py.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import traceback
from _thread import interrupt_main
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import fields, is_dataclass
from importlib import import_module
from itertools import count
from operator import getitem
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import mini_vllm.models.registry as registry
from labkit.isolation.rpc_protocol import Packer, Unpacker, receive, resolve_name, send, unpack_dataclass
from labkit.system.labs import load_implementation
from mini_vllm.forward_context import ForwardContext, KVCache, set_forward_context
from mini_vllm.loading.checkpoint import Checkpoint

MAX_FRAMES = 8  # lines of the learner's file that an error names, the innermost ones

OPERATIONS: dict[str, Callable[..., Any]] = {
    "get": getattr,
    "set": setattr,
    "item": getitem,
    "list": list,
    "len": len,
    "bool": bool,
}


class Learner:
    """The objects of the learner's file that the judge refers to by number."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.module: ModuleType | None = None
        self._objects: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}
        self._held: Counter[int] = Counter()
        self._unused = count(1)
        self._kv_caches: dict[int, KVCache] = {}
        self._factories = dict(registry._factories)

    def answer(self, request: dict[str, Any], data: bytearray) -> tuple[dict[str, Any], Packer]:
        """Executes a request; returns its value or error, changed arguments and new models, with the Packer of their tensors."""
        unpacker, packer = Unpacker(data, self._unpack_other), Packer(self._pack_object)
        try:
            for number in request.get("free", ()):
                self._held[number] -= 1
                if not self._held[number]:
                    del self._held[number], self._numbers[id(self._objects.pop(number))]
            for number in request.get("free_kv", ()):
                self._kv_caches.pop(number, None)
            with self._torch_state(request["around"], unpacker):
                message = {"value": packer.pack(self._execute(request, unpacker))}
        except BaseException as error:  # SystemExit and KeyboardInterrupt too
            packer = Packer(self._pack_object)
            message = {"error": self._pack_error(error, packer)}
        message["wrote"] = [
            [number, packer.pack(torch.frombuffer(memory, dtype=torch.uint8))] for number, memory in unpacker.written()
        ]
        packer.known = {id(each): number for number, each in enumerate(unpacker.given)}
        message["changed"] = [[number, packer.pack(copy(unpacker.given[number]))] for number in unpacker.changed()]
        message["registered"] = [
            [name, packer.pack(factory)]
            for name, factory in registry._factories.items()
            if self._factories.get(name) is not factory
        ]
        self._factories = dict(registry._factories)
        return message, packer

    def _execute(self, request: dict[str, Any], unpacker: Unpacker) -> Any:
        operation = request["do"]
        if operation == "load":
            self.module = load_implementation(self.path)
            return None
        if operation == "engine":
            import_module(request["name"].partition(":")[0])
            target: Any = resolve_name(request["name"])
        else:
            target = self._objects[request["object"]] if request["object"] else self.module
        args, kwargs = unpacker.unpack(request["args"]), unpacker.unpack(request["kwargs"])
        if operation in OPERATIONS:
            return OPERATIONS[operation](target, *args)
        return target(*args, **kwargs)

    @contextmanager
    def _torch_state(self, state: dict[str, Any], unpacker: Unpacker) -> Iterator[None]:
        """Sets the judge's default dtype, threads, gradient mode and forward context for one request."""
        torch.set_default_dtype(unpacker.unpack(state["dtype"]))
        if torch.get_num_threads() != state["threads"]:
            torch.set_num_threads(state["threads"])
        if "step" not in state:
            with torch.inference_mode(state["inference"]), torch.set_grad_enabled(state["grad"]):
                yield
            return
        number, num_blocks, block_size = state["kv_cache"]
        cache = self._kv_caches.setdefault(number, KVCache(num_blocks, block_size))
        with set_forward_context(ForwardContext.from_json(state["step"], cache)):
            yield

    def _unpack_other(self, kind: str, value: Any, unpack: Callable[[Any], Any]) -> Any:
        if kind == "object":
            return self._objects[value] if value else self.module
        if kind == "checkpoint":
            return Checkpoint(Path(value[0]), value[1])
        if kind == "iterator":
            return iter([unpack(each) for each in value])
        if kind == "known":
            return unpack_dataclass(value[0], {name: unpack(each) for name, each in value[1].items()})
        raise ValueError(kind)

    def _pack_object(self, thing: Any, pack: Callable[[Any], Any]) -> dict[str, Any]:
        """Keeps an object in this process; packs its number, the names of its class and bases, and a dataclass's field names."""
        if (number := self._numbers.get(id(thing))) is None:
            number = self._numbers[id(thing)] = next(self._unused)
            self._objects[number] = thing
        self._held[number] += 1
        kind = type(thing)
        return {
            "object": [
                number,
                _names(kind)[:-1],
                # The judge compares dataclasses by these fields, and requests their values one by one.
                [f.name for f in fields(thing)] if is_dataclass(thing) and kind is not type else None,
            ]
        }

    def _pack_error(self, error: BaseException, packer: Packer) -> dict[str, Any]:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [[frame.lineno, frame.name] for frame in frames if frame.filename == str(self.path)]
        return {
            "names": _names(type(error)),
            "text": str(error)[:20000],
            "lines": lines[-MAX_FRAMES:],
            "attributes": {name: packer.pack(value) for name, value in vars(error).items() if name == "faults"},
        }


def _names(kind: type) -> list[str]:
    return [f"{each.__module__}:{each.__qualname__}" for each in kind.__mro__]


def answer_interrupts(end: socket.socket, path: Path) -> None:
    """For each byte received, sends the lines of the learner's file that the main thread runs, then interrupts that thread."""
    main = threading.main_thread().ident or 0
    while end.recv(1):
        frames = traceback.walk_stack(sys._current_frames()[main])
        lines = [[line, frame.f_code.co_name] for frame, line in frames if frame.f_code.co_filename == str(path)]
        send(end, {"lines": lines[:MAX_FRAMES][::-1]})
        interrupt_main()


def main(path: Path, calls: socket.socket, interrupts: socket.socket) -> None:
    """Sends a ready message, then answers requests until the judge closes the connection."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
    threading.Thread(target=answer_interrupts, args=(interrupts, path), daemon=True).start()
    learner = Learner(path)
    send(calls, {"ready": True})
    while True:
        try:
            request, data = receive(calls)
        except EOFError:
            os._exit(0)
        except KeyboardInterrupt:  # it came after the request had ended
            continue
        message, packer = learner.answer(request, data)
        send(calls, message, packer.parts)


if __name__ == "__main__":
    main(Path(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])), socket.socket(fileno=int(sys.argv[3])))

"""The process that has the learner's file in it: answers one call after the other until the judge hangs up.

Whatever the file does to this process, it stays in this process. It is started by judge.py, inside the box of box.py.
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
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import mini_vllm.models.registry as registry
from labkit.labs import load_implementation
from labkit.remote.wire import Packer, Unpacker, known_name, known_value, receive, send
from mini_vllm.forward_context import ForwardContext, KVCache, set_forward_context
from mini_vllm.loading.checkpoint import Checkpoint

FRAMES = 8
"""How many lines of the learner's file a fault names, the innermost ones."""

ON_OBJECTS: dict[str, Callable[[Any], Any]] = {"list": list, "len": len, "bool": bool}


class Learner:
    """The objects that the judge has numbers for, and what it may do with them.

    Args:
        path: the learner's file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.module: ModuleType | None = None
        self._objects: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}
        self._held: Counter[int] = Counter()
        self._next = 1
        self._kv_caches: dict[int, KVCache] = {}
        self._factories = dict(registry._factories)

    def answer(self, request: dict[str, Any], data: bytearray) -> tuple[dict[str, Any], Packer]:
        """What a request comes to: a value or an error, the tensors that were written to, the architectures registered."""
        unpacker, packer = Unpacker(data, self._other), Packer(self._described)
        try:
            for number in request.get("free", ()):
                self._held[number] -= 1
                if not self._held[number]:
                    del self._held[number], self._numbers[id(self._objects.pop(number))]
            for number in request.get("free_kv", ()):
                self._kv_caches.pop(number, None)
            with self._surroundings(request["around"], unpacker):
                result = self._do(request, unpacker)
                message = {"value": packer.pack(result)}
        except BaseException as error:  # also SystemExit and KeyboardInterrupt: the judge says what they mean
            packer = Packer(self._described)
            message = {"error": self._fault(error, packer)}
        message["wrote"] = [
            [start, packer.pack(torch.frombuffer(memory, dtype=torch.uint8))] for start, memory in unpacker.written().items()
        ]
        message["registered"] = [
            [name, packer.pack(factory)]
            for name, factory in registry._factories.items()
            if self._factories.get(name) is not factory
        ]
        self._factories = dict(registry._factories)
        return message, packer

    def _do(self, request: dict[str, Any], unpacker: Unpacker) -> Any:
        what = request["do"]
        if what == "load":
            self.module = load_implementation(self.path)
            return None
        if what == "engine":
            import_module(request["name"].partition(":")[0])
            target: Any = known_name(request["name"])
        else:
            target = self._objects[request["object"]] if request["object"] else self.module
        if what == "get":
            return getattr(target, request["name"])
        if what == "item":
            return target[unpacker.unpack(request["args"])[0]]
        if what in ON_OBJECTS:
            return ON_OBJECTS[what](target)
        if what == "set":
            return setattr(target, request["name"], unpacker.unpack(request["args"])[0])
        args, kwargs = unpacker.unpack(request["args"]), unpacker.unpack(request["kwargs"])
        return target(*args, **kwargs)

    @contextmanager
    def _surroundings(self, around: dict[str, Any], unpacker: Unpacker) -> Iterator[None]:
        """What the judge's own calls would run in: default dtype, threads, gradients, and the step that is under way."""
        torch.set_default_dtype(unpacker.unpack(around["dtype"]))
        if torch.get_num_threads() != around["threads"]:
            torch.set_num_threads(around["threads"])
        if "step" not in around:
            with torch.inference_mode(around["inference"]), torch.set_grad_enabled(around["grad"]):
                yield
            return
        number, num_blocks, block_size = around["kv_cache"]
        cache = self._kv_caches.setdefault(number, KVCache(num_blocks, block_size))
        with set_forward_context(ForwardContext.from_json(around["step"], cache)):
            yield

    def _other(self, kind: str, value: Any, unpack: Callable[[Any], Any]) -> Any:
        if kind == "object":
            return self._objects[value] if value else self.module
        if kind == "checkpoint":
            return Checkpoint(Path(value[0]), value[1])
        if kind == "iterator":
            return iter([unpack(each) for each in value])
        if kind == "known":
            return known_value(value[0], {name: unpack(each) for name, each in value[1].items()})
        raise ValueError(kind)

    def _described(self, thing: Any, pack: Callable[[Any], Any]) -> dict[str, Any]:
        """An object's number, its classes' names, and the fields of a dataclass, which are compared by value."""
        number = self._numbers.get(id(thing))
        if number is None:
            number, self._next = self._next, self._next + 1
            self._objects[number], self._numbers[id(thing)] = thing, number
        self._held[number] += 1
        kind = type(thing)
        names = [f"{each.__module__}:{each.__qualname__}" for each in kind.__mro__[:-1]]
        return {"object": [number, names, [f.name for f in fields(thing)] if is_dataclass(thing) and kind is not type else None]}

    def _fault(self, error: BaseException, packer: Packer) -> dict[str, Any]:
        lines = [
            [frame.lineno, frame.name] for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(self.path)
        ]
        return {
            "names": [f"{each.__module__}:{each.__qualname__}" for each in type(error).__mro__],
            "text": str(error)[:20000],
            "lines": lines[-FRAMES:],
            "attributes": {name: packer.pack(value) for name, value in vars(error).items() if name == "faults"},
        }


def answer_interruptions(end: socket.socket, path: Path) -> None:
    """For each byte that comes: says which line of the file is under way, then interrupts it. Runs in a thread of its own."""
    main = threading.main_thread().ident
    while end.recv(1):
        frame, lines = sys._current_frames().get(main or 0), []
        while frame is not None:
            if frame.f_code.co_filename == str(path):
                lines.append([frame.f_lineno, frame.f_code.co_name])
            frame = frame.f_back
        send(end, {"lines": lines[:FRAMES][::-1]})
        interrupt_main()


def main(path: Path, calls: socket.socket, interruptions: socket.socket) -> None:
    """Says that it is ready, then serves until the judge hangs up."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has had it ignored
    threading.Thread(target=answer_interruptions, args=(interruptions, path), daemon=True).start()
    learner = Learner(path)
    send(calls, {"ready": True})
    while True:
        try:
            request, data = receive(calls)
        except EOFError:
            os._exit(0)
        except KeyboardInterrupt:  # meant for a call that had just ended
            continue
        message, packer = learner.answer(request, data)
        send(calls, message, packer.parts)


if __name__ == "__main__":
    main(Path(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])), socket.socket(fileno=int(sys.argv[3])))

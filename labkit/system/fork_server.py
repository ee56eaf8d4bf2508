"""Fork server: a process that imports modules once, and forks for each request.

The server imports and never computes, so it has one thread when it forks: OpenMP's threads do not survive a fork, and a child
that needs them waits forever. multiprocessing's fork server would have a socket in /tmp that runs code for whoever connects; this
one takes requests only from the process that started it.

    client                                   server
    request (JSON, file descriptors)  ->     forks; the child returns from serve() with the request
                                      <-     {"child": 123}  {"ended": 0}  {"ready": true, "threads": 1}
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from labkit.system.labs import ROOT

MAX_REQUEST = 1 << 16  # bytes


class ForkServerError(OSError):
    """The fork server has ended."""


class ForkServer:
    """Starts a fork server and talks to it. It has one fork at a time.

    Args:
        module: the module to run; it calls :func:`serve` with the socket whose descriptor is its first argument.
        environment: the environment variables of the server and of its forks.
        output: the file for stdout and stderr of the server and of its forks.

    Attributes:
        control: the socket to the server; it can be read when a message has come.
        received: the keys and values of all messages since the last request.
    """

    def __init__(self, module: str, arguments: Sequence[str], environment: dict[str, str], output: int | IO[bytes]) -> None:
        self.environment = environment
        self.control, theirs = socket.socketpair()
        self.received: dict[str, Any] = {}
        self._unread = b""
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno()), *arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def request(self, request: dict[str, Any], files: Sequence[int]) -> None:
        """Sends a request, for which the server forks. If the server has ended, the next :meth:`receive` raises."""
        self.received = {}
        with suppress(OSError):
            socket.send_fds(self.control, [json.dumps(request).encode()], list(files))

    @property
    def pid(self) -> int:
        """The process id of the fork, which leads a process group."""
        return self._wait_for("child", None)

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the fork's end; returns the exit status, or minus the signal that ended it; raises as :meth:`receive`."""
        return self._wait_for("ended", timeout)

    def _wait_for(self, key: str, timeout: float | None) -> int:
        while key not in self.received:
            self.receive(timeout)
        return int(self.received[key])

    def receive(self, timeout: float | None = None) -> list[dict[str, Any]]:
        """Waits for the next messages of the server and returns them.

        Raises:
            TimeoutError: no message came within ``timeout`` seconds.
            ForkServerError: the server has ended.
        """
        self.control.settimeout(timeout)
        try:
            chunk = self.control.recv(MAX_REQUEST)
        except ConnectionError:
            chunk = b""
        if not chunk:
            raise ForkServerError("the fork server of the tests has ended, perhaps because memory ran out; try again")
        *lines, self._unread = (self._unread + chunk).split(b"\n")
        messages = [json.loads(line) for line in lines]
        for message in messages:
            self.received |= message
        return messages

    def close(self) -> None:
        """Kills the server."""
        self.process.kill()
        self.process.wait()
        self.control.close()


def preload(modules: Iterable[str]) -> None:
    """Imports modules, and what numba imports when it compiles its first function."""
    for module in modules:
        importlib.import_module(module)
    import numba

    numba.njit("int64(int64)")(lambda number: number)


def serve(control: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Forks for each request, until the client closes the socket.

    Returns:
        In a fork, which leads a process group: the request and its file descriptors. In the server, at the end: None.
    """
    gc.collect()
    gc.freeze()  # collections in the forks then leave the memory pages of the server shared
    while True:
        _send(control, ready=True, threads=count_threads())
        message, files, _, _ = socket.recv_fds(control, MAX_REQUEST, 2)
        if not message:
            return None
        child = os.fork()
        with suppress(OSError):  # parent and child both call it, and the child may have ended already
            os.setpgid(child, child)
        if child == 0:
            control.close()
            return json.loads(message), list(files)
        for each in files:
            os.close(each)
        _send(control, child=child)
        _send(control, ended=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def count_threads() -> int:
    """Returns the number of threads of this process, with those of C libraries; 0 on a system without /proc."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else 0


def _send(control: socket.socket, **message: object) -> None:
    control.sendall(json.dumps(message).encode() + b"\n")

"""A process that has imported what a judge imports, and forks for each verdict of a class.

A judge begins with seconds of importing torch, pytest and the engine, the same for each submission. Here that is done once for as
many as are graded at a time. Nothing of a learner's is ever in the server: a fork of it does what a new judge does, and starts
the box that the learner's file runs in.
"""

from __future__ import annotations

import gc
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import IO, Any

from labkit.check.check import Child, Start, start_pytest, trusted_environment
from labkit.check.preload import import_ahead
from labkit.isolation.sandbox import end_with_parent, undumpable
from labkit.system.labs import ROOT

LONGEST = 1 << 16
"""Bytes of a request: pytest's arguments, and what of the environment is not the server's."""

NUMBER = 8
"""Bytes of what a server says: a process id, then how that process ended."""


class ForkServer:
    """The process, seen from outside. It has one fork at a time."""

    def __init__(self) -> None:
        self.environment = trusted_environment()
        self.control, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "labkit.grading.fork_server", str(theirs.fileno())],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def hear(self, timeout: float | None = None) -> int:
        """The next number that it says.

        Raises:
            TimeoutError: it has not said one in so many seconds.
            OSError: it has been ended.
        """
        self.control.settimeout(timeout)
        if not (said := self.control.recv(NUMBER)):
            raise OSError("the process that forks judges has been ended from outside, by want of memory perhaps; grade again")
        return int.from_bytes(said, "little", signed=True)

    def close(self) -> None:
        """Ends the process, and with it its fork."""
        self.process.kill()
        self.process.wait()
        self.control.close()


class Fork:
    """A judge that a server has forked.

    Args:
        server: which.
        done: called once, when it has ended or its server has.

    Attributes:
        pid: its process and its process group.
    """

    def __init__(self, server: ForkServer, done: Callable[[], None]) -> None:
        self._server, self._done = server, done
        self._status: int | None = None
        self._lost: OSError | None = None
        self.pid = self._hear(None)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, or minus the signal that ended it.

        Raises:
            subprocess.TimeoutExpired: it has not ended.
            OSError: its server has.
        """
        if self._status is None:
            self._status = self._hear(timeout)
            self._done()
        return self._status

    def _hear(self, timeout: float | None) -> int:
        if self._lost:
            raise self._lost
        try:
            return self._server.hear(timeout)
        except TimeoutError as error:
            raise subprocess.TimeoutExpired("pytest", timeout or 0) from error
        except OSError as error:
            self._lost = error
            self._done()
            raise


@contextmanager
def fork_servers(count: int) -> Iterator[Start]:
    """So many servers; gives what starts a judge with one that is free, for as many threads."""
    servers = [ForkServer() for _ in range(count)]
    idle: SimpleQueue[ForkServer] = SimpleQueue()
    for server in servers:
        idle.put(server)

    def start(arguments: list[str], environment: dict[str, str], output: IO[bytes], report: IO[bytes]) -> Child:
        server = idle.get()
        if server.process.poll() is not None:
            idle.put(server)
            return start_pytest(arguments, environment, output, report)
        changes = {name: value for name, value in environment.items() if server.environment.get(name) != value}
        request = {"arguments": arguments, "environment": changes, "report": report.fileno()}
        with suppress(OSError):  # it has just ended, which is heard next
            socket.send_fds(server.control, [json.dumps(request).encode()], [output.fileno(), report.fileno()])
        return Fork(server, lambda: idle.put(server))

    try:
        yield start
    finally:
        for server in servers:
            server.close()


def serve(control: socket.socket) -> None:
    """Forks for each request until there is nobody left to ask."""
    end_with_parent()
    undumpable()
    import_ahead("pytest", "hypothesis", "safetensors.torch", "labkit.isolation.judge")
    gc.freeze()  # what is old stays on pages that parent and children share
    while True:
        message, files, _, _ = socket.recv_fds(control, LONGEST, 2)
        if not message:
            return
        child = os.fork()
        if not child:
            end_with_parent()
            os.setpgid(0, 0)
            control.close()
            os._exit(_judge(json.loads(message), *files))
        os.setpgid(child, child)  # whichever of the two comes first
        for each in files:
            os.close(each)
        _say(control, child)
        _say(control, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _say(control: socket.socket, number: int) -> None:
    control.sendall(number.to_bytes(NUMBER, "little", signed=True))


def _judge(request: dict[str, Any], output: int, report: int) -> int:
    """What :func:`labkit.check.check.start_pytest` starts, in this fork."""
    import pytest

    os.environ |= request["environment"]
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(report, request["report"])
    random.seed()
    status = pytest.main(request["arguments"])
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))

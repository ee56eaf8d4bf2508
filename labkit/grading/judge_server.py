"""Fork servers for the judges of a class: each has imported what a judge imports, and forks for each submission.

A fork does what a new judge does: it starts the sandbox that the learner's file runs in. The server never runs a learner's code.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import IO

from labkit.check.check import PRELOAD, Child, Start, start_pytest
from labkit.grading.verdict import judge_environment
from labkit.isolation.sandbox import end_with_parent, undumpable
from labkit.system.fork_server import ForkServer, ForkServerError, preload, serve


class ForkedJudge:
    """A judge that a server has forked.

    Args:
        server: the server, to which a request has been sent.
        release: called once, when the judge or its server has ended.

    Attributes:
        pid: its process and its process group.
    """

    def __init__(self, server: ForkServer, release: Callable[[], None]) -> None:
        self._server, self._release = server, release
        self._received: dict[str, int] = {}
        self._lost = False
        self.pid = self._receive("child", None)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, or minus the signal that ended it.

        Raises:
            subprocess.TimeoutExpired: it has not ended.
            OSError: its server has ended.
        """
        known = "ended" in self._received
        status = self._receive("ended", timeout)
        if not known:
            self._release()
        return status

    def _receive(self, key: str, timeout: float | None) -> int:
        while key not in self._received:
            try:
                if self._lost:
                    raise ForkServerError
                for message in self._server.receive(timeout):
                    self._received |= message
            except TimeoutError as error:
                raise subprocess.TimeoutExpired("pytest", timeout or 0) from error
            except ForkServerError as error:
                if not self._lost:
                    self._lost = True
                    self._release()
                raise OSError("the fork server was ended from outside, perhaps because memory ran out; grade again") from error
        return self._received[key]


@contextmanager
def judge_servers(count: int) -> Iterator[Start]:
    """Starts so many servers; yields a function that starts a judge with a free one, for as many threads."""
    environment = judge_environment()
    module, nowhere = "labkit.grading.judge_server", subprocess.DEVNULL
    servers = [ForkServer(module, (), environment, nowhere) for _ in range(count)]
    free: SimpleQueue[ForkServer] = SimpleQueue()
    for server in servers:
        free.put(server)

    def start(arguments: list[str], environment: dict[str, str], output: IO[bytes], report: IO[bytes]) -> Child:
        server = free.get()
        if server.process.poll() is not None:
            free.put(server)
            return start_pytest(arguments, environment, output, report)
        changes = {name: value for name, value in environment.items() if server.environment.get(name) != value}
        request = {"arguments": arguments, "environment": changes, "report": report.fileno()}
        server.request(request, [output.fileno(), report.fileno()])
        return ForkedJudge(server, lambda: free.put(server))

    try:
        yield start
    finally:
        for server in servers:
            server.close()


def main(control: socket.socket) -> int:
    """Serves; in a fork, does what :func:`labkit.check.check.start_pytest` starts. Returns the exit status."""
    import pytest

    end_with_parent()
    undumpable()
    preload((*PRELOAD, "hypothesis", "safetensors.torch", "labkit.check.reporter", "labkit.isolation.judge"))
    forked = serve(control)
    if forked is None:
        return 0
    request, (output, report) = forked
    end_with_parent()
    os.environ |= request["environment"]
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(report, request["report"])
    random.seed()
    return pytest.main(request["arguments"])


if __name__ == "__main__":
    status = main(socket.socket(fileno=int(sys.argv[1])))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

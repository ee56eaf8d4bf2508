"""Fork servers for the judges of a class: each has imported a judge's modules, and forks a judge for each submission.

A forked judge acts as a new one: it starts the sandbox that the learner's file runs in. The server never runs a learner's code.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from labkit.check.check import PRELOAD, Child, Start, start_pytest
from labkit.grading.verdict import judge_environment
from labkit.isolation.sandbox import end_with_parent, protect_memory
from labkit.system.fork_server import ForkServer, preload, serve


@contextmanager
def judge_servers() -> Iterator[Start]:
    """Yields a function that starts a judge; each thread that calls it has a server, and one judge at a time."""
    servers: list[ForkServer] = []
    of_thread = threading.local()

    def start(arguments: list[str], environment: dict[str, str], output: IO[bytes], report: IO[bytes]) -> Child:
        if not hasattr(of_thread, "server"):
            of_thread.server = ForkServer("labkit.grading.judge_server", (), judge_environment(), subprocess.DEVNULL)
            servers.append(of_thread.server)
        server: ForkServer = of_thread.server
        if server.process.poll() is not None:
            return start_pytest(arguments, environment, output, report)
        changes = {name: value for name, value in environment.items() if server.environment.get(name) != value}
        request = {"arguments": arguments, "environment": changes, "report": report.fileno()}
        server.request(request, [output.fileno(), report.fileno()])
        return server

    try:
        yield start
    finally:
        for server in servers:
            server.close()


def main(control: socket.socket) -> int:
    """Forks for each request; a fork runs pytest, as :func:`labkit.check.check.start_pytest` does. Returns the exit status."""
    import pytest

    end_with_parent()
    protect_memory()
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

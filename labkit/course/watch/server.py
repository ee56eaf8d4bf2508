"""The fork server of ./lab watch: pytest collects the lab's tests in it once, and each run is a fork that runs the tests.

It forks between collection and the first test. The fixture ``lab`` imports the learner's file, test_lab.py does not: the server
never runs a learner's code, and each fork reads the newest version from disk.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from labkit.check.check import GRACE, PRELOAD
from labkit.check.reporter import Reporter
from labkit.system.fork_server import preload, serve
from labkit.system.labs import ROOT, Lab


class ForkPoint:
    """The pytest plugin that forks where pytest would run the tests; ``control`` is the socket to the ./lab watch process."""

    def __init__(self, control: socket.socket) -> None:
        self.control, self.is_fork = control, False

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Forks for each run until ./lab watch ends, then returns True: pytest ends. In a fork, None: pytest runs the tests."""
        if session.testsfailed:  # the tests cannot be imported
            return None
        forked = serve(self.control)
        if forked is None:
            return True
        self.is_fork = True
        request, (report,) = forked
        output, graded = Path(request["output"]), Path(request["graded"])
        file = os.open(output, os.O_WRONLY | os.O_APPEND)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(file, number)
            setattr(sys, name, os.fdopen(number, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False))
        os.environ["LAB_IMPL"] = str(graded)
        session.items.sort(key=lambda item: item.name.partition("[")[0] not in request["first"])
        session.config.pluginmanager.register(Reporter(report, graded, GRACE, output, max_timeouts=1))
        return None


def main(control: socket.socket, lab: Lab) -> int:
    """Runs pytest until the tests are collected, then forks for each run; returns pytest's exit status."""
    preload(PRELOAD)
    # The first failing example is enough: hypothesis takes seconds to find the smallest one, which ./lab check does.
    settings.register_profile("watch", phases=[phase for phase in Phase if phase not in (Phase.shrink, Phase.explain)])
    settings.load_profile("watch")
    fork_point = ForkPoint(control)
    arguments = [str(lab.tests), "-q", "-s", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider"]
    arguments += ["-p", "labkit.check.reporter", f"--timeout={lab.time_limit}"]
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # pytest's progress
        status = pytest.main(arguments, plugins=[fork_point])
    if fork_point.is_fork:
        os._exit(0)
    return status


if __name__ == "__main__":
    sys.exit(main(socket.socket(fileno=int(sys.argv[1])), Lab.read(Path(sys.argv[2]))))

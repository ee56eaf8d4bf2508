"""The pytest plugin of the judge: the fixture ``lab`` is a proxy for the learner's file, which runs in the sandbox.

``./lab grade`` runs the tests with this plugin. ``./lab check`` and plain pytest import the file into the tests' process.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import pytest

from labkit.check.results import describe_exit
from labkit.isolation.compiled_kernels import compile_missing, link_kernels
from labkit.isolation.rpc_proxy import LearnerConnection, ModuleProxy, delegate_engine_functions
from labkit.isolation.sandbox import FOLDER, end_with_parent, protect_memory, sandboxed
from labkit.system.errors import UserError


class Judge:
    """Starts the learner's process with pytest, so that both import torch at the same time; ends the process with the session."""

    def __init__(self, graded: Path, folder: Path) -> None:
        self.graded, self.folder = graded, folder
        calls, theirs = socket.socketpair()
        interrupts, their_interrupts = socket.socketpair()
        link_kernels(folder)
        with theirs, their_interrupts:
            ends, null = (theirs.fileno(), their_interrupts.fileno()), subprocess.DEVNULL
            learner = [sys.executable, "-P", "-m", "labkit.isolation.learner_process", str(graded), *map(str, ends)]
            self.process = subprocess.Popen(sandboxed(folder, learner), stdin=null, stdout=null, stderr=null, pass_fds=ends)
        self.connection = LearnerConnection(graded, calls, interrupts, self.describe_exit)
        self.patches = pytest.MonkeyPatch()
        delegate_engine_functions(self.patches)
        popen = subprocess.Popen  # a process that a test starts may run the learner's file
        self.patches.setattr(subprocess, "Popen", lambda command, **options: popen(sandboxed(folder, command), **options))

    def describe_exit(self) -> str:
        """Returns a sentence about how the learner's process ended or lost its connection."""
        try:
            status = self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return (
                f"{self.graded.name} has closed or broken its connection to the tests, so nothing more is graded; remove what "
                "closes or writes a file descriptor or socket that it did not open, then check again"
            )
        return describe_exit(self.graded, 128 - status if status > 128 else status)

    def pytest_collection_finish(self) -> None:
        """Waits for the learner's process, so that its import of torch is not part of the first test's time."""
        self.connection.wait_ready()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Fails every test that ran after the learner's process was lost; the message says why it was lost."""
        report = yield
        has_message = call.excinfo and call.excinfo.errisinstance(pytest.fail.Exception)  # pytest-timeout's, for instance
        if report.when == "call" and self.connection.lost and not has_message:
            report.outcome, report.longrepr = "failed", self.connection.lost
        return report

    def pytest_unconfigure(self) -> None:
        """Ends the sandbox and every process in it."""
        self.patches.undo()
        self.connection.calls.close()
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)
        self.process.kill()
        self.process.wait()
        compile_missing(self.folder)


JUDGE = pytest.StashKey[Judge]()


def pytest_configure(config: pytest.Config) -> None:
    """Starts the learner's process."""
    end_with_parent()
    protect_memory()
    config.stash[JUDGE] = Judge(Path(os.environ["LAB_IMPL"]), Path(os.environ[FOLDER]))
    config.pluginmanager.register(config.stash[JUDGE])


@pytest.fixture(scope="module")
def lab(pytestconfig: pytest.Config) -> ModuleProxy:
    """The proxy for the learner's file, which is loaded anew for each test module."""
    connection = pytestconfig.stash[JUDGE].connection
    try:
        connection.request("load")
    except UserError as error:
        pytest.fail(str(error), pytrace=False)
    return ModuleProxy(connection)

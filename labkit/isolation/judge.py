"""A pytest plugin for the process that judges: the fixture ``lab`` is the learner's file in another process, inside a box.

``./lab check`` runs the tests with it (check.py). Plain ``pytest labs/...`` does not: there labs/conftest.py imports the file
into the same process, which is quicker to debug and trusts it.
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
from labkit.isolation.compiled_kernels import compile_missing, show_kernels
from labkit.isolation.rpc_proxy import Remote, RemoteModule, hand_over
from labkit.isolation.sandbox import FOLDER, boxed, end_with_parent, undumpable
from labkit.system.errors import UserError


class Judge:
    """Starts the learner's process when pytest starts, so that both import torch at once, and ends it with the session.

    Args:
        graded: the learner's file.
        folder: the box's folder.
    """

    def __init__(self, graded: Path, folder: Path) -> None:
        self.graded, self.folder = graded, folder
        calls, theirs = socket.socketpair()
        interruptions, their_interruptions = socket.socketpair()
        ends = (theirs.fileno(), their_interruptions.fileno())
        show_kernels(folder)
        self.process = subprocess.Popen(
            boxed([sys.executable, "-P", "-m", "labkit.isolation.learner_process", str(graded), *map(str, ends)]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=ends,
        )
        theirs.close()
        their_interruptions.close()
        self.remote = Remote(graded, calls, interruptions, self.how_it_ended)
        self.patches = pytest.MonkeyPatch()
        hand_over(self.patches)

    def how_it_ended(self) -> str:
        """What the learner's process did to itself, in a sentence."""
        try:
            status = self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return f"{self.graded.name} has closed its connection to the tests, so nothing more is graded"
        return describe_exit(self.graded, 128 - status if status > 128 else status)

    def pytest_collection_finish(self) -> None:
        """The tests' time limit is theirs alone: importing torch is done before the first."""
        self.remote.wait()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Fails a test that ran without the learner's process, unless it timed out; a file's import is the same for all tests."""
        report = yield
        timed_out = call.excinfo and call.excinfo.errisinstance(pytest.fail.Exception)
        if report.when == "call" and self.remote.lost and not timed_out:
            report.outcome, report.longrepr = "failed", self.remote.lost
        return report

    def pytest_unconfigure(self) -> None:
        """Closes the box, with all that is left in it."""
        self.patches.undo()
        self.remote.calls.close()
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
    undumpable()
    config.stash[JUDGE] = Judge(Path(os.environ["LAB_IMPL"]), Path(os.environ[FOLDER]))
    config.pluginmanager.register(config.stash[JUDGE])


@pytest.fixture(scope="module")
def lab(pytestconfig: pytest.Config) -> RemoteModule:
    """The implementation under test, from afar."""
    remote = pytestconfig.stash[JUDGE].remote
    try:
        remote.ask("load")
    except UserError as error:
        pytest.fail(str(error), pytrace=False)
    return RemoteModule(remote)

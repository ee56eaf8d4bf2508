"""Starts, reads and kills runs of a lab's tests; a run is a fork of the fork server in server.py."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.check.check import MAX_OUTPUT, clean_environment
from labkit.check.report import TaskResult
from labkit.check.results import FailedTest, Results
from labkit.course.progress import digest
from labkit.system.errors import UserError
from labkit.system.fork_server import ForkServer, ForkServerError
from labkit.system.labs import Lab, Task


@dataclass
class Run(Results):
    """One run of a lab's tests.

    Attributes:
        digest: the lab's :func:`~labkit.course.progress.digest` when the run started.
        first: the task whose tests run before all others.
        pipe: the file descriptor to read results from; -1 once it is closed.
        started: ``time.monotonic()`` when the run started, in seconds.
        ended: whether the process has ended, so that no result comes any more.
    """

    digest: str = ""
    first: Task | None = None
    pipe: int = -1
    started: float = field(default_factory=time.monotonic)
    ended: bool = False

    def read(self) -> bool:
        """Parses the results that the run has sent; returns False if the pipe has ended."""
        chunk = os.read(self.pipe, 65536)
        self.feed(chunk)
        return bool(chunk)

    def task_result(self, task: Task) -> TaskResult:
        """Returns the result of a task from the tests that have ended so far."""
        return next(result for result in self.report.tasks if result.task is task)

    def failed_test(self, task: Task | None) -> FailedTest | None:
        """Returns the first failed test of a task, in the task's order; None if none has failed or there is no task."""
        return next((self.failed[name] for name in task.tests if name in self.failed), None) if task else None

    def end(self, status: int, retry: str = "save again") -> None:
        """Notes that the process has ended; ``status`` is its exit status, or minus the signal that ended it."""
        self.ended = True
        super().end(status, retry)


class WatchServer(ForkServer):
    """The fork server of one lab."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._folder = tempfile.TemporaryDirectory(prefix="lab-watch-", ignore_cleanup_errors=True)
        self._output, self._log = Path(self._folder.name) / "printed", Path(self._folder.name) / "log"
        self._output.touch()
        # One thread in every library: small products are fastest so, and OpenMP's threads do not survive a fork.
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        environment = clean_environment() | one_thread | {"PYTEST_DEBUG_TEMPROOT": self._folder.name}
        with self._log.open("wb") as log:
            super().__init__("labkit.course.watch.server", [str(lab.folder)], environment, log)

    @property
    def ready(self) -> bool:
        """Whether the server waits for a request to start a run."""
        return "ready" in self.received

    @property
    def threads(self) -> int:
        """The number of threads that the server had when it became ready."""
        return int(self.received["threads"])

    def start_run(self, graded: Path, first: Task | None) -> Run:
        """Starts a run on the file ``graded``, with the tests of task ``first`` before all others. The server must be ready."""
        os.truncate(self._output, 0)
        reading, writing = os.pipe()
        self.request({"graded": str(graded), "first": first.tests if first else (), "output": str(self._output)}, [writing])
        os.close(writing)
        return Run(self.lab, graded, digest=digest(self.lab), first=first, pipe=reading)

    def kill_run(self) -> None:
        """Kills the fork, if one runs, and every process in the fork's process group."""
        if "child" in self.received and "ended" not in self.received:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def receive(self, timeout: float | None = None) -> list[dict[str, Any]]:
        """Waits for the next messages of the server and returns them.

        Raises:
            UserError: the server has ended; the message has the last line of the server's log.
        """
        try:
            return super().receive(timeout)
        except ForkServerError:
            self.process.wait()
            log = self._log.read_text(errors="replace").strip().splitlines()
            reason = log[-1] if log else "no reason given"
            raise UserError(
                f"the tests of lab {self.lab.number} could not be made ready: {reason}; fix this, then run ./lab watch again"
            ) from None

    def limit_output(self) -> None:
        """Deletes what a run has printed, if it is more than MAX_OUTPUT bytes."""
        if self._output.stat().st_size > MAX_OUTPUT:
            os.truncate(self._output, 0)

    def close(self) -> None:
        """Kills the server and its fork, and deletes the temporary folder of output and log."""
        self.kill_run()
        super().close()
        self._folder.cleanup()

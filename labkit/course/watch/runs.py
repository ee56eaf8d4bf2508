"""Runs of a lab's tests in forks of the watch's fork server, from outside: start, read, end."""

from __future__ import annotations

import os
import signal
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.check.check import MAX_OUTPUT, clean_environment
from labkit.check.report import TaskResult
from labkit.check.results import Results
from labkit.course.progress import digest
from labkit.system.errors import UserError
from labkit.system.fork_server import ForkServer, ForkServerError
from labkit.system.labs import Lab, Task


@dataclass
class Run(Results):
    """One run of a lab's tests.

    Attributes:
        digest: of the files that the verdict depends on, when the run started.
        first: the task whose tests run before all others.
        pipe: the file descriptor to read results from; -1 once it is closed.
        process: the fork's process id; 0 until the server has sent it.
        ended: whether the process has ended, so that no result comes any more.
        stopped: whether the watch has killed it.
    """

    digest: str = ""
    first: Task | None = None
    pipe: int = -1
    process: int = 0
    ended: bool = False
    stopped: bool = False

    def read(self) -> bool:
        """Takes the results that have come; False at the end."""
        chunk = os.read(self.pipe, 65536)
        self.feed(chunk)
        return bool(chunk)

    def task_result(self, task: Task) -> TaskResult:
        """The result of a task as far as the run has come."""
        return next(result for result in self.report.tasks if result.task is task)

    def end(self, status: int, retry: str = "save again") -> None:
        """Notes that the process has ended, with a status or by minus a signal."""
        self.ended = True
        if not self.stopped:
            super().end(status, retry)

    def kill(self) -> None:
        """Kills the process and every process that it has started."""
        self.stopped = True
        if self.process and not self.ended:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process, signal.SIGKILL)


class WatchServer(ForkServer):
    """The fork server of one lab.

    Attributes:
        ready: whether it waits for a run.
        threads: how many threads it had when it last was ready.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.ready = False
        self.threads = 0
        self._folder = tempfile.TemporaryDirectory(prefix="lab-watch-", ignore_cleanup_errors=True)
        self._output = Path(self._folder.name) / "printed"
        self._log = Path(self._folder.name) / "log"
        self._output.touch()
        # One thread in every library: small products are fastest so, and OpenMP's threads do not survive a fork.
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        environment = clean_environment() | one_thread | {"PYTEST_DEBUG_TEMPROOT": self._folder.name}
        with self._log.open("wb") as log:
            super().__init__("labkit.course.watch.server", [str(lab.folder)], environment, log)

    def start_run(self, graded: Path, first: Task | None) -> Run:
        """Starts a run. The server must be ready."""
        self.ready = False
        os.truncate(self._output, 0)
        reading, writing = os.pipe()
        self.request({"graded": str(graded), "first": first.name if first else "", "output": str(self._output)}, [writing])
        os.close(writing)
        return Run(self.lab, graded, digest=digest(self.lab), first=first, pipe=reading)

    def receive(self, timeout: float | None = None) -> list[dict[str, Any]]:
        """The next messages of the server.

        Raises:
            UserError: it has ended; with the last line of its log.
        """
        try:
            messages = super().receive(timeout)
        except ForkServerError:
            self.process.wait()
            log = self._log.read_text(errors="replace").strip().splitlines()
            raise UserError(
                f"the tests of lab {self.lab.number} could not be made ready: {log[-1] if log else 'no reason given'}"
            ) from None
        for message in messages:
            if message.get("ready"):
                self.ready, self.threads = True, message["threads"]
        return messages

    def limit_output(self) -> None:
        """Deletes what a run has printed, if it is too much."""
        if self._output.stat().st_size > MAX_OUTPUT:
            os.truncate(self._output, 0)

    def close(self) -> None:
        """Kills the server and deletes its folder."""
        super().close()
        self._folder.cleanup()

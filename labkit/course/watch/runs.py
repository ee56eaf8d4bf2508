"""Runs of a lab's tests in forks of the warm process, seen from outside: begun, read from, ended."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.check.check import Report, TaskResult, TestResult, keep_worst, read_outcome, report_on
from labkit.course.progress import digest
from labkit.system.errors import UserError
from labkit.system.labs import ROOT, Lab, Task

MOST_OUTPUT = 8 * 2**20
"""Bytes that a run may have printed before they are thrown away: a flood must not fill the disk."""


@dataclass(frozen=True)
class Shown:
    """A failed test, and what helps to see why.

    Attributes:
        result: as ./lab check has it.
        compared: expected against got, a line each.
        suspect: where in the learner's file to look when the failure did not come through a line of it; else empty.
        printed: the last of what the test printed.
    """

    result: TestResult
    compared: tuple[str, ...] = ()
    suspect: str = ""
    printed: str = ""


@dataclass
class Run:
    """One run of a lab's tests; it grows as they end.

    Attributes:
        lab: which lab.
        graded: the learner's file.
        taken: the digest of what the run rests on, when it began.
        first: the task whose tests run before all others.
        pipe: where the results come from.
        child: the process; 0 until the warm process has said which.
        results: what is known, by test function.
        shown: the first failed result of each test function.
        running: the test that is running, empty between two.
        finished: whether pytest came to its end.
        over: whether the process has ended, so that nothing will come any more.
        broken: why there is no verdict, if there is none.
        stopped: whether we have ended it.
        stack: what the end of a hanging test has left: lines of faulthandler's.
    """

    lab: Lab
    graded: Path
    taken: str
    first: Task | None
    pipe: int
    child: int = 0
    results: dict[str, TestResult] = field(default_factory=dict)
    shown: dict[str, Shown] = field(default_factory=dict)
    running: str = ""
    finished: bool = False
    over: bool = False
    broken: str = ""
    stopped: bool = False
    stack: list[str] = field(default_factory=list)
    _unread: bytes = b""

    def read(self) -> bool:
        """Takes what has come; False when no more will."""
        chunk = os.read(self.pipe, 65536)
        *lines, self._unread = (self._unread + chunk).split(b"\n")
        for line in lines:
            self._take(line.decode(errors="replace"))
        return bool(chunk)

    def task_result(self, task: Task) -> TaskResult:
        """What is known of a task."""
        return next(result for result in self.report.tasks if result.task is task)

    @property
    def report(self) -> Report:
        """What is known of the lab."""
        return report_on(self.lab, self.graded, self.results, self.broken)

    def end(self, status: int) -> None:
        """The process has ended, with a status or by minus a signal."""
        self.over = True
        if self.finished:
            return
        test = re.sub(r"\[.*", "", self.running)
        if self.stack:
            lines = [int(number) for number in re.findall(rf"{re.escape(self.graded.name)}\", line (\d+)", "\n".join(self.stack))]
            message = f"did not end within {self.lab.time_limit} seconds; look for a loop that never ends"
            keep_worst(self.results, TestResult(test, "failed", message, lines[0] if lines else None))
            self.shown[test] = Shown(self.results[test])
        elif not self.stopped:
            how = f"with signal {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
            self.broken = (
                f"{self.graded.name} ended the whole Python process ({how}) in {test or 'no test'}, so nothing is graded; "
                "take out what exits (exit, sys.exit, os._exit) or crashes, then save again"
            )

    def _take(self, line: str) -> None:
        try:
            told = json.loads(line)
        except ValueError:
            told = None
        if not isinstance(told, dict):
            self.stack.append(line)
        elif told.get("finished"):
            self.finished, self.running = True, ""
        elif told["status"] == "running":
            self.running = told["test"]
        else:
            self._take_result(told)

    def _take_result(self, told: dict[str, Any]) -> None:
        message, text = told.get("message", ""), told.get("text", "")
        result = read_outcome(told["test"], told["status"], self.graded, message, text, told["against"])
        keep_worst(self.results, result)
        if result.status == "failed":
            compared, suspect = tuple(told["compared"]), told["suspect"]
            self.shown.setdefault(result.name, Shown(self.results[result.name], compared, suspect, told["printed"]))


class Warm:
    """The warm process of one lab.

    Attributes:
        control: the socket to it.
        ready: whether it waits for a run.
        threads: how many it had when it last said so.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.ready = False
        self.threads = 0
        self._folder = tempfile.TemporaryDirectory(prefix="lab-watch-", ignore_cleanup_errors=True)
        self._output = Path(self._folder.name) / "printed"
        self._said = Path(self._folder.name) / "said"
        self._unread = b""
        self._output.touch()
        self.control, theirs = socket.socketpair()
        # One thread in every library: small products are fastest so, and OpenMP's threads do not survive a fork.
        environment = os.environ | {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        environment["PYTEST_DEBUG_TEMPROOT"] = self._folder.name
        for name in ("LAB_IMPL", "PYTEST_ADDOPTS", "PYTHONDONTWRITEBYTECODE"):
            environment.pop(name, None)
        command = [sys.executable, "-P", "-m", "labkit.check.warm", str(theirs.fileno()), str(lab.folder)]
        with theirs, self._said.open("wb") as said:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def begin(self, graded: Path, first: Task | None) -> Run:
        """Begins a run. The process must be ready."""
        self.ready = False
        os.truncate(self._output, 0)
        reading, writing = os.pipe()
        request = {"graded": str(graded), "first": first.name if first else "", "output": str(self._output)}
        socket.send_fds(self.control, [json.dumps(request).encode()], [writing])
        os.close(writing)
        return Run(self.lab, graded, digest(self.lab), first, reading)

    def messages(self) -> Iterator[dict[str, Any]]:
        """What the process has said since.

        Raises:
            UserError: it has ended; says what it left.
        """
        chunk = self.control.recv(65536)
        if not chunk:
            self.process.wait()
            said = self._said.read_text(errors="replace").strip().splitlines()
            raise UserError(
                f"the tests of lab {self.lab.number} could not be made ready: {said[-1] if said else 'no reason given'}"
            )
        *lines, self._unread = (self._unread + chunk).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if message.get("ready"):
                self.ready, self.threads = True, message["threads"]
            yield message

    def drain_flood(self) -> None:
        """Throws away what a run has printed, if it is too much."""
        if self._output.stat().st_size > MOST_OUTPUT:
            os.truncate(self._output, 0)

    def end(self, run: Run) -> None:
        """Ends a run's process and all that it has started."""
        run.stopped = True
        if run.child and not run.over:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(run.child, signal.SIGKILL)
            with suppress(ProcessLookupError):  # it may not have made its group yet
                os.kill(run.child, signal.SIGKILL)

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        self.control.close()
        self._folder.cleanup()

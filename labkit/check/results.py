"""Parses the lines that reporter.py writes, while the run continues, and makes a report of them."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from labkit.check.report import Report, TestResult
from labkit.system.labs import Lab


@dataclass(frozen=True)
class FailedTest:
    """A failed test, and details that help to find the cause.

    Attributes:
        compared: lines with the expected and the actual value.
        suspect: the function of the graded file to look at if ``result.line`` is None; empty if none was found.
        printed: the end of the test's own output.
    """

    result: TestResult
    compared: Sequence[str] = ()
    suspect: str = ""
    printed: str = ""


@dataclass
class Results:
    """The results of one run; each test that ends adds one.

    Attributes:
        tests: test function -> its worst result so far.
        failed: test function -> its first failure.
        running: the name of the last test that started; empty before the first and after the last.
        finished: whether pytest has reached the end of its session.
        broken: why there is no verdict; empty if there is one.
    """

    lab: Lab
    graded: Path
    tests: dict[str, TestResult] = field(default_factory=dict)
    failed: dict[str, FailedTest] = field(default_factory=dict)
    running: str = ""
    finished: bool = False
    broken: str = ""
    _stack: list[str] = field(default_factory=list)
    _unread: bytes = b""

    @property
    def report(self) -> Report:
        """The report on the tests that have ended so far."""
        return Report.of_results(self.lab, self.graded, self.tests, self.broken)

    def feed(self, chunk: bytes) -> None:
        """Parses the next bytes from the reporter; any other line is taken for one of faulthandler's stack."""
        *lines, self._unread = (self._unread + chunk).split(b"\n")
        for line in lines:
            try:
                self._take(json.loads(line))
            except (ValueError, TypeError, KeyError):
                self._stack.append(line.decode(errors="replace"))

    def end(self, status: int, retry: str = "check again") -> None:
        """Notes that the process ended: if faulthandler ended it, the running test has failed; else there is no verdict.

        faulthandler ends it at the time limit. ``status``: exit status, or minus the signal; ``retry``: next step in the message.
        """
        if self.finished:
            return
        test = re.sub(r"\[.*", "", self.running)
        if self._stack:
            line = re.search(rf"{re.escape(self.graded.name)}\", line (\d+)", "\n".join(self._stack))
            message = f"did not end within {self.lab.time_limit} seconds; look for a loop that never ends"
            self._keep(TestResult(test, "failed", message, int(line[1]) if line else None, fault="timeout"), {})
        else:
            self.broken = describe_exit(self.graded, status, retry)

    def _take(self, event: dict[str, Any]) -> None:
        if "running" in event:
            self.running = event["running"]
        elif "finished" in event:
            self.finished, self.running = True, ""
        else:
            self._keep(TestResult(**event["result"]), event["details"])

    def _keep(self, result: TestResult, details: dict[str, Any]) -> None:
        """Stores the result if it is worse than the test function's earlier ones, and adds up the seconds."""
        before = self.tests.get(result.name, TestResult(result.name, "passed"))
        worse = before.status == "passed" or (before.status == "skipped" and result.status == "failed")
        self.tests[result.name] = replace(result if worse else before, seconds=before.seconds + result.seconds)
        if result.status == "failed" and result.name not in self.failed:
            self.failed[result.name] = FailedTest(result, **details)


def describe_exit(graded: Path, status: int, retry: str = "check again") -> str:
    """Returns the message about a file that ended its process; ``status`` is the exit status, or minus the signal."""
    how = f"with signal {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
    return (
        f"{graded.name} ended the whole Python process ({how}) before the tests were done, so nothing is graded from there on; "
        f"take out what exits (exit, sys.exit, os._exit), crashes or fills the memory, then {retry}"
    )

"""Reads the lines of reporter.py while a run writes them, and turns them into a report."""

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
    """A failed test, and what helps to see why.

    Attributes:
        compared: expected against got, as lines.
        suspect: the function of the graded file to look at when the failure did not come through a line of it; else empty.
        printed: the end of the test's own output.
    """

    result: TestResult
    compared: Sequence[str] = ()
    suspect: str = ""
    printed: str = ""


@dataclass
class Results:
    """The results of one run, which grow as its tests end.

    Attributes:
        tests: the result of each test function that has one.
        failed: the first failure of each test function.
        running: the test that runs now; empty between two tests.
        finished: whether pytest has reached its end.
        broken: why there is no verdict; empty where there is one.
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
        """The report as far as the run has come."""
        return Report.of_results(self.lab, self.graded, self.tests, self.broken)

    def feed(self, chunk: bytes) -> None:
        """Takes more bytes of the report."""
        *lines, self._unread = (self._unread + chunk).split(b"\n")
        for line in lines:
            try:
                self._take(json.loads(line))
            except ValueError:
                self._stack.append(line.decode(errors="replace"))

    def end(self, status: int, retry: str = "check again") -> None:
        """Notes how the process ended: at the time limit the running test has failed; after an exit or crash there is no verdict.

        ``status`` is the exit status, or minus the signal; ``retry`` is the next step that the message names.
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
        """Keeps the worst result of a test function, and adds up the seconds."""
        before = self.tests.get(result.name, TestResult(result.name, "passed"))
        worse = before.status == "passed" or (before.status == "skipped" and result.status == "failed")
        self.tests[result.name] = replace(result if worse else before, seconds=before.seconds + result.seconds)
        if result.status == "failed" and result.name not in self.failed:
            self.failed[result.name] = FailedTest(result, **details)


def describe_exit(graded: Path, status: int, retry: str = "check again") -> str:
    """The sentence for a graded file that ended its process, with an exit status or by minus a signal."""
    how = f"with signal {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
    return (
        f"{graded.name} ended the whole Python process ({how}) before the tests were done, so nothing is graded from there on; "
        f"take out what exits (exit, sys.exit, os._exit), crashes or fills the memory, then {retry}"
    )

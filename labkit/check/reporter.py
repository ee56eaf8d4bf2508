"""The pytest plugin that reports each test as a line of JSON on a file descriptor, for check, watch and grade.

    pytest -p labkit.check.reporter --report-fd 5    {"running": "test_a"}  {"result": {"name": "test_a", ...}} {"finished": true}

results.py reads the lines. For a test that pytest-timeout cannot interrupt, because it hangs in C or catches every
exception, faulthandler writes the stack in place of a line of JSON, and ends the process.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path

import pytest

from labkit.check.comparison import compare_sides, find_suspect

MAX_MESSAGE = 600  # characters
MAX_PRINTED = 2000  # bytes of the test's own output that are reported, the last ones
MAX_TIMEOUTS = 2
"""The session ends after this many tests have timed out; the tests after them are not run."""
TIMEOUT = r"Timeout \(>([\d.]+)s\)"
"""The pattern of pytest-timeout's message, which :func:`clean_message` replaces by :data:`TIMED_OUT` and a hint."""
TIMED_OUT = "did not end within"


class Reporter:
    """Writes the events of one pytest run, each as a line of JSON.

    Args:
        fd: the file descriptor to write to.
        grace: seconds that a test may take beyond its time limit before its process is killed; None: never.
        output: the file that the tests print to. If given, a failure's event also has the test's output and the compared values.
        max_timeouts: how many tests may time out before the session ends.
    """

    def __init__(
        self, fd: int, graded: Path, grace: float | None, output: Path | None = None, max_timeouts: int = MAX_TIMEOUTS
    ) -> None:
        self.fd, self.graded, self.grace, self.output, self.timeouts_left = fd, graded, grace, output, max_timeouts
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.printed_before = 0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Reports that the test runs; faulthandler ends the process ``grace`` seconds after the test's time limit."""
        self.printed_before = self.output.stat().st_size if self.output else 0
        self._write(running=item.name)
        if self.grace is not None:
            marker = item.get_closest_marker("timeout")
            limit = marker.args[0] if marker and marker.args else item.config.getoption("timeout")
            faulthandler.dump_traceback_later(float(limit) + self.grace, exit=True, file=self.fd)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()

    @pytest.hookimpl(wrapper=True, tryfirst=True)  # the outermost: another plugin may change the report
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Reports the result of the test's call, or of a setup or teardown that failed or was skipped."""
        report = yield
        self.seconds[item.name] += report.duration
        if report.failed or report.skipped or report.when == "call":
            self._report(item, call, report)
        return report

    def pytest_sessionfinish(self) -> None:
        """Reports that pytest has reached the end of its session."""
        self._write(finished=True)

    def _report(self, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
        against = next((value for key, value in item.user_properties if key == "against"), "")
        result: dict[str, object] = {"name": re.sub(r"\[.*", "", item.name), "status": report.outcome, "against": against}
        details: dict[str, object] = {}
        if report.skipped and isinstance(report.longrepr, tuple):
            result["message"] = clean_message(report.longrepr[2].removeprefix("Skipped: "))
        elif report.failed:
            text = str(report.longrepr)
            crash = getattr(report.longrepr, "reprcrash", None)
            message = clean_message(crash.message if crash else text, text)
            timed_out = message.startswith(TIMED_OUT)
            lines = re.findall(rf"{re.escape(self.graded.name)}:(\d+):", text)
            result["fault"] = "timeout" if timed_out else "failure" if report.when == "call" else "error"
            result["message"], result["line"] = message, int(lines[-1]) if lines else None
            if self.output:
                traceback = call.excinfo.tb if call.excinfo else None
                details = {
                    "compared": compare_sides(traceback, item.path),
                    "suspect": find_suspect(traceback, item.path, self.graded),
                    "printed": self._printed(self.output),
                }
            if timed_out:
                self.timeouts_left -= 1
            if not self.timeouts_left:
                item.session.shouldfail = "too many tests did not end"
        self._write(result=result | {"seconds": self.seconds.pop(item.name)}, details=details)

    def _write(self, **event: object) -> None:
        with os.fdopen(self.fd, "wb", closefd=False) as file:
            file.write(json.dumps(event).encode() + b"\n")

    def _printed(self, output: Path) -> str:
        size = output.stat().st_size
        start = self.printed_before if self.printed_before <= size else 0  # the file was truncated because it was too long
        with output.open("rb") as file:
            file.seek(max(start, size - MAX_PRINTED))
            return file.read().decode(errors="replace")


def clean_message(message: str, traceback: str = "") -> str:
    """Returns MAX_MESSAGE characters of a failure's message, without the text that pytest, the judge and hypothesis add."""
    if "FlakyFailure" in message and (timeout := re.search(TIMEOUT, traceback)):
        message = timeout[0]  # hypothesis ran the case that timed out once more, and it was in time
    message = re.sub(r"^(Failed|AssertionError|failed on setup with \"(Failed: )?)(: )?", "", message).strip().rstrip('"')
    message = re.sub(r"^labkit\.isolation\.rpc_proxy\.\w+: ", "", message)
    if timeout := re.match(TIMEOUT, message):
        return f"{TIMED_OUT} {float(timeout[1]):.0f} seconds; look for a loop that never ends"
    if message.startswith("NotImplementedError"):
        message = message.splitlines()[0]  # the other lines are the values that hypothesis drew
    lines = [line for line in message.splitlines() if line.strip() and not line.startswith("You can reproduce this test case")]
    return "\n".join(lines)[:MAX_MESSAGE]


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Prints to stderr why the tests cannot be imported; the last line becomes the reason why there is no verdict."""
    if report.failed:
        print(report.longreprtext, file=sys.stderr)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options for a run whose results another process reads."""
    group = parser.getgroup("labs")
    group.addoption("--report-fd", type=int, help="the file descriptor to report to")
    group.addoption("--report-grace", type=float, help="seconds beyond its time limit after which a test's process is ended")


def pytest_configure(config: pytest.Config) -> None:
    """Registers the reporter if --report-fd is given."""
    if (fd := config.getoption("--report-fd")) is not None:
        config.pluginmanager.register(Reporter(fd, Path(os.environ["LAB_IMPL"]), config.getoption("--report-grace")))

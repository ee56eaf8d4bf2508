"""A pytest plugin for runs in which every test must run: one that skipped what it was started for is not a pass.

pytest ends well when everything was skipped. Asked for GPU tests, on a machine without a GPU, that would look like a pass; so it
would in CI, where everything that a test needs is there (tests/conftest.py).
"""

from __future__ import annotations

import pytest


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Turns a run that would end well into one that ran no tests, exit status 5, when any was skipped."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and reporter.stats.get("skipped") and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many of how many were not run, and why."""
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    ran = sum(len(terminalreporter.stats.get(outcome, [])) for outcome in ("passed", "failed"))
    terminalreporter.write_line(f"NOT A PASS: {len(skipped)} of {len(skipped) + ran} tests were not run:", yellow=True)
    for reason in sorted({str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped}):
        terminalreporter.write_line(f"  {reason}")

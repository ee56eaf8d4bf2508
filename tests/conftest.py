"""With MINI_VLLM_LABS_NO_SKIPS set, a run that skipped a test fails: .ci/run has installed all that the tests need.

pytest itself ends with exit status 0 if every test was skipped, so GPU tests on a machine without a GPU would look like a pass.
"""

from __future__ import annotations

import os

import pytest

NO_SKIPS = bool(os.environ.get("MINI_VLLM_LABS_NO_SKIPS"))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if NO_SKIPS and reporter and reporter.stats.get("skipped") and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if not (NO_SKIPS and skipped):
        return
    ran = sum(len(terminalreporter.stats.get(outcome, [])) for outcome in ("passed", "failed"))
    terminalreporter.write_line(f"NOT A PASS: {len(skipped)} of {len(skipped) + ran} tests were not run:", yellow=True)
    for reason in sorted({str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped}):
        terminalreporter.write_line(f"  {reason}")

"""Fixtures and options of the labs. LAB_IMPL selects the file under test: ``solution`` (the default), ``starter`` or a path."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from labkit.system.errors import UserError
from labkit.system.labs import Lab, chosen_implementation, load_implementation


def graded_file(folder: object) -> str:
    """The graded file, as the report header prints it."""
    return (
        f"{folder}/{chosen_implementation()}.py"
        if chosen_implementation() in ("solution", "starter")
        else chosen_implementation()
    )


def pytest_configure(config: pytest.Config) -> None:
    choice = chosen_implementation()
    if choice not in ("solution", "starter"):
        try:
            Lab.read(next(config.rootpath.glob("labs/*/lab.toml")).parent).implementation(choice)
        except UserError as error:
            raise pytest.UsageError(str(error)) from error


def pytest_report_header() -> list[str]:
    against = (
        "the real vLLM, live" if importlib.util.find_spec("vllm") else "traces recorded earlier (vLLM is not installed here)"
    )
    return [f"grading: {graded_file('labs/*')}  (LAB_IMPL={chosen_implementation()})", f"lab 02 is compared with: {against}"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = (report for found in terminalreporter.stats.values() for report in found)
    held = {value for report in reports for key, value in getattr(report, "user_properties", []) if key == "against"}
    for value in sorted(held):
        terminalreporter.write_line(f"lab 02 was compared with {value}")


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> ModuleType:
    """The implementation under test, as a module."""
    try:
        return load_implementation(Lab.read(request.path.parent).implementation(chosen_implementation()))
    except UserError as error:
        pytest.fail(str(error), pytrace=False)

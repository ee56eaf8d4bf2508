"""Every solution passes, every starter fails for the right reason, and no bad file gets a verdict that it has not earned."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.check.check import check
from labkit.check.report import Report, read_report
from labkit.check.reporter import clean_message
from labkit.check.results import Results
from labkit.system.errors import UserError
from labkit.system.labs import ROOT, Lab, all_labs, find_lab

LABS = all_labs()
SOLUTION = find_lab("01").folder / "solution.py"


def graded(tmp_path: Path, name: str, old: str, new: str) -> Report:
    """Lab 01's solution with one change."""
    text = SOLUTION.read_text(encoding="utf-8")
    assert old in text
    file = tmp_path / name
    file.write_text(text.replace(old, new), encoding="utf-8")
    return check(find_lab("01"), str(file))


def test_the_course_goes_01_03_02_04() -> None:
    assert [lab.number for lab in LABS] == ["01", "03", "02", "04"]


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.number)
def test_each_test_belongs_to_one_task_and_each_task_has_three_hints(lab: Lab) -> None:
    tree = ast.parse(lab.tests.read_text(encoding="utf-8"))
    written = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    claimed = [name for task in lab.tasks for name in task.tests]
    assert sorted(claimed) == sorted(written)
    assert [len(task.hints) for task in lab.tasks] == [3] * len(lab.tasks)
    assert lab.points == 100


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.number)
def test_every_solution_passes(lab: Lab) -> None:
    report = check(lab, "solution")
    assert report.passed, [test for result in report.tasks for test in result.tests if test.status == "failed"]
    assert report.points == lab.points
    assert "raise NotImplementedError" in lab.pristine.read_text(encoding="utf-8"), "the starter has something left to write"


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.number)
def test_every_starter_fails_every_task_with_not_implemented_error(lab: Lab, tmp_path: Path) -> None:
    begun = tmp_path / "begun.py"
    begun.write_bytes(lab.pristine.read_bytes())
    report = check(lab, str(begun))
    assert report.points == 0
    assert not report.passed
    for result in report.tasks:
        for test in result.tests:
            assert test.status == "skipped" or test.message.startswith("NotImplementedError"), test
        assert result.status == "failed", result


def test_a_syntax_error_is_said_once_with_its_line(tmp_path: Path) -> None:
    report = graded(tmp_path, "mine.py", "return self.table[tokens]", "return self.table[tokens")
    assert not report.passed
    assert re.match(r"mine\.py line \d+ is not Python yet: '\[' was never closed", report.broken)


@pytest.mark.parametrize("how", ["import os; os._exit(0)", "import ctypes; ctypes.string_at(0)"])
def test_a_file_that_ends_the_process_gets_no_verdict(tmp_path: Path, how: str) -> None:
    report = graded(tmp_path, "mine.py", "return self.table[tokens]", how)
    assert not report.passed
    assert report.points == 0
    assert "ended the whole Python process" in report.broken


def test_an_endless_loop_is_ended_and_its_line_named(tmp_path: Path) -> None:
    report = graded(tmp_path, "mine.py", "return self.table[tokens]", "while True: pass")
    first = report.tasks[0].tests[0]
    assert (report.points, first.status, report.passed) == (0, "failed", False)
    assert f"did not end within {find_lab('01').time_limit} seconds" in first.message
    assert first.line == SOLUTION.read_text(encoding="utf-8").splitlines().index("        return self.table[tokens]") + 1


@pytest.mark.parametrize(("choice", "sentence"), [("solutoin", "give 'solution'"), ("no/such.py", "there is no file")])
def test_an_implementation_that_is_none(choice: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check(find_lab("1"), choice)
    with pytest.raises(UserError, match="there is no lab '9'; the labs are 01, 03, 02, 04"):
        find_lab("9")


def test_a_case_of_hypothesis_that_was_late_once_is_late() -> None:
    message = "_WrappedBaseException() [single exception in FlakyFailure]"
    cleaned = clean_message(message, "  | Failed: Timeout (>40.0s) from pytest-timeout.\n")
    assert cleaned == "did not end within 40 seconds; look for a loop that never ends"


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.number)
def test_an_unchanged_starter_is_not_started_and_is_not_run(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.check.check.run_tests", None)
    report = check(lab, "starter")
    assert (report.points, report.passed, report.broken) == (0, False, "")
    assert {result.status for result in report.tasks} == {"not started"}
    data = read_report(json.dumps(report.to_json()).encode())
    assert {(test["status"], test["message"]) for task in data["tasks"] for test in task["tests"]} == {("error", "not started")}


def lab_check(*arguments: str, implementation: str = "") -> tuple[int, str]:
    """The exit status and the output of ./lab check."""
    environment = {name: value for name, value in os.environ.items() if name != "LAB_IMPL"}
    environment |= {"LAB_IMPL": implementation} if implementation else {}
    command = [sys.executable, "-P", "-m", "labkit", "check", *arguments]
    ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout


def test_the_command_grades_the_starter_unless_another_file_is_named(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.{name}" for name in ("json", "junit", "gradescope", "classroom")}
    files["junit"] = files["junit"].with_suffix(".xml")
    files |= {name: files[name].with_suffix(".json") for name in ("json", "gradescope", "classroom")}
    status, output = lab_check("03", *(f"--{name}={file}" for name, file in files.items()))
    assert (status, "starter.py is unchanged. Next: ./lab start 03" in output) == (1, True)
    assert "failed" not in output
    assert all(file.is_file() for file in files.values())
    assert lab_check("03", "--impl", "starter", implementation="solution") == (status, output.partition("written")[0])
    for arguments, implementation in ((["--solution"], "starter"), (["--impl", "solution"], ""), ([], "solution")):
        status, output = lab_check("03", *arguments, implementation=implementation)
        assert (status, "100 of 100 points" in output) == (0, True), (arguments, implementation)
    assert lab_check("03", "--solution", "--impl", "starter")[0] == 1
    assert "name two files" in lab_check("03", "--solution", "--impl", "starter")[1]


def test_a_line_that_the_reporter_did_not_write_changes_no_result() -> None:
    results = Results(find_lab("01"), SOLUTION)
    results.feed(b'{"running": "test_a"}\n5\n{"other": 1}\n["running"]\nnot JSON\n{"finished": true}\n')
    assert (results.tests, results.finished) == ({}, True)

"""Reports against their schemas, archives that are refused, and a class that is graded once and goes on where it ended."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from rich.console import Console

from labkit.check.report import MAX_BYTES, Report, ReportError, TaskResult, read_report, validator
from labkit.check.report import TestResult as Result
from labkit.grading import submissions as handed_in
from labkit.grading.classroom import Classroom, Graded, show
from labkit.grading.exporters import classroom, gradescope, junit
from labkit.grading.similarity import write_for_jplag
from labkit.grading.submissions import Submission, read_submissions
from labkit.system.errors import UserError
from labkit.system.labs import Lab, Task, find_lab

LAB = find_lab("03")
SOLUTION = (LAB.folder / "solution.py").read_bytes()


def report() -> Report:
    """Of each status one, and a message that XML could not hold."""
    tests = {
        "one": Result("test_one", "passed", seconds=0.5, against="the real vLLM 0.32.0, live"),
        "two": Result("test_two", "failed", "assert \x00 < 2 & 'é'", 7, seconds=0.25, fault="failure"),
        "three": Result("test_three", "failed", "did not end within 10 seconds", fault="timeout"),
        "four": Result("test_four", "failed", "no such fixture", fault="error"),
        "five": Result("test_five", "skipped", "needs a CUDA device"),
        "six": Result("test_six", "not run"),
    }
    tasks = [TaskResult(Task(name, f"Do {name}", 10, (test.name,), ("", "", "")), (test,)) for name, test in tests.items()]
    lab = replace(LAB, tasks=tuple(result.task for result in tasks))
    return Report(lab, Path("starter.py"), tuple(tasks), sha256="0" * 64, seconds=1.5)


def test_each_status_has_its_word_and_the_report_fits_its_schema() -> None:
    data = report().to_json()
    assert read_report(json.dumps(data).encode()) == data
    assert [task["status"] for task in data["tasks"]] == ["pass", "fail", "timeout", "error", "skipped", "error"]
    assert (data["points"], data["max_points"], data["held_against"]) == (10, 60, "live")
    Draft202012Validator.check_schema(validator().schema)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data | {"points": "100"}, r"\$\.points"),
        (lambda data: data | {"__reduce__": "x"}, "unexpected"),
        (lambda data: data | {"version": 2}, r"\$\.version"),
        (lambda data: [data], "does not fit"),
        (lambda data: {key: value for key, value in data.items() if key != "tasks"}, "'tasks' is a required"),
    ],
)
def test_what_is_no_report_is_refused(change: Any, said: str) -> None:
    with pytest.raises(ReportError, match=said):
        read_report(json.dumps(change(report().to_json())).encode())


@pytest.mark.parametrize("text", [b"", b"\x80\x04K\x01.", b"[" * 200_000, b"9" * (MAX_BYTES + 1)])
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(ReportError):
        read_report(text)


# --- the formats of others ----------------------------------------------------------------------------------------------

JUNIT_10: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "errors"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors"},
        {"group", "time", "skipped", "timestamp", "hostname", "id", "package", "file", "log", "url"},
        {"testsuite", "properties", "testcase", "system-out", "system-err"},
    ),
    "testcase": ({"name"}, {"time", "classname", "group"}, {"skipped", "error", "failure", "system-out", "system-err"}),
    "failure": (set(), {"type", "message"}, set()),
    "error": (set(), {"type", "message"}, set()),
    "skipped": (set(), {"type", "message"}, set()),
}
"""Element -> its required attributes, its optional ones, its children: junit-10.xsd of Jenkins's xunit plugin
(github.com/jenkinsci/xunit-plugin, src/main/resources/org/jenkinsci/plugins/xunit/types/model/xsd)."""


def test_junit_is_what_its_schema_says() -> None:
    root = ET.fromstring(junit(report().to_json()))
    assert root.tag == "testsuites"
    for element in root.iter():
        required, optional, children = JUNIT_10[element.tag]
        assert required <= set(element.attrib) <= required | optional
        assert {child.tag for child in element} <= children
    (suite,) = root
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "6",
        "failures": "1",
        "errors": "3",
        "skipped": "1",
    }


GRADESCOPE = {
    "type": "object",
    "required": ["tests"],
    "additionalProperties": False,
    "properties": {
        "score": {"type": "number"},
        "execution_time": {"type": "integer"},
        "output": {"type": "string"},
        "output_format": {"enum": ["text", "html", "simple_format", "md", "ansi"]},
        "visibility": {"enum": ["hidden", "after_due_date", "after_published", "visible"]},
        "stdout_visibility": {"enum": ["hidden", "after_due_date", "after_published", "visible"]},
        "extra_data": {"type": "object"},
        "tests": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "score": {"type": "number"},
                    "max_score": {"type": "number"},
                    "status": {"enum": ["passed", "failed"]},
                    "name": {"type": "string"},
                    "name_format": {"type": "string"},
                    "number": {"type": "string"},
                    "output": {"type": "string"},
                    "output_format": {"type": "string"},
                    "tags": {"type": "array", "items": {"type": "string"}},
                    "visibility": {"type": "string"},
                    "extra_data": {"type": "object"},
                },
            },
        },
    },
}
"""gradescope-autograders.readthedocs.io/en/latest/specs, "Output format"; a score of its own or one in each test."""


def test_gradescope_is_what_its_page_says() -> None:
    data = json.loads(gradescope(report().to_json()))
    Draft202012Validator(GRADESCOPE).validate(data)
    assert data["score"] == sum(test["score"] for test in data["tests"]) == 10
    assert [test["status"] for test in data["tests"]] == ["passed", *["failed"] * 5], "a skip is no pass"
    assert sum(test["max_score"] for test in data["tests"]) == 60


CLASSROOM = {
    "type": "object",
    "required": ["version", "status", "tests"],
    "properties": {
        "version": {"const": 1},
        "status": {"enum": ["pass", "fail", "error"]},
        "max_score": {"type": "number"},
        "tests": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "status"],
                "properties": {
                    "name": {"type": "string"},
                    "status": {"enum": ["pass", "fail", "error"]},
                    "score": {"type": "number"},
                    "message": {"type": ["string", "null"]},
                    "test_code": {"type": "string"},
                    "filename": {"type": "string"},
                    "line_no": {"type": "integer"},
                    "execution_time": {"type": ["string", "number"]},
                },
            },
        },
    },
}
"""What classroom-resources/autograding-grading-reporter reads of a runner's result (its README.md and src/)."""


def test_classroom_is_what_its_reporter_reads() -> None:
    data = json.loads(classroom(report().to_json()))
    Draft202012Validator(CLASSROOM).validate(data)
    assert (data["status"], data["max_score"]) == ("fail", 60)


# --- what is handed in --------------------------------------------------------------------------------------------------


def archive(path: Path, members: dict[str, bytes], kind: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = kind << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            made.writestr(info, data)
    return path


def read_one(folder: Path) -> Submission:
    (submission,) = read_submissions(folder, LAB)
    return submission


@pytest.mark.parametrize(
    ("members", "kind", "said"),
    [
        ({"../starter.py": b"x"}, 0, "leads out of its folder"),
        ({"a/../../starter.py": b"x"}, 0, "leads out of its folder"),
        ({"a\\..\\..\\starter.py": b"x"}, 0, "leads out of its folder"),
        ({"/etc/starter.py": b"x"}, 0, "leads out of its folder"),
        ({"C:/starter.py": b"x"}, 0, "leads out of its folder"),
        ({"starter.py": b"/etc/passwd"}, stat.S_IFLNK | 0o777, "is a link"),
        ({"starter.py": b"\0" * (64 << 20)}, 0, "more than 1048576 bytes"),
        ({f"{number}.txt": b"x" for number in range(handed_in.MAX_MEMBERS + 1)}, 0, "5001 members"),
        ({"a.txt": b"\0" * (128 << 20), "b.txt": b"\0" * (128 << 20)}, 0, "268435456 bytes"),
        ({"readme.txt": b"x"}, 0, "no .py file"),
        ({"a/one.py": b"x", "b/two.py": b"x"}, 0, "2 files that may be meant"),
        ({"starter.py": b" \n"}, 0, "is empty"),
    ],
)
def test_an_archive_that_cannot_be_meant_is_refused(members: dict[str, bytes], kind: int, said: str, tmp_path: Path) -> None:
    archive(tmp_path / "eve.zip", members, kind)
    submission = read_one(tmp_path)
    assert said in submission.fault
    assert submission.source == b""
    assert [path.name for path in tmp_path.rglob("*")] == ["eve.zip"]


@pytest.mark.parametrize("cut", [0, 40])
def test_a_damaged_archive_is_refused(cut: int, tmp_path: Path) -> None:
    whole = archive(tmp_path / "eve.zip", {"starter.py": SOLUTION}).read_bytes()
    (tmp_path / "eve.zip").write_bytes(whole[:cut])
    assert "is not a readable zip archive" in read_one(tmp_path).fault


def test_whichever_byte_of_an_archive_is_damaged_the_class_goes_on(tmp_path: Path) -> None:
    """zipfile lets through what zlib raises, among others; one learner's archive must not end the run of all."""
    whole = archive(tmp_path / "eve.zip", {"starter.py": b"import torch\n" * 20}).read_bytes()
    said = set()
    for place, byte in enumerate(whole):
        (tmp_path / "eve.zip").write_bytes(whole[:place] + bytes([byte ^ 0xFF]) + whole[place + 1 :])
        said.add(read_one(tmp_path).fault)
    assert any("invalid" in fault and "is not a readable zip archive" in fault for fault in said)


def test_an_archive_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "eve.zip", {"starter.py": b"#" * (8 << 20)})
    real, false = (8 << 20).to_bytes(4, "little"), (100).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(real, false))
    assert read_one(tmp_path).fault


def test_links_in_a_folder_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside.py"
    outside.write_text("x = 1")
    (tmp_path / "class" / "eve").mkdir(parents=True)
    (tmp_path / "class" / "eve" / "starter.py").symlink_to(outside)
    assert "no .py file" in read_one(tmp_path / "class").fault


def test_of_a_whole_work_tree_the_lab_s_own_file_is_taken(tmp_path: Path) -> None:
    for lab in ("lab-01-add-a-toy-architecture", "lab-03-weight-mapping"):
        (tmp_path / "ada" / "labs" / lab).mkdir(parents=True)
        (tmp_path / "ada" / "labs" / lab / "starter.py").write_text(lab)
        (tmp_path / "ada" / "labs" / lab / "conftest.py").write_text("not this")
    assert read_one(tmp_path).source == b"lab-03-weight-mapping"


# --- a class ------------------------------------------------------------------------------------------------------------


def test_a_class_goes_on_where_it_ended(tmp_path: Path) -> None:
    """Three are graded; the run breaks after the second; the next grades what is left, and after a change what changed."""
    begun: list[str] = []

    def grader(lab: Lab, submissions: list[Submission]) -> Iterator[Graded]:
        for number, submission in enumerate(submissions):
            if number == limit:
                raise KeyboardInterrupt
            begun.append(submission.name)
            yield submission, {"report": report().to_json()}

    class_of = [Submission("ada", b"1"), Submission("bob", b"2"), Submission("cy", b"3"), Submission("dee", fault="empty")]
    room, limit = Classroom.make(LAB, tmp_path, "no sandbox"), 2
    with pytest.raises(KeyboardInterrupt):
        room.grade(class_of, grader, lambda note: None)
    (tmp_path / "results" / "bob.json").write_text((tmp_path / "results" / "bob.json").read_text()[:-200])
    limit = 9
    results = room.grade(class_of, grader, lambda note: None)
    assert begun == ["ada", "bob", "bob", "cy"], "bob's result was cut off, so it is reached again"
    assert [result["name"] for result in results] == ["ada", "bob", "cy", "dee"]
    begun.clear()
    room.grade([replace(class_of[0], source=b"new"), *class_of[1:]], grader, lambda note: None)
    assert begun == ["ada"]
    begun.clear()
    replace(room, version="other tests").grade(class_of, grader, lambda note: None)
    assert begun == ["ada", "bob", "cy"]


def test_two_files_from_the_command_line(tmp_path: Path) -> None:
    handed_in, out = tmp_path / "class", tmp_path / "grades"
    handed_in.mkdir()
    (handed_in / "ada.py").write_bytes(SOLUTION)
    (handed_in / "bob.py").write_text("def translate(name)")
    command = [sys.executable, "-P", "-m", "labkit", "grade", str(handed_in), "--lab", "03", "--no-sandbox", "-o", str(out)]
    done = subprocess.run([*command, "--format", "junit"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "can read what you can read" in done.stdout
    assert "bob: starter.py line 1 is not Python yet" in done.stdout
    reports = {each["name"]: each["report"] for each in json.loads((out / "grades.json").read_text())}
    assert {name: report["points"] for name, report in reports.items()} == {"ada": 100, "bob": 0}
    assert {test["status"] for task in reports["ada"]["tasks"] for test in task["tests"]} == {"pass"}
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*")) == sorted(
        ["grades.csv", "grades.json", "junit/ada.xml", "junit/bob.xml", "results/ada.json", "results/bob.json"]
    )


def test_a_spreadsheet_takes_no_name_for_a_formula(tmp_path: Path) -> None:
    room = Classroom.make(LAB, tmp_path, "no sandbox")
    results = room.grade([Submission("=1+1", fault="-2")], lambda lab, left: iter(()), lambda note: None)
    room.write(results, [])
    assert "'=1+1,03,0,100,False" in (tmp_path / "grades.csv").read_text()
    assert (tmp_path / "grades.csv").read_text().rstrip().endswith(",'-2")


def test_jplag_gets_a_folder_for_each_and_the_starter_as_base(tmp_path: Path) -> None:
    (tmp_path / "jplag").mkdir()
    (tmp_path / "jplag" / "mine.py").write_text("x")
    for name in ("gone by now", "ada"):
        write_for_jplag([Submission(name, SOLUTION), Submission("bob", fault="empty")], LAB, tmp_path / "jplag")
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.py")}
    assert files == {"jplag/mine.py", "jplag/base/starter.py", "jplag/submissions/ada/starter.py"}


def test_a_name_in_brackets_is_shown_as_it_is() -> None:
    console = Console(file=StringIO(), width=80)
    show([{"name": "ada [late]", "fault": "empty", "report": None}], LAB, console)
    assert console.file.getvalue().count("ada [late]") == 2  # type: ignore[attr-defined]


def test_names_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada.py").write_text("x")
    with pytest.raises(UserError, match="ada twice"):
        read_submissions(tmp_path, LAB)

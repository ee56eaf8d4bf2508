"""Grades each submission of a class once: each result is a file, and a second run grades only submissions without a result."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from labkit.check.check import Start, start_pytest
from labkit.check.report import ReportError, validator
from labkit.grading.container import Container
from labkit.grading.exporters import FORMATS
from labkit.grading.judge_server import judge_servers
from labkit.grading.submissions import Submission
from labkit.grading.verdict import grade_source, sha256_of, trusted_files
from labkit.system.atomic_write import atomic_write
from labkit.system.errors import UserError
from labkit.system.labs import Lab

Graded = tuple[Submission, dict[str, Any]]
Grader = Callable[[Lab, list[Submission]], Iterator[Graded]]


@dataclass(frozen=True)
class Classroom:
    """The results of a class on disk.

    Attributes:
        output: the folder: results/NAME.json, grades.csv, grades.json, and a folder for each format.
        version: a text that changes with everything else that a result depends on: the tests, the engine, labkit and the image.
    """

    lab: Lab
    output: Path
    version: str

    @classmethod
    def make(cls, lab: Lab, output: Path, image: str | None) -> Classroom:
        """Creates the folder for results; returns the Classroom. UserError: the folder cannot be created."""
        try:
            (output / "results").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot create the folder {output}/results: {error.strerror}; give another --output") from error
        return cls(lab, output, version_of(lab, image))

    def grade(self, submissions: list[Submission], grader: Grader, note: Callable[[str], None]) -> list[dict[str, Any]]:
        """Grades the submissions that have no result yet; returns every submission's result, in the order of ``submissions``."""
        results = {each.name: found for each in submissions if (found := self._read(each))}
        left = [each for each in submissions if each.name not in results]
        gradable = [each for each in left if not each.fault]
        results |= {each.name: self._write(each, None, each.fault) for each in left if each.fault}
        for done, (submission, answer) in enumerate(grader(self.lab, gradable), 1):
            results[submission.name] = self._write(submission, answer.get("report"), answer.get("fault", ""))
            note(f"{done} of {len(gradable)}, {len(submissions) - len(left)} done before")
        return [results[each.name] for each in submissions]

    def write(self, results: list[dict[str, Any]], formats: list[str]) -> list[Path]:
        """Writes grades.csv, grades.json and a folder of reports for each format; returns their paths, in this order."""
        table = io.StringIO()
        tasks = [task.name for task in self.lab.tasks]
        rows = csv.writer(table)
        rows.writerow(["name", "lab", "points", "max_points", "passed", *tasks, "seconds", "sha256", "fault"])
        for result in results:
            report = result["report"] or {}
            points = {task["name"]: task["points"] for task in report.get("tasks", ())}
            own = [_cell(result["name"]), self.lab.number, report.get("points", 0), self.lab.points, report.get("passed", False)]
            rows.writerow(
                [
                    *own,
                    *(points.get(name, 0) for name in tasks),
                    report.get("seconds", ""),
                    result["sha256"],
                    _cell(result["fault"] or report.get("broken", "")),
                ]
            )
        atomic_write(self.output / "grades.csv", table.getvalue())
        atomic_write(self.output / "grades.json", json.dumps(results, indent=1) + "\n")
        for name in formats:
            (self.output / name).mkdir(exist_ok=True)
            suffix = "xml" if name == "junit" else "json"
            for result in results:
                if result["report"]:
                    atomic_write(self.output / name / f"{result['name']}.{suffix}", FORMATS[name](result["report"]))
        return [self.output / each for each in ("grades.csv", "grades.json", *formats)]

    def _read(self, submission: Submission) -> dict[str, Any] | None:
        """The result of an earlier run, or None if there is no valid one for the same bytes and version."""
        try:
            result = json.loads(Path(self.output, "results", f"{submission.name}.json").read_text(encoding="utf-8"))
            same = (result["sha256"], result["version"]) == (submission.sha256, self.version)
            whole = same and (result["report"] is None or validator().is_valid(result["report"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return result if whole and (result["report"] or submission.fault) else None

    def _write(self, submission: Submission, report: dict[str, Any] | None, fault: str) -> dict[str, Any]:
        own = {"name": submission.name, "sha256": submission.sha256, "version": self.version}
        result = own | {"fault": fault, "report": report}
        atomic_write(Path(self.output, "results", f"{submission.name}.json"), json.dumps(result, indent=1) + "\n")
        return result


def version_of(lab: Lab, image: str | None) -> str:
    """Returns a text that identifies what a result depends on besides the submission: a digest of files here, and the image."""
    return f"{sha256_of([*trusted_files(), lab.folder / 'lab.toml'])} {image or 'no sandbox'}"


def in_threads(image: str | None, jobs: int) -> Grader:
    """Returns a grader with ``jobs`` threads on this machine; they grade in containers or, without ``image``, child processes."""

    def grade(lab: Lab, submissions: list[Submission]) -> Iterator[Graded]:
        with ExitStack() as stack:
            # With a thread per processor in every child process, they would wait for each other.
            threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
            stack.enter_context(patch.dict(os.environ, threads | dict(os.environ)))
            forks = image is None and len(submissions) > jobs
            start = stack.enter_context(judge_servers()) if forks else start_pytest
            pool = stack.enter_context(ThreadPoolExecutor(jobs))
            futures = {pool.submit(answer, image, lab.number, each.source, start): each for each in submissions}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    return grade


def answer(image: str | None, lab_number: str, source: bytes, start: Start = start_pytest) -> dict[str, Any]:
    """Grades one submission; returns {"report": dict} or {"fault": why}. An exception would end the whole class."""
    try:
        return {"report": Container(image).grade(lab_number, source) if image else grade_source(lab_number, source, start)}
    except (ReportError, OSError) as error:
        return {"fault": str(error)}


def show(results: list[dict[str, Any]], lab: Lab, console: Console) -> None:
    """Prints a table with a row for each submission and a column for each task."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("name", overflow="fold")
    table.add_column("points", justify="right")
    for task in lab.tasks:
        table.add_column(task.name, justify="right")
    for result in results:
        report = result["report"] or {}
        points = {task["name"]: str(task["points"]) for task in report.get("tasks", ())}
        total = str(report["points"]) if report else "none"
        table.add_row(escape(result["name"]), total, *(points.get(task.name, "") for task in lab.tasks))
    console.print(table)
    for result in results:
        if why := result["fault"] or result["report"]["broken"]:
            console.print(f"{result['name']}: {why}", markup=False, soft_wrap=True)


def _cell(text: str) -> str:
    """The text, quoted where a spreadsheet would read it as a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text

"""A whole class: every submission is graded once, each result is a file written whole, and a rerun goes on from there."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from labkit.check.report import ReportError, validator
from labkit.grading.container import Sandbox
from labkit.grading.exporters import FORMATS
from labkit.grading.judge_server import judge_servers
from labkit.grading.submissions import Submission
from labkit.grading.verdict import sha256_of, trusted_files
from labkit.system.atomic_write import atomic_write
from labkit.system.errors import UserError
from labkit.system.labs import Lab

Graded = tuple[Submission, dict[str, Any]]
Grader = Callable[[Lab, list[Submission]], Iterator[Graded]]


@dataclass(frozen=True)
class Classroom:
    """Where results go, and what they were reached with.

    Attributes:
        lab: which lab.
        output: the folder: results/NAME.json, grades.csv, grades.json, and a folder for each format.
        version: what a result depends on besides the submission: the tests, the engine, labkit and the sandbox.
    """

    lab: Lab
    output: Path
    version: str

    @classmethod
    def make(cls, lab: Lab, output: Path, image: str | None) -> Classroom:
        """With the folder for results made.

        Raises:
            UserError: it cannot be.
        """
        try:
            (output / "results").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {output}: {error.strerror}; name another with --output") from error
        return cls(lab, output, version_of(lab, image))

    def grade(self, submissions: list[Submission], grader: Grader, note: Callable[[str], None]) -> list[dict[str, Any]]:
        """Every submission's result, those of an earlier run taken as they are; in the order of ``submissions``."""
        results = {each.name: found for each in submissions if (found := self._earlier(each))}
        left = [each for each in submissions if each.name not in results]
        gradable = [each for each in left if not each.fault]
        for each in left:
            if each.fault:
                results[each.name] = self._keep(each, None, each.fault)
        for done, (submission, answer) in enumerate(grader(self.lab, gradable), 1):
            results[submission.name] = self._keep(submission, answer.get("report"), answer.get("fault", ""))
            note(f"{done} of {len(gradable)}, {len(submissions) - len(left)} done before")
        return [results[each.name] for each in submissions]

    def write(self, results: list[dict[str, Any]], formats: list[str]) -> list[Path]:
        """grades.csv, grades.json and each result in the formats asked for."""
        table = io.StringIO()
        tasks = [task.name for task in self.lab.tasks]
        rows = csv.writer(table)
        rows.writerow(["name", "lab", "points", "max_points", "passed", *tasks, "seconds", "sha256", "fault"])
        for result in results:
            report = result["report"] or {}
            points = {task["name"]: task["points"] for task in report.get("tasks", ())}
            own = [_cell(result["name"]), self.lab.number, report.get("points", 0), self.lab.points, report.get("passed", False)]
            own += [points.get(name, 0) for name in tasks]
            rows.writerow([*own, report.get("seconds", ""), result["sha256"], _cell(result["fault"] or report.get("broken", ""))])
        atomic_write(self.output / "grades.csv", table.getvalue())
        atomic_write(self.output / "grades.json", json.dumps(results, indent=1) + "\n")
        for name in formats:
            (self.output / name).mkdir(exist_ok=True)
            suffix = "xml" if name == "junit" else "json"
            for result in results:
                if result["report"]:
                    atomic_write(self.output / name / f"{result['name']}.{suffix}", FORMATS[name](result["report"]))
        return [self.output / each for each in ("grades.csv", "grades.json", *formats)]

    def _place(self, submission: Submission) -> Path:
        return self.output / "results" / f"{submission.name}.json"

    def _earlier(self, submission: Submission) -> dict[str, Any] | None:
        """The result of an earlier run, if it is of these bytes, reached with what would be used now."""
        try:
            result = json.loads(self._place(submission).read_text(encoding="utf-8"))
            same = (result["sha256"], result["version"]) == (submission.sha256, self.version)
            whole = same and (result["report"] is None or validator().is_valid(result["report"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return result if whole and (result["report"] or submission.fault) else None

    def _keep(self, submission: Submission, report: dict[str, Any] | None, fault: str) -> dict[str, Any]:
        own = {"name": submission.name, "sha256": submission.sha256, "version": self.version}
        result = own | {"fault": fault, "report": report}
        atomic_write(self._place(submission), json.dumps(result, indent=1) + "\n")
        return result


def version_of(lab: Lab, image: str | None) -> str:
    """What a result depends on besides the submission, on the machine that this runs on."""
    return f"{sha256_of([*trusted_files(), lab.folder / 'lab.toml'])} {image or 'no sandbox'}"


def in_threads(sandbox: Sandbox, jobs: int) -> Grader:
    """Grades on this machine, so many at a time; a thread waits for each, the work is done in other processes."""

    def grade(lab: Lab, submissions: list[Submission]) -> Iterator[Graded]:
        with ExitStack() as stack:
            stack.enter_context(_shared_processors(jobs))
            own = sandbox
            if own.image is None and len(submissions) > jobs:
                own = replace(own, start=stack.enter_context(judge_servers(jobs)))
            pool = stack.enter_context(ThreadPoolExecutor(jobs))
            futures = {pool.submit(answer, own, lab.number, each.name, each.source): each for each in submissions}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    return grade


@contextmanager
def _shared_processors(jobs: int) -> Iterator[None]:
    """Each of the processes that are started meanwhile uses its share of the processors, unless OMP_NUM_THREADS says otherwise:
    with a thread for each processor in every one of them, they wait for each other."""
    name = "OMP_NUM_THREADS"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(max(1, (os.cpu_count() or 1) // jobs))
    try:
        yield
    finally:
        del os.environ[name]


def answer(sandbox: Sandbox, lab_number: str, name: str, source: bytes) -> dict[str, Any]:
    """A report, or the sentence that says why there is none; never an exception, so that one does not end them all."""
    try:
        return {"report": sandbox.grade(lab_number, name, source)}
    except (ReportError, OSError) as error:
        return {"fault": str(error)}


def show(results: list[dict[str, Any]], lab: Lab, console: Console) -> None:
    """The class as a table: a row each, a column for each task."""
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
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text

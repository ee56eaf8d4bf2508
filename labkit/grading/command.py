"""What ``./lab grade`` does."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from labkit.grading.classroom import Classroom, Grader, in_threads, show
from labkit.grading.container import Sandbox, see_to_image
from labkit.grading.exporters import FORMATS
from labkit.grading.similarity import write_for_jplag
from labkit.grading.submissions import read_submissions
from labkit.system.console import console, working
from labkit.system.errors import UserError
from labkit.system.labs import Lab

HERE = (
    "--no-sandbox: each file runs in a child process of yours, which can read what you can read; "
    "for your own code only (labkit/grading/README.md says what it withstands)"
)


def grade_class(
    folder: Path,
    lab: Lab,
    output: Path,
    jobs: int | None,
    image: str | None,
    ray: str | None,
    formats: list[str],
    similarity: bool,
) -> int:
    """Grades every submission in ``folder`` and writes what came of it; returns how many have no report.

    Raises:
        UserError: nothing can be graded, or nothing written; says why.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise UserError(f"there is no format {unknown[0]!r}; the formats are {', '.join(FORMATS)}")
    submissions = read_submissions(folder, lab)
    if image is None:
        console.print(HERE, soft_wrap=True)
    else:
        image = see_to_image(image)
    classroom = Classroom.make(lab, output, image)
    grader = _grader(ray, image, classroom.version, jobs)
    with working(f"Grading {len(submissions)} submissions of lab {lab.number}") as note:
        results: list[dict[str, Any]] = classroom.grade(submissions, grader, note)
    show(results, lab, console)
    written = classroom.write(results, formats)
    if similarity:
        written.append(write_for_jplag(submissions, lab, output / "jplag"))
    for path in written:
        console.print(f"written: {path}", markup=False, soft_wrap=True)
    return sum(result["report"] is None for result in results)


def _grader(ray: str | None, image: str | None, version: str, jobs: int | None) -> Grader:
    if ray is None:
        return in_threads(Sandbox(image), jobs or os.cpu_count() or 1)
    if find_spec("ray") is None:
        raise UserError("--ray needs Ray, which is missing; `.venv/bin/python -m labkit.system.environment ray` installs it")
    from labkit.grading.cluster import on_ray

    return on_ray(ray, image, version, jobs)

"""The command that grades a class."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.arguments import TEACH, lab_numbers
from labkit.system.console import console, print_lines, working
from labkit.system.errors import UserError
from labkit.system.labs import find_lab

NO_CONTAINER = (
    "--no-sandbox: each file runs in a child process of yours, which can read what you can read; "
    "for your own code only (labkit/grading/README.md says what it withstands)"
)

app = typer.Typer()


@app.command(rich_help_panel=TEACH)
def grade(
    submissions: Annotated[
        Path, typer.Argument(metavar="SUBMISSIONS_DIR", help="a directory with a folder, .zip or .py file for each learner")
    ],
    number: Annotated[
        str, typer.Option("--lab", metavar="01|02|03|04", help="number of the lab they submit", autocompletion=lab_numbers)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="the directory for the results")] = Path("grades"),
    jobs: Annotated[int | None, typer.Option(min=1, help="submissions graded at a time; default: one for each CPU")] = None,
    no_sandbox: Annotated[bool, typer.Option("--no-sandbox", help="use child processes; only for code that you trust")] = False,
    image: Annotated[str, typer.Option(help="the container image, built from docker/Dockerfile")] = "mini-vllm-labs",
    ray: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="grade on this Ray cluster; this machine is a node of it")
    ] = None,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="also write junit, gradescope or classroom; may be repeated")
    ] = None,
    similarity: Annotated[bool, typer.Option("--similarity", help="also arrange the files for JPlag")] = False,
) -> None:
    """Grade a class; each submission runs in a new container.

    Run the command again to continue after an interruption.
    """
    from labkit.grading.classroom import Classroom, in_threads, show
    from labkit.grading.container import find_image
    from labkit.grading.exporters import FORMATS
    from labkit.grading.similarity import write_for_jplag
    from labkit.grading.submissions import read_submissions

    lab, formats = find_lab(number), formats or []
    if unknown := [name for name in formats if name not in FORMATS]:
        raise UserError(f"--format {unknown[0]!r} does not exist; give one of {', '.join(FORMATS)}; for several, repeat --format")
    received = read_submissions(submissions, lab)
    if no_sandbox:
        console.print(NO_CONTAINER, soft_wrap=True)
    image_id = None if no_sandbox else find_image(image)
    classroom = Classroom.make(lab, output, image_id)
    if ray is None:
        grader = in_threads(image_id, jobs or os.cpu_count() or 1)
    elif find_spec("ray"):
        from labkit.grading.cluster import on_ray

        grader = on_ray(ray, image_id, classroom.version, jobs)
    else:
        raise UserError("--ray needs Ray, which is not installed; run `.venv/bin/python -m labkit.system.environment ray` first")
    with working(f"Grading {len(received)} submissions of lab {lab.number}") as note:
        results = classroom.grade(received, grader, note)
    show(results, lab, console)
    written = classroom.write(results, formats)
    if similarity:
        written.append(write_for_jplag(received, lab, output / "jplag"))
    print_lines(*(f"written: {path}" for path in written))
    raise typer.Exit(1 if any(result["report"] is None for result in results) else 0)

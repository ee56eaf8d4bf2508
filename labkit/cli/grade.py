"""The command that grades a class."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.arguments import TEACH, lab_numbers
from labkit.system.labs import find_lab

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
    from labkit.grading.command import grade_class

    sandbox_image = None if no_sandbox else image
    failed = grade_class(submissions, find_lab(number), output, jobs, sandbox_image, ray, formats or [], similarity)
    raise typer.Exit(1 if failed else 0)

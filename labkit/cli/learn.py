"""Commands for working through the labs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.arguments import LEARN, LabNumber, lab_argument, task_names
from labkit.course import board
from labkit.course.new_model import Like, write_new_model
from labkit.system.console import console, print_lines, print_text, working
from labkit.system.errors import UserError
from labkit.system.labs import all_labs, find_lab

app = typer.Typer()


@app.command(rich_help_panel=LEARN)
def tour() -> None:
    """Run the whole course once: serve, load and trace real models."""
    from labkit.course.tour import run_tour

    raise typer.Exit(run_tour())


@app.command(rich_help_panel=LEARN)
def start(number: LabNumber) -> None:
    """Open a lab's README and starter.py in your editor."""
    from labkit.course.workspace import open_lab

    print_lines(*open_lab(find_lab(number)))


@app.command(rich_help_panel=LEARN)
def watch(
    number: Annotated[
        str | None, lab_argument(metavar="[01|02|03|04]", help="lab number; default: the first lab that is not done")
    ] = None,
    impl: Annotated[str, typer.Option(help="starter, solution or the path of a .py file")] = "starter",
) -> None:
    """Grade your starter.py every time you save it."""
    from labkit.course.progress import next_task
    from labkit.course.watch.session import Session

    labs = all_labs()
    lab = find_lab(number) if number else next((lab for lab in labs if next_task(lab)), labs[0])
    Session(lab, lab.implementation(impl)).watch()


@app.command(rich_help_panel=LEARN)
def hint(
    number: LabNumber,
    task: Annotated[
        str | None, typer.Argument(help="task name; default: the first task that is not done", autocompletion=task_names)
    ] = None,
) -> None:
    """Show the next hint for a task.

    Each task has three: a question, where to read, and the shape of the answer.
    """
    from labkit.course.workspace import next_hint, task_to_help

    lab = find_lab(number)
    print_text(next_hint(lab, task_to_help(lab, task)))


@app.command(rich_help_panel=LEARN)
def solution(
    number: LabNumber,
    give_up: Annotated[bool, typer.Option("--i-give-up", help="show the solution although the lab has not passed")] = False,
) -> None:
    """Show the diff from your starter.py to the solution.

    The lab must have passed, or give --i-give-up.
    """
    from labkit.course.workspace import solution as differences

    for line in differences(find_lab(number), give_up) or ["starter.py is identical to the solution"]:
        console.print(line, style={"+": "green", "-": "red", "@": "cyan"}.get(line[:1], ""), markup=False, soft_wrap=True)


@app.command(rich_help_panel=LEARN)
def reset(number: LabNumber) -> None:
    """Restore a lab's original starter.py; your version is kept."""
    from datetime import datetime

    from labkit.course.workspace import reset as restore

    lab = find_lab(number)
    kept = restore(lab, datetime.now())
    starter = board.shortest(lab.implementation("starter"))
    if kept:
        print_lines(
            f"your version was copied to {board.shortest(kept)}", f"to continue with it: cp {board.shortest(kept)} {starter}"
        )
    print_lines(f"{starter} is the original again. Next: ./lab start {number}")


@app.command(rich_help_panel=LEARN)
def check(
    number: Annotated[str, lab_argument(metavar="01|02|03|04|all", help="which lab")],
    impl: Annotated[str | None, typer.Option(help="starter, solution or a .py file; default: LAB_IMPL, else starter")] = None,
    solution: Annotated[bool, typer.Option("--solution", help="the same as --impl solution")] = False,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="write the report to this file as JSON")] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="write the report as JUnit XML")] = None,
    gradescope: Annotated[Path | None, typer.Option(metavar="FILE", help="write the report as Gradescope's results.json")] = None,
    classroom: Annotated[Path | None, typer.Option(metavar="FILE", help="write the report as a GitHub Classroom result")] = None,
) -> None:
    """Grade a lab once: your starter.py, the solution or any file."""
    from labkit.check.check import check as check_lab
    from labkit.course.progress import digest, record_report
    from labkit.system.atomic_write import check_output_path

    if solution and impl not in (None, "solution"):
        raise UserError(f"--solution and --impl {impl} name two files to grade; give one of the two")
    choice = "solution" if solution else impl or os.environ.get("LAB_IMPL") or "starter"
    files = {"json": json, "junit": junit, "gradescope": gradescope, "classroom": classroom}
    wanted = {name: path for name, path in files.items() if path}
    labs = all_labs() if number == "all" else [find_lab(number)]
    if wanted and len(labs) > 1:
        raise UserError(f"--{next(iter(wanted))} writes the report of one lab; name the lab: 01, 02, 03 or 04")
    for name, path in wanted.items():
        check_output_path(path, ".xml" if name == "junit" else ".json")
    passed = True
    for lab in labs:
        taken = digest(lab)
        with working(f"Grading lab {lab.number}"):
            report = check_lab(lab, choice)
        board.show_report(report)
        try:
            record_report(report, taken)
        except UserError as fault:  # the verdict is valid even if it cannot be recorded
            print_lines(str(fault))
        passed = passed and report.passed
        if wanted:
            from labkit.grading.exporters import write_reports

            write_reports(report, wanted)
    raise typer.Exit(0 if passed else 1)


@app.command("new-model", rich_help_panel=LEARN)
def new_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="name of the Python package, as in: import NAME")],
    like: Annotated[Like, typer.Option(help="the template to copy")] = "llama",
) -> None:
    """Create a package with a model of your own, as a plugin of vLLM.

    The package installs, serves and passes its tests as it is written; change it from there.
    """
    folder = write_new_model(name, like, Path())
    python = board.shortest(Path(sys.executable))
    print_lines(
        *(f"written: {path}" for path in sorted(folder.rglob("*")) if path.is_file()),
        f"Next: {Path(python).with_name('uv')} pip install --python {python} --no-deps --editable {folder}, then "
        f"{python} -m pytest {folder}; continue with {folder}/README.md",
    )

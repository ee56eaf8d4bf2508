"""Commands of an afternoon with the labs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from labkit.cli.arguments import LabNumber, lab_numbers, task_names
from labkit.cli.help_screen import LEARN
from labkit.course import board
from labkit.system.console import console, print_lines, print_text, working
from labkit.system.errors import UserError
from labkit.system.labs import all_labs, find_lab

app = typer.Typer()


@app.command(short_help="everything once, on real input", rich_help_panel=LEARN)
def tour() -> None:
    """The whole thing once, on real input: a model added, a real Llama answering, its load traced."""
    from labkit.course.tour import run_tour

    raise typer.Exit(run_tour())


@app.command(short_help="open a lab's README and starter.py in your editor", rich_help_panel=LEARN)
def start(number: LabNumber) -> None:
    """Open a lab: its README and starter.py, in your editor."""
    from labkit.course.workspace import open_lab

    print_lines(*open_lab(find_lab(number)))


@app.command(short_help="a verdict on your file at every save", rich_help_panel=LEARN)
def watch(
    number: Annotated[
        str | None,
        typer.Argument(metavar="[01|02|03|04]", help="which lab; else the first that is left", autocompletion=lab_numbers),
    ] = None,
    impl: Annotated[str, typer.Option(help="starter, solution or the path of a .py file")] = "starter",
) -> None:
    """Grade your file at every save; keys for hints."""
    from labkit.course.progress import passed as has_passed
    from labkit.course.watch.session import Session

    labs = all_labs()
    lab = find_lab(number) if number else next((lab for lab in labs if not has_passed(lab)), labs[0])
    Session(lab, lab.implementation(impl)).watch()


@app.command(short_help="one hint more: a question, where to read, the answer", rich_help_panel=LEARN)
def hint(
    number: LabNumber,
    task: Annotated[str | None, typer.Argument(help="which task; else the first that is left", autocompletion=task_names)] = None,
) -> None:
    """Give the next hint: a question, where to read, the shape of the answer."""
    from labkit.course.workspace import next_hint, task_to_help

    lab = find_lab(number)
    print_text(next_hint(lab, task_to_help(lab, task)))


@app.command(short_help="what the solution does differently, once you passed", rich_help_panel=LEARN)
def solution(
    number: LabNumber,
    give_up: Annotated[bool, typer.Option("--i-give-up", help="before the lab has passed, too")] = False,
) -> None:
    """Show what the solution does differently, once the lab has passed."""
    from labkit.course.workspace import solution as differences

    lines = differences(find_lab(number), give_up)
    for line in lines or ["starter.py is the solution, to the letter"]:
        console.print(line, style={"+": "green", "-": "red", "@": "cyan"}.get(line[:1], ""), markup=False, soft_wrap=True)


@app.command(short_help="begin a lab again; what you wrote is kept", rich_help_panel=LEARN)
def reset(number: LabNumber) -> None:
    """Begin a lab again; what you wrote is kept, with its date."""
    from datetime import datetime

    from labkit.course.workspace import reset as restore

    lab = find_lab(number)
    kept = restore(lab, datetime.now())
    starter = board.short(lab.implementation("starter"))
    if kept:
        print_lines(f"your work is kept: {board.short(kept)}", f"to go on with it: cp {board.short(kept)} {starter}")
    print_lines(f"{starter} is as it was given out. Next: ./lab start {number}")


@app.command(short_help="a verdict now: on your file, the solution, or any file", rich_help_panel=LEARN)
def check(
    number: Annotated[str, typer.Argument(metavar="01|02|03|04|all", help="which lab", autocompletion=lab_numbers)],
    impl: Annotated[str | None, typer.Option(help="starter, solution or a .py file; else LAB_IMPL, else starter")] = None,
    solution: Annotated[bool, typer.Option("--solution", help="the same as --impl solution")] = False,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="write the report here, as JSON")] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="the same as JUnit XML")] = None,
    gradescope: Annotated[Path | None, typer.Option(metavar="FILE", help="the same as Gradescope's results.json")] = None,
    classroom: Annotated[Path | None, typer.Option(metavar="FILE", help="the same as a GitHub Classroom result")] = None,
) -> None:
    """Grade a lab: your starter.py, the solution, or any file."""
    from labkit.check.check import check as check_lab
    from labkit.course.progress import digest, note_report
    from labkit.system.atomic_write import check_output_path

    if solution and impl not in (None, "solution"):
        raise UserError(f"--solution and --impl {impl} name two files to grade; give one of the two")
    choice = "solution" if solution else impl or os.environ.get("LAB_IMPL") or "starter"
    files = {"json": json, "junit": junit, "gradescope": gradescope, "classroom": classroom}
    wanted = {name: path for name, path in files.items() if path}
    labs = all_labs() if number == "all" else [find_lab(number)]
    if wanted and len(labs) > 1:
        raise UserError(f"--{next(iter(wanted))} is a report on one lab; name it: 01, 02, 03 or 04")
    for name, path in wanted.items():
        check_output_path(path, ".xml" if name == "junit" else ".json")
    passed = True
    for lab in labs:
        taken = digest(lab)
        with working(f"Grading lab {lab.number}"):
            report = check_lab(lab, choice)
        board.show_report(report)
        try:
            note_report(report, taken)
        except UserError as fault:  # the verdict stands all the same
            print_lines(str(fault))
        passed = passed and report.passed
        if wanted:
            from labkit.grading.exporters import write_reports

            write_reports(report, wanted)
    raise typer.Exit(0 if passed else 1)


@app.command("new-model", short_help="begin a vLLM plugin of your own, with its tests", rich_help_panel=LEARN)
def new_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="of the package, as in: import NAME")],
    like: Annotated[Literal["llama", "bigram"], typer.Option(help="what it begins as")] = "llama",
) -> None:
    """Begin a model of your own: a plugin of vLLM as a package, which installs, serves and passes its tests."""
    from labkit.course.new_model import Like, write_new_model

    folder = write_new_model(name, Like(like), Path())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        print_lines(f"written: {path}")
    python = min(sys.executable, os.path.relpath(sys.executable), key=len)
    print_lines(
        f"Next: {Path(python).with_name('uv')} pip install --python {python} --no-deps --editable {folder}, then "
        f"{python} -m pytest {folder}; {folder}/README.md has the rest"
    )

"""The board of all labs, and the printed report on one lab.

Every state is printed as a word; the colour repeats the word.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from labkit.course.progress import DONE, State, TaskState, states
from labkit.system.console import console, print_text
from labkit.system.labs import Lab, all_labs

if TYPE_CHECKING:
    from labkit.check.report import Report

PASSED: tuple[State, ...] = ("passed", "passed on captured data only")
STYLES: dict[str, str] = {
    **dict.fromkeys(map(str, PASSED), "green"),
    **dict.fromkeys(("failed", "failing"), "bold red"),
    **dict.fromkeys(("skipped", "not run", "not checked"), "yellow"),
}
"""rich's style of a task's state or of a test's status; a state that is not in this mapping is printed without a style."""


def show_board() -> None:
    """Prints every lab with its tasks, points and states, and the next command to type."""
    labs = all_labs()
    states_of = {lab.number: states(lab) for lab in labs}
    for lab in labs:
        earned = sum(task.points for task in lab.tasks if states_of[lab.number][task.name].state in PASSED)
        table = Table.grid(padding=(0, 2))
        table.add_column(min_width=13, no_wrap=True)
        table.add_column(justify="right", min_width=3)
        table.add_column(width=16)  # the longest state takes two lines of it
        for task in lab.tasks:
            state = states_of[lab.number][task.name]
            style = STYLES.get(state.state, "none")
            why = f"\n({escape(state.why)})" if state.why and state.state != "failing" else ""
            table.add_row(f"  {task.name}", str(task.points), f"[{style}]{state.state}[/]", f"{escape(task.title)}{why}")
        console.print(
            f"[bold]Lab {lab.number}[/bold]  {escape(lab.title)}  ({', '.join(lab.tags)}, {earned} of {lab.points} points)"
        )
        console.print(table)
        console.print()
    console.print(f"Next: {next_command(labs, states_of)}", markup=False, soft_wrap=True)


def next_command(labs: list[Lab], states_of: Mapping[str, Mapping[str, TaskState]]) -> str:
    """Returns the command for the first lab not done: start, check or watch. ``states_of``: lab number -> task -> state."""
    for lab in labs:
        found = {state.state for state in states_of[lab.number].values()}
        if found <= {"not started"}:
            return f"./lab start {lab.number}    (opens its README.md and your starter.py)"
        if "not checked" in found:
            return f"./lab check {lab.number}    (starter.py has changed since it was checked)"
        if not found <= set(DONE):
            return f"./lab watch {lab.number}    (grades it at every save)"
    return "./lab check all    (every lab is done; this checks them again)"


def show_report(report: Report) -> None:
    """Prints the report on one lab: each task, the first failure of each failed task, and a hint for the first failed task."""
    lab = report.lab
    console.print(f"[bold]Lab {lab.number}[/bold]  {escape(lab.title)}")
    console.print(f"graded: {shortest(report.graded)}", markup=False, soft_wrap=True)
    if report.broken:
        print_text(f"No verdict: {report.broken}")
        return
    for result in report.tasks:
        state = f"[{STYLES.get(result.status, 'none')}]{result.status:8}[/]"
        head = f"  {state} {result.points:3}/{result.task.points:<3} "
        print_text(f"{result.task.name}: {result.task.title}", indent=" " * 19, head=head)
        failures = [test for status in ("failed", "not run") for test in result.tests if test.status == status]
        for test in failures[:1]:
            where = f" ({report.graded.name}:{test.line})" if test.line else ""
            print_text(f"{test.name}{where}", indent=" " * 11)
            message = test.message or "did not run: a test before it did not end, or ended the process"
            for line in message.splitlines()[:8]:
                print_text(line, indent=" " * 13)
    for reference in sorted({test.against for result in report.tasks for test in result.tests if test.against}):
        print_text(f"compared with: {reference}")
    skips = [test for result in report.tasks for test in result.tests if test.status == "skipped"]
    if skips:
        print_text(f"{len(skips)} tests were skipped, which does not count as passed: {skips[0].message}")
    console.print(f"{report.points} of {lab.points} points")
    if all(result.status == "not started" for result in report.tasks):
        print_text(f"{report.graded.name} is unchanged. Next: ./lab start {lab.number} opens it and its README.md")
    open_tasks = [result.task for result in report.tasks if result.status in ("failed", "not run")]
    if open_tasks:
        print_text(f"Hint for {open_tasks[0].name}: {open_tasks[0].hints[0]}")


def shortest(path: Path) -> str:
    """Returns the path, relative to the working directory if that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)

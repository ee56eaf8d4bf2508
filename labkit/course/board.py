"""What is on the screen: the board of all labs, and the report on one.

Every state is a word; colour only repeats it.
"""

from __future__ import annotations

import ast
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
    from labkit.check.report import Report, TaskResult, TestResult

PASSED: tuple[State, ...] = ("passed", "passed on captured data only")
STATE_STYLES: dict[State, str] = {
    "passed": "green",
    "passed on captured data only": "green",
    "failing": "bold red",
    "skipped": "yellow",
    "not checked": "yellow",
}
STATE_WIDTH = 16
"""Columns for a state; the longest takes two lines of it."""

STYLES = {"passed": "green", "failed": "bold red", "skipped": "yellow", "not run": "yellow", "not started": "yellow"}


def show_board() -> None:
    """Every lab with its tasks, points and states, and the command to type next."""
    labs = all_labs()
    known = {lab.number: states(lab) for lab in labs}
    for lab in labs:
        here = known[lab.number]
        earned = sum(task.points for task in lab.tasks if here[task.name].state in PASSED)
        table = Table.grid(padding=(0, 2))
        table.add_column(min_width=13, no_wrap=True)
        table.add_column(justify="right", min_width=3)
        table.add_column(width=STATE_WIDTH)
        table.add_column()
        for task in lab.tasks:
            state = here[task.name]
            style = STATE_STYLES.get(state.state, "none")
            why = f"\n({escape(state.why)})" if state.why and state.state != "failing" else ""
            table.add_row(f"  {task.name}", str(task.points), f"[{style}]{state.state}[/]", f"{escape(task.title)}{why}")
        console.print(
            f"[bold]Lab {lab.number}[/bold]  {escape(lab.title)}  ({', '.join(lab.tags)}, {earned} of {lab.points} points)"
        )
        console.print(table)
        console.print()
    console.print(f"Next: {next_command(labs, known)}", markup=False, soft_wrap=True)


def next_command(labs: list[Lab], known: Mapping[str, Mapping[str, TaskState]]) -> str:
    """What to type now: begin, go on with, or check the first lab that is not done."""
    for lab in labs:
        found = {state.state for state in known[lab.number].values()}
        if found <= {"not started"}:
            return f"./lab start {lab.number}    (opens its README.md and your starter.py)"
        if "not checked" in found:
            return f"./lab check {lab.number}    (starter.py has changed since it was checked)"
        if not found <= set(DONE):
            return f"./lab watch {lab.number}    (a verdict at every save)"
    return "./lab check all    (every lab is done; this checks them all once more)"


def parts_to_write(lab: Lab) -> int:
    """How many functions of starter.py still raise NotImplementedError, read from the file and not from memory."""
    try:
        tree = ast.parse((lab.folder / "starter.py").read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return len(lab.tasks)
    raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc]
    names = [exc.func if isinstance(exc, ast.Call) else exc for exc in raised]
    return sum(isinstance(name, ast.Name) and name.id == "NotImplementedError" for name in names)


def show_report(report: Report) -> None:
    """One lab's verdict: a line per task, the first fault of each that failed, and what to do next."""
    lab = report.lab
    console.print(f"[bold]Lab {lab.number}[/bold]  {escape(lab.title)}")
    console.print(f"graded: {short(report.graded)}", markup=False, soft_wrap=True)
    if report.broken:
        print_text(f"No verdict: {report.broken}")
        return
    for result in report.tasks:
        state = f"[{STYLES[result.status]}]{result.status:8}[/]"
        head = f"  {state} {result.points:3}/{result.task.points:<3} "
        print_text(f"{result.task.name}: {result.task.title}", indent=" " * 19, head=head)
        for test in faults(result):
            _show_fault(test, report.graded)
    for held in sorted({test.against for result in report.tasks for test in result.tests if test.against}):
        print_text(f"held against: {held}")
    skips = [test for result in report.tasks for test in result.tests if test.status == "skipped"]
    if skips:
        print_text(f"{len(skips)} tests skipped, which is no pass: {skips[0].message}")
    console.print(f"{report.points} of {lab.points} points")
    if all(result.status == "not started" for result in report.tasks):
        print_text(f"{report.graded.name} is as it was given out. Next: ./lab start {lab.number} opens it and its README.md")
    open_tasks = [result.task for result in report.tasks if result.status in ("failed", "not run")]
    if open_tasks:
        print_text(f"Hint for {open_tasks[0].name}: {open_tasks[0].hints[0]}")


def faults(result: TaskResult) -> list[TestResult]:
    """The first test of a task that failed, or the first that did not run."""
    for status in ("failed", "not run"):
        if found := [test for test in result.tests if test.status == status]:
            return found[:1]
    return []


def _show_fault(test: TestResult, graded: Path) -> None:
    where = f" ({graded.name}:{test.line})" if test.line else ""
    print_text(f"{test.name}{where}", indent=" " * 11)
    message = test.message or "did not run: the session ended before it, at an endless loop or an exit"
    for line in message.splitlines()[:8]:
        print_text(line, indent=" " * 13)


def short(path: Path) -> str:
    """A path as it would be typed here: relative to the current directory where that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)

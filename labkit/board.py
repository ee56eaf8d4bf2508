"""What is on the screen: the board of all labs, and the report on one.

Every state is a word; colour only repeats it.
"""

from __future__ import annotations

import ast
import os
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from labkit.check import Report, TaskResult, TestResult
from labkit.console import console
from labkit.labs import Lab, all_labs

STYLES = {"passed": "green", "failed": "bold red", "skipped": "yellow", "not run": "yellow"}


def show_board() -> None:
    """Every lab with its tasks and points, and the command to type next."""
    labs = all_labs()
    for lab in labs:
        left = parts_to_write(lab)
        state = "starter.py: all written" if not left else f"starter.py: {left} {'part' if left == 1 else 'parts'} to write"
        table = Table.grid(padding=(0, 2))
        table.add_column(min_width=10)
        table.add_column(justify="right", min_width=3)
        table.add_column()
        for task in lab.tasks:
            table.add_row(f"  {task.name}", str(task.points), escape(task.title))
        console.print(
            f"[bold]Lab {lab.number}[/bold]  {escape(lab.title)}  ({', '.join(lab.tags)}, {lab.points} points)  {state}"
        )
        console.print(table)
        console.print()
    console.print(f"Next: {next_command(labs)}", soft_wrap=True)


def next_command(labs: list[Lab]) -> str:
    """The lab that still has something to write, the first in order, and how to begin or go on with it."""
    for lab in labs:
        if parts_to_write(lab):
            return f"read {short(lab.folder / 'README.md')}, write starter.py, run ./lab check {lab.number} --impl starter"
    return "./lab check all --impl starter"


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
        console.print(f"No verdict: {report.broken}", markup=False, soft_wrap=True)
        return
    for result in report.tasks:
        state = f"[{STYLES[result.status]}]{result.status:8}[/]"
        console.print(f"  {state} {result.points:3}/{result.task.points:<3} {result.task.name}: {escape(result.task.title)}")
        for test in faults(result):
            _show_fault(test, report.graded)
    for held in sorted({test.against for result in report.tasks for test in result.tests if test.against}):
        console.print(f"held against: {held}", markup=False, soft_wrap=True)
    skips = [test for result in report.tasks for test in result.tests if test.status == "skipped"]
    if skips:
        console.print(f"{len(skips)} tests skipped, which is no pass: {skips[0].message}", markup=False, soft_wrap=True)
    console.print(f"{report.points} of {lab.points} points")
    open_tasks = [result.task for result in report.tasks if result.status in ("failed", "not run")]
    if open_tasks:
        console.print(f"Hint for {open_tasks[0].name}: {open_tasks[0].hints[0]}", markup=False, soft_wrap=True)


def faults(result: TaskResult) -> list[TestResult]:
    """The first test of a task that failed, or the first that did not run."""
    for status in ("failed", "not run"):
        if found := [test for test in result.tests if test.status == status]:
            return found[:1]
    return []


def _show_fault(test: TestResult, graded: Path) -> None:
    where = f" ({graded.name}:{test.line})" if test.line else ""
    console.print(f"           {test.name}{where}", markup=False, soft_wrap=True)
    message = test.message or "did not run: the session ended before it, at an endless loop or an exit"
    for line in message.splitlines()[:8]:
        console.print(f"             {line}", markup=False, soft_wrap=True)


def short(path: Path) -> str:
    """A path as it would be typed here: relative to the current directory where that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)

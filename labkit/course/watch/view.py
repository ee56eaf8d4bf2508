"""Formats the screen of ./lab watch. Every state is printed as a word; the colour repeats the word."""

from __future__ import annotations

import linecache
from itertools import takewhile

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.text import Text

from labkit.check.report import Report
from labkit.check.results import FailedTest
from labkit.course.board import STYLES, shortest
from labkit.course.progress import state_of
from labkit.course.watch.runs import Run
from labkit.system.console import console
from labkit.system.labs import Lab, Task

MESSAGE_LINES, PRINTED_LINES = 8, 4
"""How many lines are shown: the first ones of a failure's message, and the last ones of the test's output."""

SHORT = 156
"""Characters of two lines. A longer side of a comparison is shown last, so that message and source line stay on the screen."""


def in_words(test: str) -> str:
    """Returns a test's name in words: ``"positions are ignored"`` for ``"test_positions_are_ignored"``."""
    return test.removeprefix("test_").replace("_", " ")


def earned(run: Run) -> str:
    """Returns the points of a run so far: ``"40 of 100 points"``."""
    return f"{run.report.points} of {run.lab.points} points"


def heading(lab: Lab, run: Run | None, polling: bool) -> list[RenderableType]:
    """Returns the lines at the top: the lab, the file, a line for each state with the tasks in this state, and the points."""
    lines: list[RenderableType] = [Text.from_markup(f"[bold]Lab {lab.number}[/bold]  {escape(lab.title)}")]
    if run is None:
        return lines
    how = ", polled every 0.1 s because this folder sends no events" if polling else ""
    lines.append(Text(f"watching {shortest(run.graded)}{how}"))
    by_state: dict[str, list[str]] = {}
    for result in run.report.tasks:
        running = not run.ended and result.status != "failed" and any(test.status == "not run" for test in result.tests)
        by_state.setdefault("to run" if running else state_of(result).state, []).append(result.task.name)
    lines += [Text.assemble((f"{state}: ", STYLES.get(state, "")), ", ".join(names)) for state, names in by_state.items()]
    return [*lines, Text(earned(run))]


def failure(task: Task, shown: FailedTest, run: Run) -> list[RenderableType]:
    """Returns the lines on one failed test: title, short compared values, message, source line, long compared values, output."""
    message = shown.result.message.splitlines()
    if shown.compared:  # pytest repeats both sides
        message = list(takewhile(lambda line: not line.startswith("assert "), message))
    number, graded = shown.result.line, str(run.graded)
    linecache.checkcache(graded)
    source = linecache.getline(graded, number).strip() if number else ""
    place = f"at {run.graded.name}:{number}" if number else f"look at {shown.suspect}" if shown.suspect else ""
    printed = shown.printed.rstrip().splitlines()[-PRINTED_LINES:]
    title = Text.assemble((f"{task.name}: failing", STYLES["failing"]), f"  {in_words(shown.result.name)}")
    lines: list[RenderableType] = [title]
    for head, part in (
        ("", [line for line in shown.compared if len(line) <= SHORT]),
        ("", message[:MESSAGE_LINES]),
        (place, [source] if source else []),
        ("", [line for line in shown.compared if len(line) > SHORT]),
        ("printed:" if printed else "", printed),
    ):
        if head or part:
            lines += map(Text, ["", *([head] if head else []), *(f"  {line}" for line in part)])
    return lines


def broken(report: Report) -> list[RenderableType]:
    """Returns the line of the screen that says why there is no verdict, in a list."""
    return [Text.assemble(("no verdict: ", STYLES["failing"]), report.broken)]


def screen(parts: list[RenderableType], foot: list[RenderableType]) -> list[Segment]:
    """Renders the parts above the foot. If the terminal is too low for all lines, the last lines of the parts are left out."""
    above, below = console.render_lines(Group(*parts)), console.render_lines(Group(*foot))
    room = max(console.height - len(below) - 2, 1)
    if len(above) > room:
        above = [*above[: room - 1], [Segment("... (a taller terminal shows the rest)")]]
    return [segment for line in [*above, [], *below] for segment in [*line, Segment.line()]][:-1]

"""Formats the screen of ./lab watch. Every state is a word; colour only repeats it."""

from __future__ import annotations

from itertools import takewhile

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.segment import Segment
from rich.text import Text

from labkit.check.report import Report
from labkit.check.results import FailedTest
from labkit.course.board import PASSED, STYLES, shortest
from labkit.course.progress import TaskState, state_of
from labkit.course.watch.runs import Run
from labkit.system.labs import Lab, Task

MESSAGE_LINES = 8
"""Lines of a failure's message that are shown."""

SHORT = 156
"""Characters of two lines. A longer side of a comparison comes last, so that the rest stays on the screen."""

PRINTED_LINES = 4
"""Lines of a test's output that are shown, the last ones."""


def in_words(test: str) -> str:
    """``"test_positions_are_ignored"`` as ``"positions are ignored"``."""
    return test.removeprefix("test_").replace("_", " ")


def states_now(run: Run) -> dict[str, TaskState | None]:
    """Each task's state as far as the run has come; None where the task has not run."""
    states: dict[str, TaskState | None] = {}
    for result in run.report.tasks:
        running = not run.ended and result.status != "failed" and any(test.status == "not run" for test in result.tests)
        states[result.task.name] = None if running else state_of(result)
    return states


def earned(run: Run) -> str:
    """``"40 of 100 points"``."""
    return f"{run.report.points} of {run.lab.points} points"


def heading(lab: Lab, run: Run | None, polling: bool) -> list[RenderableType]:
    """The lab, the file, and a line for each state with its tasks."""
    lines: list[RenderableType] = [Text.from_markup(f"[bold]Lab {lab.number}[/bold]  {escape(lab.title)}")]
    if run is None:
        return lines
    how = ", looking every 0.1 s since no events come from this folder" if polling else ""
    lines.append(Text(f"watching {shortest(run.graded)}{how}"))
    by_state: dict[str, list[str]] = {}
    for name, state in states_now(run).items():
        by_state.setdefault(state.state if state else "to run", []).append(name)
    for state_name, names in by_state.items():
        style = next((style for state, style in STYLES.items() if state == state_name), "")
        lines.append(Text.assemble((f"{state_name}: ", style), ", ".join(names)))
    lines.append(Text(earned(run)))
    return lines


def failure(task: Task, shown: FailedTest, run: Run) -> list[RenderableType]:
    """One failed test: its message, the expected and the actual value, and where to look."""
    result = shown.result
    lines: list[RenderableType] = [
        Text.assemble((f"{task.name}: failing", STYLES["failing"]), f"  {in_words(result.name)}"),
    ]
    printed = shown.printed.rstrip().splitlines()[-PRINTED_LINES:]
    for part in (
        [f"  {line}" for line in shown.compared if len(line) <= SHORT],
        [f"  {line}" for line in _message(shown)],
        where(shown, run),
        [f"  {line}" for line in shown.compared if len(line) > SHORT],
        ["printed:", *(f"  {line}" for line in printed)] if printed else [],
    ):
        lines += [Text(""), *map(Text, part)] if part else []
    return lines


def where(shown: FailedTest, run: Run) -> list[str]:
    """The line of the learner's file that the failure came through, or the function that returned the wrong value."""
    line = shown.result.line
    if line is None:
        return [f"look at {shown.suspect}"] if shown.suspect else []
    text = _line(run, line)
    return [f"at {run.graded.name}:{line}", *([f"  {text}"] if text else [])]


def broken(report: Report) -> list[RenderableType]:
    """Why there is no verdict."""
    return [Text.assemble(("no verdict: ", STYLES["failing"]), report.broken)]


def passed_line(task: Task) -> Text:
    """A task that has just passed."""
    return Text.assemble((f"{task.name}: passed", STYLES[PASSED[0]]), f"  {task.title}")


class Screen:
    """Parts above a foot. In a terminal too low for both, the parts are cut."""

    def __init__(self, parts: list[RenderableType], foot: list[RenderableType]) -> None:
        self.parts, self.foot = parts, foot

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The lines of both."""
        options = options.update(height=None)
        above = console.render_lines(Group(*self.parts), options, pad=False)
        below = console.render_lines(Group(*self.foot), options, pad=False)
        room = max(console.height - len(below) - 2, 1)
        cut = len(above) > room
        for line in above[: room - 1] if cut else above:
            yield from line
            yield Segment.line()
        if cut:
            yield Segment("... (a taller terminal shows the rest)")
            yield Segment.line()
        yield Segment.line()
        for number, line in enumerate(below):
            if number:
                yield Segment.line()
            yield from line


def _message(shown: FailedTest) -> list[str]:
    """The test's message; where both sides are shown, without pytest's repetition of them."""
    lines = shown.result.message.splitlines()
    if shown.compared:
        lines = list(takewhile(lambda line: not line.startswith("assert "), lines))
    return lines[:MESSAGE_LINES]


def _line(run: Run, number: int) -> str:
    try:
        lines = run.graded.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return lines[number - 1].strip() if 0 < number <= len(lines) else ""

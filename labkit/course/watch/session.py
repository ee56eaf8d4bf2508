"""The event loop of ./lab watch: one thread that waits for files, keys and results, and draws the screen."""

from __future__ import annotations

import os
import selectors
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from rich.console import Group, RenderableType
from rich.live import Live
from rich.segment import Segment, Segments
from rich.text import Text

from labkit.course.board import STYLES
from labkit.course.progress import DONE, hints_seen, next_task, record_report, state_of
from labkit.course.watch import view
from labkit.course.watch.changes import Changes
from labkit.course.watch.runs import Run, WatchServer
from labkit.course.workspace import next_hint
from labkit.system.console import console
from labkit.system.errors import UserError
from labkit.system.labs import ROOT, Lab, Task

TICK, SHOW_SECONDS_AFTER = 0.2, 1.0
"""Seconds after which the screen is drawn again without an event, and after which it shows how long a run takes."""


class Session:
    """Watches one lab and the learner's file."""

    def __init__(self, lab: Lab, graded: Path) -> None:
        self.lab, self.graded = lab, graded
        self.focus: Task | None = next_task(lab) if graded == lab.implementation("starter") else lab.tasks[0]
        self.pinned: Task | None = None
        self.run: Run | None = None
        self.source = b""  # of the learner's file when the run started
        self.hints: list[str] = []
        self.announced: set[str] = set()
        self.waiting = True  # for a run to start
        self.over = False
        self.server = WatchServer(lab)
        self.changes = Changes(self._files, {path.parent for path in self._files()})
        self.live: Live | None = None
        self.drawn: list[Segment] = []
        self.selector = selectors.DefaultSelector()

    def watch(self) -> None:
        """Grades at every save until q or Ctrl-C is pressed, then prints the points."""
        with ExitStack() as stack:
            # Ctrl-C raises no exception: one in the middle of a print would make rich print the same lines again.
            stack.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, self._quit))
            stack.callback(self.changes.close)
            stack.callback(lambda: self.server.close())  # not a bound method: the server may be replaced
            self.selector.register(self.server.control, selectors.EVENT_READ, self._read_server)
            self.selector.register(self.changes.wake, selectors.EVENT_READ, self._read_changes)
            keys = stack.enter_context(_single_keys())
            if keys is None:
                console.print(f"Lab {self.lab.number}: importing torch and the tests, once ...", soft_wrap=True)
            else:
                self.selector.register(keys, selectors.EVENT_READ, partial(self._press, keys))
                self.live = stack.enter_context(Live(console=console, screen=True, auto_refresh=False))
            self._draw()
            while not self.over:
                self._step()
        points = f"{view.earned(self.run)}. " if self.run else ""
        console.print(f"Lab {self.lab.number}: {points}Go on with ./lab watch {self.lab.number}")

    def _quit(self, *_: object) -> None:
        self.over = True

    def _step(self) -> None:
        """Handles the pending events, starts a run if one is due and the server is ready, and draws."""
        for key, _ in self.selector.select(TICK):
            if self.selector.get_map().get(key.fileobj) is key:  # an earlier event of this round may have closed it
                key.data()
        if self.waiting and self.server.ready and self.graded.is_file():
            self.waiting, self.hints, self.announced = False, [], set()
            self.source = self._read_source()
            self.run = self.server.start_run(self.graded, self.pinned or self.focus)
            self.selector.register(self.run.pipe, selectors.EVENT_READ, self._read_run)
        self.server.limit_output()
        self._draw()

    def _restart(self) -> None:
        """Kills the run; :meth:`_step` starts the next one when the server is ready."""
        self.waiting = True
        self.server.kill_run()
        self._close_pipe()

    def _close_pipe(self) -> None:
        if self.run and self.run.pipe >= 0:
            self.selector.unregister(self.run.pipe)
            os.close(self.run.pipe)
            self.run.pipe = -1

    def _read_changes(self) -> None:
        changed = self.changes.take()
        if changed == {self.graded} and not self.waiting and self._read_source() == self.source:
            return  # one save was seen twice, or the file was saved without a change
        if changed - {self.graded}:  # the tests or the engine: the server has imported old files
            self.selector.unregister(self.server.control)
            self.server.close()
            self.server = WatchServer(self.lab)
            self.selector.register(self.server.control, selectors.EVENT_READ, self._read_server)
        self._restart()

    def _read_server(self) -> None:
        for message in self.server.receive():
            if "child" in message and self.waiting:  # a save came before the process id was known
                self.server.kill_run()
            elif "ended" in message and self.run:
                while self.run.pipe >= 0:
                    self._read_run()
                self.run.ended = True
                if not self.waiting:  # it was not killed
                    self.run.end(message["ended"])
                    self._save_progress(self.run)

    def _read_run(self) -> None:
        if self.run and not self.run.read():
            self._close_pipe()

    def _save_progress(self, run: Run) -> None:
        """Saves the verdict of a run that has ended, and chooses the task to run first next time."""
        try:
            record_report(run.report, run.digest)
        except UserError as fault:  # the verdict is valid even if it cannot be stored
            self.hints.append(str(fault))
        left = [result.task for result in run.report.tasks if state_of(result).state not in DONE]
        if self.focus not in left:
            self.focus = left[0] if left else None
        if self.pinned not in left:
            self.pinned = None

    def _press(self, keys: int) -> None:
        key, task = os.read(keys, 1).decode(errors="replace").lower(), self._shown_task()
        if key == "q":
            self._quit()
        elif key == "h" and task:
            try:
                self.hints.append(next_hint(self.lab, task))
            except UserError as fault:
                self.hints.append(str(fault))
        elif key == "n" and self.run:
            left = [result.task for result in self.run.report.tasks if result.status == "failed"]
            later = [each for each in left if task and self.lab.tasks.index(each) > self.lab.tasks.index(task)]
            self.pinned = next(iter(later or left), None)
            self.hints = []
        elif key == "a":
            self.pinned = None
            self._restart()

    def _shown_task(self) -> Task | None:
        """Returns the task to show: the one chosen with n, else the one in progress; if that has passed, the first failed."""
        if self.run is None:
            return None
        chosen, shown = self.pinned or self.focus, ("failed",) if self.run.ended else ("failed", "not run")
        if chosen and self.run.task_result(chosen).status in shown:
            return chosen
        return next((result.task for result in self.run.report.tasks if result.status == "failed"), None)

    def _draw(self) -> None:
        if self.live is None:
            self._announce()
            return
        heading = view.heading(self.lab, self.run, self.changes.polling)
        screen = view.screen([*heading, Text(""), *self._body()], self._foot())
        if screen != self.drawn:
            self.drawn = screen
            self.live.update(Segments(screen), refresh=True)

    def _body(self) -> list[RenderableType]:
        run, task = self.run, self._shown_task()
        if run is None or (self.waiting and not self.graded.is_file()):
            if not self.server.ready or self.graded.is_file():
                return [Text("importing torch and the tests, once ...")]
            return [Text(f"{self.graded} is missing; save it; ./lab reset {self.lab.number} restores the original starter.py")]
        if run.report.broken:
            return view.broken(run.report)
        if task and (shown := run.failed_test(task)):
            return view.failure(task, shown, run)
        if not run.ended:
            return [self._running(run)]
        if run.report.passed:
            return [Text("every task has passed", "green"), Text(f"next: ./lab solution {self.lab.number} shows another way")]
        return [Text("no test failed, but some were skipped or did not run; press a to run all tests again")]

    def _running(self, run: Run) -> Text:
        seconds = time.monotonic() - run.started
        elapsed = f", {seconds:.0f} s" if seconds > SHOW_SECONDS_AFTER else ""
        return Text(f"running{f': {view.in_words(run.running)}' if run.running else ''}{elapsed}")

    def _foot(self) -> list[RenderableType]:
        run, task = self.run, self._shown_task()
        seen = f" ({hints_seen(self.lab, task)} of {len(task.hints)} seen)" if task else ""
        progress = [Text(f"still {self._running(run)}")] if run and not run.ended and run.failed_test(task) else []
        return [*(Text(hint) for hint in self.hints[-1:]), *progress, Text(f"h hint{seen}   n next task   a run all   q quit")]

    def _announce(self) -> None:
        """Without a terminal: prints, once in a run, the verdict on the first and on the shown task; at the end, the points."""
        run = self.run
        if run is None or self.waiting:
            return
        if run.report.broken and run.ended:
            self._print_once("broken", view.broken(run.report))
            return
        for task in filter(None, (run.first, self._shown_task())):
            if shown := run.failed_test(task):
                hint = Text(f"./lab hint {self.lab.number} {task.name} gives the next hint")
                self._print_once(task.name, [*view.failure(task, shown, run), hint])
            elif run.task_result(task).status == "passed":
                self._print_once(task.name, [Text.assemble((f"{task.name}: passed", STYLES["passed"]), f"  {task.title}")])
        if run.ended:
            self._print_once("points", [Text(f"{view.earned(run)}; waiting for the next save of {self.graded.name}")])

    def _print_once(self, what: str, lines: list[RenderableType]) -> None:
        if what not in self.announced:
            self.announced.add(what)
            console.print(Group(*lines), soft_wrap=True)
            console.file.flush()

    def _read_source(self) -> bytes:
        return self.graded.read_bytes() if self.graded.is_file() else b""

    def _files(self) -> set[Path]:
        engine = (ROOT / "mini_vllm").rglob("*.py")
        return {self.graded, self.lab.tests, self.lab.folder / "lab.toml", *engine}


@contextmanager
def _single_keys() -> Iterator[int | None]:
    """Yields the file descriptor to read keys from, or None without a terminal; restores the terminal's settings at the end."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield None
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)  # Ctrl-C still sends SIGINT
        yield terminal
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)

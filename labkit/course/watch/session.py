"""The loop of ./lab watch: one thread that waits for files, keys and results, and draws what they come to."""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from labkit.course.progress import DONE, hints_seen, next_task, record_report, state_of
from labkit.course.watch import view
from labkit.course.watch.changes import Changes
from labkit.course.watch.keys import single_keys
from labkit.course.watch.runs import Run, Shown, Warm
from labkit.course.workspace import next_hint
from labkit.system.console import console
from labkit.system.errors import UserError
from labkit.system.labs import ROOT, Lab, Task

TICK = 0.2
"""Seconds between two looks at a run that says nothing."""

WORTH_SAYING = 1.0
"""Seconds after which a test that still runs is named."""


class Session:
    """Watches one lab until it is told to end."""

    def __init__(self, lab: Lab, graded: Path) -> None:
        self.lab, self.graded = lab, graded
        self.focus: Task | None = next_task(lab) if graded == lab.implementation("starter") else lab.tasks[0]
        self.pinned: Task | None = None
        self.run: Run | None = None
        self.hints: list[str] = []
        self.waiting = True
        """Whether there is something to run that has not begun."""
        self.warm = Warm(lab)
        self.changes = Changes(self._files, self._folders())
        self.begun_with = b""
        """What the learner's file held when the run began."""
        self.running_since = 0.0
        self.announced: set[str] = set()
        self.live: Live | None = None
        self.drawn = ""
        self.selector = selectors.DefaultSelector()
        self.told_to_end = False

    def watch(self) -> None:
        """Until q or Ctrl-C."""
        with single_keys() as keys, self._ctrl_c_ends():
            self.selector.register(self.warm.control, selectors.EVENT_READ, self._hear_warm)
            self.selector.register(self.changes.wake, selectors.EVENT_READ, self._hear_changes)
            if keys is not None:
                self.selector.register(keys, selectors.EVENT_READ, None)
                self.live = Live(console=console, screen=True, auto_refresh=False)
                self.live.start()
            else:
                console.print(f"Lab {self.lab.number}: importing torch and the tests, once ...", soft_wrap=True)
            try:
                self._draw()
                while self._step(keys):
                    pass
            finally:
                if self.live:
                    self.live.stop()
                if self.run:
                    self.warm.end(self.run)
                self.warm.close()
                self.changes.close()
        points = f"{view.earned(self.run)}. " if self.run else ""
        console.print(f"Lab {self.lab.number}: {points}Go on with ./lab watch {self.lab.number}")

    @contextmanager
    def _ctrl_c_ends(self) -> Iterator[None]:
        """Ctrl-C is noted, not raised: an exception in the middle of a print would have its lines printed again."""

        def note(_number: int, _frame: object) -> None:
            self.told_to_end = True

        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _step(self, keys: int | None) -> bool:
        """One round: whatever has come. False when it is time to go."""
        for key, _ in self.selector.select(TICK):
            if self.selector.get_map().get(key.fileobj) is not key:
                continue  # what came before it in this round has closed it
            if key.fd == keys:
                if not self._press(os.read(key.fd, 1).decode(errors="replace").lower()):
                    return False
            else:
                key.data()
        if self.waiting and self.warm.ready and self.graded.is_file():
            self._begin()
        self.warm.drain_flood()
        self._draw()
        return not self.told_to_end

    def _begin(self) -> None:
        self.waiting = False
        self.hints, self.announced = [], set()
        self.begun_with = self._source()
        self.run = self.warm.begin(self.graded, self.pinned or self.focus)
        self.running_since = time.monotonic()
        self.selector.register(self.run.pipe, selectors.EVENT_READ, self._hear_run)

    def _again(self) -> None:
        """Ends what runs, and has everything run anew as soon as the warm process is ready for it."""
        self.waiting = True
        if self.run and not self.run.over:
            self.warm.end(self.run)
        self._leave_run()

    def _leave_run(self) -> None:
        if self.run and self.run.pipe >= 0:
            self.selector.unregister(self.run.pipe)
            os.close(self.run.pipe)
            self.run.pipe = -1

    def _hear_changes(self) -> None:
        changed = self.changes.take()
        if changed == {self.graded} and not self.waiting and self._source() == self.begun_with:
            return  # one save was seen twice, or nothing was written anew
        if changed - {self.graded}:  # the tests or the engine: what the warm process has imported is old
            if self.run:
                self.warm.end(self.run)
            self.selector.unregister(self.warm.control)
            self.warm.close()
            self.warm = Warm(self.lab)
            self.selector.register(self.warm.control, selectors.EVENT_READ, self._hear_warm)
        self._again()

    def _hear_warm(self) -> None:
        for message in self.warm.messages():
            if self.run is None:
                continue
            if "child" in message:
                self.run.child = message["child"]
                if self.waiting:  # a save came before the child had a number
                    self.warm.end(self.run)
            elif "ended" in message:
                while self.run.pipe >= 0 and self.run.read():
                    pass
                self._leave_run()
                self.run.end(message["ended"])
                self._note()

    def _hear_run(self) -> None:
        if self.run and not self.run.read():
            self._leave_run()

    def _note(self) -> None:
        """A run is over: its verdict is kept, and what is to be done next is known."""
        if self.run is None or self.waiting:
            return
        try:
            record_report(self.run.report, self.run.taken)
        except UserError as fault:  # the verdict stands all the same
            self.hints.append(str(fault))
        left = [result.task for result in self.run.report.tasks if state_of(result).state not in DONE]
        if self.focus not in left:
            self.focus = left[0] if left else None
        if self.pinned not in left:
            self.pinned = None

    def _press(self, key: str) -> bool:
        """A key; False for the one that ends it."""
        if key == "q":
            return False
        task = self._shown_task()
        if key == "h" and task:
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
            self._again()
        return True

    def _shown_task(self) -> Task | None:
        """The task on the screen: the one that was chosen or is worked on; when that has passed, the first that fails."""
        if self.run is None:
            return None
        results = self.run.report.tasks
        chosen = self.pinned or self.focus
        for result in results:
            if result.task == chosen and (result.status == "failed" or (result.status == "not run" and not self.run.over)):
                return chosen
        return next((result.task for result in results if result.status == "failed"), None)

    def _draw(self) -> None:
        if self.live is None:
            self._announce()
            return
        screen = view.Screen([*view.heading(self.lab, self.run, self.changes.polling), Text(""), *self._body()], self._foot())
        drawn = "".join(segment.text for line in console.render_lines(screen) for segment in line)
        if drawn != self.drawn:
            self.drawn = drawn
            self.live.update(screen, refresh=True)

    def _body(self) -> list[RenderableType]:
        run, task = self.run, self._shown_task()
        if run is None or (self.waiting and not self.graded.is_file()):
            missing = f"{self.graded} is not there; ./lab reset {self.lab.number} brings back the one you began with"
            return [Text("importing torch and the tests, once ..." if not self.warm.ready or self.graded.is_file() else missing)]
        if run.report.broken:
            return view.broken(run.report)
        if task and (shown := self._failed_test(run, task)):
            return view.failure(task, shown, run)
        if not run.over:
            return [self._running(run)]
        if run.report.passed:
            return [
                Text.assemble(("every task has passed", "green")),
                Text(f"next: ./lab solution {self.lab.number} shows another way"),
            ]
        return [Text("the run was stopped")]

    def _running(self, run: Run) -> Text:
        seconds = time.monotonic() - self.running_since
        so_long = f", {seconds:.0f} s" if seconds > WORTH_SAYING else ""
        return Text(f"running{f': {view.in_words(run.running)}' if run.running else ''}{so_long}")

    def _foot(self) -> list[RenderableType]:
        task = self._shown_task()
        seen = f" ({hints_seen(self.lab, task)} of {len(task.hints)} seen)" if task else ""
        background = self.run is not None and not self.run.over and task is not None and self._failed_test(self.run, task)
        going_on = [Text(f"still {self._running(self.run)}")] if background and self.run else []
        return [*(Text(hint) for hint in self.hints[-1:]), *going_on, Text(f"h hint{seen}   n next task   a run all   q quit")]

    def _failed_test(self, run: Run, task: Task) -> Shown | None:
        return next((run.shown[name] for name in task.tests if name in run.shown), None)

    def _announce(self) -> None:
        """In a pipe: a verdict once, when it is there, and the points when all is done."""
        run = self.run
        if run is None or self.waiting:
            return
        if run.report.broken and run.over:
            self._say("broken", view.broken(run.report))
            return
        for task in (run.first, self._shown_task()):
            if task:
                self._announce_task(run, task)
        if run.over:
            self._say("points", [Text(f"{view.earned(run)}; waiting for the next save of {self.graded.name}")])

    def _announce_task(self, run: Run, task: Task) -> None:
        if shown := self._failed_test(run, task):
            hint = Text(f"./lab hint {self.lab.number} {task.name} gives the next hint")
            self._say(task.name, [*view.failure(task, shown, run), hint])
        elif run.task_result(task).status == "passed":
            self._say(task.name, [view.passed_line(task)])

    def _say(self, what: str, lines: list[RenderableType]) -> None:
        if what not in self.announced:
            self.announced.add(what)
            console.print(Group(*lines), soft_wrap=True)
            console.file.flush()

    def _source(self) -> bytes:
        return self.graded.read_bytes() if self.graded.is_file() else b""

    def _files(self) -> set[Path]:
        engine = (ROOT / "mini_vllm").rglob("*.py")
        return {self.graded, self.lab.tests, self.lab.folder / "lab.toml", *engine}

    def _folders(self) -> set[Path]:
        return {path.parent for path in self._files()}

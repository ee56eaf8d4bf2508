"""How far a learner has come: the last verdict on each starter.py, and the hints that were shown.

Kept in labs/.progress, which git ignores: a checkout, a stash and ``git clean -fd`` leave it alone, and it goes where labs/ goes,
into a container too. A verdict counts only as long as every file it rests on has the bytes it had; else it is as good as none.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from labkit.system.atomic_write import atomic_write
from labkit.system.errors import UserError
from labkit.system.labs import ROOT, Lab, Task

if TYPE_CHECKING:
    from labkit.check.report import Report, TaskResult

FOLDER = ROOT / "labs" / ".progress"

State = Literal["not started", "failing", "passed", "passed on captured data only", "skipped", "not checked"]
DONE: tuple[State, ...] = ("passed", "passed on captured data only", "skipped")
"""With these there is nothing left to do here."""


@dataclass(frozen=True)
class TaskState:
    """How a task stands.

    Attributes:
        state: in words.
        why: what made it so where the word alone does not say; else empty.
    """

    state: State
    why: str = ""


def states(lab: Lab) -> dict[str, TaskState]:
    """How each task of a learner's starter.py stands, by the task's name."""
    starter = lab.implementation("starter")
    if _text(starter) == _text(lab.pristine):
        return {task.name: TaskState("not started") for task in lab.tasks}
    noted = _read(lab)
    told = noted.get("tasks") if noted.get("digest") == digest(lab) else None
    return {task.name: _state(told, task) for task in lab.tasks}


def passed(lab: Lab) -> bool:
    """Whether nothing of the lab is left to do."""
    return all(state.state in DONE for state in states(lab).values())


def next_task(lab: Lab) -> Task | None:
    """The first task that is left, or None."""
    known = states(lab)
    return next((task for task in lab.tasks if known[task.name].state not in DONE), None)


def state_of(result: TaskResult) -> TaskState:
    """A task's state from its tests."""
    skips = [test.message for test in result.tests if test.status == "skipped"]
    if result.status == "passed":
        captured = any(test.against.startswith("captured/") for test in result.tests)
        why = f"{len(skips)} of {len(result.tests)} tests skipped: {skips[0]}" if skips else ""
        return TaskState("passed on captured data only" if captured else "passed", why)
    if result.status == "skipped":
        return TaskState("skipped", skips[0] if skips else "")
    failed = [test.message for test in result.tests if test.status == "failed"]
    if failed and all(message.startswith("NotImplementedError") for message in failed):
        return TaskState("not started")
    if not failed:
        return TaskState("not checked", "did not run, since the one before it did not come to an end")
    return TaskState("failing", failed[0].partition("\n")[0])


def digest(lab: Lab) -> str:
    """A number for everything that a verdict on starter.py rests on: the lab's files, the engine, labkit, the pins."""
    sha = hashlib.sha256(f"{sys.version} vllm:{importlib.util.find_spec('vllm') is not None}".encode())
    for path in _rests_on(lab):
        sha.update(f"\0{path.relative_to(ROOT)}\0".encode())
        sha.update(_text(path))
    return sha.hexdigest()


def note_report(report: Report, taken: str) -> None:
    """Notes a verdict on starter.py; one on any other file, or on one that has changed meanwhile, is not noted.

    Args:
        report: what the check came to.
        taken: the digest when it began.
    """
    if report.graded != report.lab.implementation("starter") or taken != digest(report.lab):
        return
    if report.broken:
        told = {task.name: TaskState("failing", report.broken) for task in report.lab.tasks}
    else:
        told = {result.task.name: state_of(result) for result in report.tasks}
    _write(report.lab, {"digest": taken, "tasks": {name: [state.state, state.why] for name, state in told.items()}})


def hints_seen(lab: Lab, task: Task) -> int:
    """How many of a task's hints have been shown, 0 to 3."""
    seen = _read(lab).get("hints")
    count = seen.get(task.name) if isinstance(seen, dict) else 0
    return min(count, len(task.hints)) if isinstance(count, int) and count > 0 else 0


def note_hint(lab: Lab, task: Task, seen: int) -> None:
    """Notes that this many of a task's hints have been shown."""
    hints = _read(lab).get("hints")
    _write(lab, {"hints": (hints if isinstance(hints, dict) else {}) | {task.name: seen}})


def forget(lab: Lab) -> None:
    """Back to the beginning: no verdict, no hint."""
    _write(lab, {"digest": "", "tasks": {}, "hints": {}})


def _rests_on(lab: Lab) -> Iterator[Path]:
    yield from (lab.implementation("starter"), lab.tests, lab.folder / "lab.toml", ROOT / "labs" / "conftest.py")
    yield ROOT / "pyproject.toml"
    for folder, files in (
        (lab.folder / "captured", "**/*.json"),
        (ROOT / "mini_vllm", "**/*.py"),
        (ROOT / "labkit", "**/*.py"),
        (ROOT / "requirements", "*.txt"),
    ):
        yield from sorted(folder.glob(files))


def _state(told: object, task: Task) -> TaskState:
    match told.get(task.name) if isinstance(told, dict) else None:
        case [str(state), str(why)] if state in get_args(State):
            return TaskState(state, why)  # type: ignore[arg-type]
    return TaskState("not checked")


def _text(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _file(lab: Lab) -> Path:
    return FOLDER / f"{lab.number}.json"


def _read(lab: Lab) -> dict[str, Any]:
    """What is noted; whatever cannot be read as such is as good as nothing."""
    try:
        noted = json.loads(_file(lab).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _write(lab: Lab, changed: dict[str, object]) -> None:
    try:
        FOLDER.mkdir(exist_ok=True)
    except OSError as fault:
        raise UserError(f"your progress cannot be kept in {FOLDER}: {fault.strerror}; make labs/ yours to write") from fault
    atomic_write(_file(lab), json.dumps(_read(lab) | changed, indent=1) + "\n")

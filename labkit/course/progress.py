"""A learner's progress: the last verdict on each starter.py, and how many hints were shown.

It is stored in labs/.progress, which git ignores: a checkout, a stash and ``git clean -fd`` do not delete it, and it is
mounted into a container together with labs/. A verdict is valid only while every file that it depends on is unchanged.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from labkit.system.atomic_write import atomic_write
from labkit.system.errors import UserError
from labkit.system.labs import ROOT, Lab, Task

if TYPE_CHECKING:
    from labkit.check.report import Report, TaskResult

FOLDER = ROOT / "labs" / ".progress"

State = Literal["not started", "failing", "passed", "passed on captured data only", "skipped", "not checked"]
DONE: tuple[State, ...] = ("passed", "passed on captured data only", "skipped")
"""The states of a task that needs no more work on this machine."""


class TaskState(NamedTuple):
    """The state of a task, and ``why``: the reason in words, empty if the state needs none."""

    state: State
    why: str = ""


def states(lab: Lab) -> dict[str, TaskState]:
    """Returns the state of each task of the learner's starter.py, by the task's name."""
    if _content(lab.implementation("starter")) == _content(lab.pristine):
        return {task.name: TaskState("not started") for task in lab.tasks}
    stored = _read(lab)
    verdict = _section(stored, "tasks") if stored.get("digest") == digest(lab) else {}
    return {task.name: _stored_state(verdict.get(task.name)) for task in lab.tasks}


def next_task(lab: Lab) -> Task | None:
    """Returns the first task of the lab whose state is not in DONE, or None."""
    known = states(lab)
    return next((task for task in lab.tasks if known[task.name].state not in DONE), None)


def state_of(result: TaskResult) -> TaskState:
    """Returns the state of a task that has been graded."""
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
        return TaskState("not checked", "did not run: a test before it did not finish")
    return TaskState("failing", failed[0].partition("\n")[0])


def digest(lab: Lab) -> str:
    """Returns the SHA-256 of all that a verdict on starter.py depends on: the files of lab, engine and labkit, pins, Python."""
    sha = hashlib.sha256(f"{sys.version} vllm:{importlib.util.find_spec('vllm') is not None}".encode())
    files = [lab.implementation("starter"), lab.tests, lab.folder / "lab.toml"]
    captured = f"{lab.folder.relative_to(ROOT)}/captured/**/*.json"
    shared = ("labs/conftest.py", "pyproject.toml", "mini_vllm/**/*.py", "labkit/**/*.py", "requirements/*.txt")
    for pattern in (captured, *shared):
        files += sorted(ROOT.glob(pattern))
    for path in files:
        sha.update(f"\0{path.relative_to(ROOT)}\0".encode())
        sha.update(_content(path))
    return sha.hexdigest()


def record_report(report: Report, digest_before: str) -> None:
    """Stores a verdict on starter.py. A verdict on another file, or on files that have changed since, is not stored.

    Args:
        report: the verdict.
        digest_before: the lab's :func:`digest` when the check began.

    Raises:
        UserError: labs/.progress cannot be written.
    """
    if report.graded != report.lab.implementation("starter") or digest_before != digest(report.lab):
        return
    broken = TaskState("failing", report.broken) if report.broken else None
    tasks = {result.task.name: broken or state_of(result) for result in report.tasks}
    _write(report.lab, {"digest": digest_before, "tasks": tasks})


def hints_seen(lab: Lab, task: Task) -> int:
    """Returns how many of a task's hints have been shown, 0 to 3."""
    count = _section(_read(lab), "hints").get(task.name)
    return min(count, len(task.hints)) if isinstance(count, int) and count > 0 else 0


def record_hint(lab: Lab, task: Task, seen: int) -> None:
    """Stores how many of a task's hints have been shown."""
    _write(lab, {"hints": _section(_read(lab), "hints") | {task.name: seen}})


def forget(lab: Lab) -> None:
    """Deletes the verdict and the hint counts of a lab."""
    _write(lab, {"digest": "", "tasks": {}, "hints": {}})


def _stored_state(stored: object) -> TaskState:
    match stored:
        case [str(state), str(why)] if state in get_args(State):
            return TaskState(state, why)  # type: ignore[arg-type]
    return TaskState("not checked")


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _read(lab: Lab) -> dict[str, Any]:
    """Returns what is stored about a lab, by section; {} if the file is missing or not valid JSON."""
    try:
        stored = json.loads((FOLDER / f"{lab.number}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _section(stored: dict[str, Any], name: str) -> dict[str, Any]:
    section = stored.get(name)
    return section if isinstance(section, dict) else {}


def _write(lab: Lab, changed: dict[str, object]) -> None:
    try:
        FOLDER.mkdir(exist_ok=True)
    except OSError as fault:
        raise UserError(f"your progress cannot be stored in {FOLDER}: {fault.strerror}; make labs/ writable") from fault
    atomic_write(FOLDER / f"{lab.number}.json", json.dumps(_read(lab) | changed, indent=1) + "\n")

"""What a learner does with a lab besides working on it: open it, be helped, see the solution, begin again."""

from __future__ import annotations

import difflib
import os
import shlex
import shutil
import subprocess
from datetime import datetime
from pathlib import Path

from labkit.course.progress import DONE, FOLDER, forget, hints_seen, next_task, note_hint, passed, states
from labkit.system.atomic_write import atomic_write
from labkit.system.errors import UserError
from labkit.system.labs import Lab, Task


def open_lab(lab: Lab) -> list[str]:
    """Opens the lab's README and starter.py in VS Code, where this is its terminal, or in $VISUAL or $EDITOR.

    Returns:
        What to say: where the two files are if there is no editor, and what to do next.

    Raises:
        UserError: the editor cannot be run.
    """
    files = [str(lab.folder / "README.md"), str(lab.implementation("starter"))]
    command = editor()
    if command:
        try:
            subprocess.run([*command, *files], check=True)
        except (OSError, subprocess.CalledProcessError) as fault:
            raise UserError(f"{shlex.join(command)} could not open the lab: {fault}; set EDITOR to a command that can") from fault
        opened = []
    else:
        opened = ["No editor is known here: EDITOR is not set, and there is no VS Code. Open these two:", *files]
    return [*opened, f"Next: ./lab watch {lab.number} in a second terminal; it gives a verdict at every save"]


def editor() -> list[str]:
    """The command that opens files; empty where none is known."""
    code = ["code", "--reuse-window"] if shutil.which("code") else []
    if code and os.environ.get("TERM_PROGRAM") == "vscode":
        return code
    return shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "") or code


def task_to_help(lab: Lab, name: str | None) -> Task:
    """The named task, or the first that is left.

    Raises:
        UserError: there is no such task, or none is left.
    """
    if name:
        return lab.find_task(name)
    task = next_task(lab)
    if task is None:
        raise UserError(f"lab {lab.number} has nothing left to do; name a task for its hints: ./lab hint {lab.number} TASK")
    return task


def next_hint(lab: Lab, task: Task) -> str:
    """One more of the task's hints, each time; the last is given again and again."""
    seen = min(hints_seen(lab, task) + 1, len(task.hints))
    note_hint(lab, task, seen)
    return f"Hint {seen} of {len(task.hints)} for {task.name}: {task.hints[seen - 1]}"


def solution(lab: Lab, give_up: bool) -> list[str]:
    """What the solution does differently from starter.py, as lines of a unified diff.

    Raises:
        UserError: the lab has not passed, and nobody has given up; or starter.py cannot be read.
    """
    if not give_up and not passed(lab):
        known = states(lab)
        left = [task.name for task in lab.tasks if known[task.name].state not in DONE]
        raise UserError(
            f"lab {lab.number} has not passed yet; left: {', '.join(left)}. ./lab hint {lab.number} helps, "
            f"./lab check {lab.number} takes the verdict, and --i-give-up shows the solution all the same"
        )
    starter = lab.implementation("starter")
    try:
        yours = starter.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as fault:
        raise UserError(f"{starter} cannot be read: {fault.strerror}; ./lab reset {lab.number} brings it back") from fault
    ours = lab.implementation("solution").read_text(encoding="utf-8").splitlines()
    return list(difflib.unified_diff(yours, ours, "starter.py (yours)", "solution.py", lineterm=""))


def reset(lab: Lab, now: datetime) -> Path | None:
    """Restores starter.py as the course gives it out; what was there is kept.

    Returns:
        The copy of the old work; None if nothing had been written.

    Raises:
        UserError: the copy or the starter cannot be written; nothing is lost then.
    """
    starter, pristine = lab.implementation("starter"), lab.pristine.read_text(encoding="utf-8")
    try:
        old = starter.read_bytes()
    except FileNotFoundError:
        old = pristine.encode()
    kept = None
    if old != pristine.encode():
        kept = FOLDER / "kept" / f"lab-{lab.number}-{now:%Y-%m-%d-%H%M%S-%f}.py"
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(old)
        except OSError as fault:
            raise UserError(f"your work could not be copied to {kept}: {fault.strerror}; nothing has been changed") from fault
    atomic_write(starter, pristine)
    forget(lab)
    return kept

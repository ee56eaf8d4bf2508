"""Opens a lab in an editor, shows its hints and its solution, and restores its starter.py."""

from __future__ import annotations

import difflib
import os
import shlex
import shutil
import subprocess
from datetime import datetime
from pathlib import Path

from labkit.course.progress import DONE, FOLDER, forget, hints_seen, next_task, record_hint, states
from labkit.system.atomic_write import atomic_write
from labkit.system.errors import UserError
from labkit.system.labs import Lab, Task


def open_lab(lab: Lab) -> list[str]:
    """Opens the lab's README and starter.py in VS Code, if run in VS Code's terminal, else in $VISUAL or $EDITOR.

    Returns:
        The lines to print: the paths of both files if there is no editor, and the next command.

    Raises:
        UserError: the editor cannot be run, or exits with an error.
    """
    files = [str(lab.folder / "README.md"), str(lab.implementation("starter"))]
    left = ["No editor was found: EDITOR is not set, and VS Code is not on the PATH. Open these files:", *files]
    if command := editor():
        try:
            subprocess.run([*command, *files], check=True)
        except (OSError, subprocess.CalledProcessError) as fault:
            raise UserError(f"{shlex.join(command)} could not open the lab: {fault}; set EDITOR to a command that can") from fault
        left = []
    return [*left, f"Next: ./lab watch {lab.number} in a second terminal; it grades starter.py at every save"]


def editor() -> list[str]:
    """Returns the editor's command and its options; empty if no editor is set or found."""
    code = ["code", "--reuse-window"] if shutil.which("code") else []
    if code and os.environ.get("TERM_PROGRAM") == "vscode":
        return code
    return shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "") or code


def task_to_help(lab: Lab, name: str | None) -> Task:
    """Returns the task with this name; without a name, the first task that is not done.

    Raises:
        UserError: the lab has no task of this name, or no name is given and every task is done.
    """
    if task := lab.find_task(name) if name else next_task(lab):
        return task
    raise UserError(f"every task of lab {lab.number} is done; name a task to see its hints: ./lab hint {lab.number} TASK")


def next_hint(lab: Lab, task: Task) -> str:
    """Returns the task's next hint and records that it was shown; after the last hint, returns the last hint again."""
    seen = min(hints_seen(lab, task) + 1, len(task.hints))
    record_hint(lab, task, seen)
    return f"Hint {seen} of {len(task.hints)} for {task.name}: {task.hints[seen - 1]}"


def solution(lab: Lab, give_up: bool) -> list[str]:
    """Returns the lines of a unified diff from the learner's starter.py to the solution.

    Raises:
        UserError: the lab has not passed and ``give_up`` is false, or starter.py cannot be read.
    """
    left = [task for task, (state, _) in states(lab).items() if state not in DONE]
    if left and not give_up:
        raise UserError(
            f"lab {lab.number} has not passed yet; open tasks: {', '.join(left)}. ./lab hint {lab.number} shows a hint, "
            f"./lab check {lab.number} grades your starter.py, and --i-give-up shows the solution anyway"
        )
    starter = lab.implementation("starter")
    try:
        yours = starter.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as fault:
        raise UserError(f"{starter} cannot be read: {fault.strerror}; ./lab reset {lab.number} restores it") from fault
    ours = lab.implementation("solution").read_text(encoding="utf-8").splitlines()
    return list(difflib.unified_diff(yours, ours, "starter.py (yours)", "solution.py", lineterm=""))


def reset(lab: Lab, now: datetime) -> Path | None:
    """Restores the original starter.py, after copying the learner's version to labs/.progress/kept.

    Returns:
        The path of the copy; None if starter.py was unchanged or missing.

    Raises:
        UserError: the copy or starter.py cannot be written; the learner's version is then still in place.
    """
    starter, pristine = lab.implementation("starter"), lab.pristine.read_text(encoding="utf-8")
    kept = None
    if starter.exists() and (old := starter.read_bytes()) != pristine.encode():
        kept = FOLDER / "kept" / f"lab-{lab.number}-{now:%Y-%m-%d-%H%M%S-%f}.py"
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(old)
        except OSError as fault:
            raise UserError(
                f"your work could not be copied to {kept}: {fault.strerror}; nothing has been changed. Make labs/ writable"
            ) from fault
    atomic_write(starter, pristine)
    forget(lab)
    return kept

"""The labs on disk: what lab.toml says of them, and how one of their implementations is loaded.

Nothing here imports torch: the board must be on the screen before torch would have been found.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tomllib
import traceback
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType

from labkit.system.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
"""The work tree: the folder with README.md, labs/ and mini_vllm/."""


@dataclass(frozen=True)
class Task:
    """One step of a lab: passed when every one of its tests has passed.

    Attributes:
        name: what the learner types, one word.
        title: what is to be done, in words.
        points: what it is worth.
        tests: names of test functions in the lab's test_lab.py; together the tasks name each of them exactly once.
        hints: three levels: a question, where to read, the shape of the answer.
    """

    name: str
    title: str
    points: int
    tests: tuple[str, ...]
    hints: tuple[str, str, str]


@dataclass(frozen=True)
class Lab:
    """One lab: a folder under labs/ with README.md, lab.toml, starter.py, solution.py and test_lab.py.

    Attributes:
        folder: where it is.
        number: "01".
        title: what is done in it.
        order: its place in the course.
        time_limit: seconds a test may take before it is called endless.
        tags: what it needs, "CPU-OK" or "GPU-OPT".
        tasks: its steps.
        boxed: whether a verdict is taken with the file in a process of its own; not where the tests hand it on to their own ones.
    """

    folder: Path
    number: str
    title: str
    order: int
    time_limit: int
    tags: tuple[str, ...]
    tasks: tuple[Task, ...]
    boxed: bool = True

    @classmethod
    def read(cls, folder: Path) -> Lab:
        """The lab that ``folder``/lab.toml describes."""
        data = tomllib.loads((folder / "lab.toml").read_text())
        tasks = tuple(Task(t["name"], t["title"], t["points"], tuple(t["tests"]), tuple(t["hints"])) for t in data.pop("tasks"))
        limit, boxed = data.get("time_limit", 10), data.get("boxed", True)
        return cls(folder, data["number"], data["title"], data["order"], limit, tuple(data["tags"]), tasks, boxed)

    @property
    def points(self) -> int:
        """What all tasks together are worth."""
        return sum(task.points for task in self.tasks)

    @cached_property
    def tests(self) -> Path:
        """The file that decides: test_lab.py."""
        return self.folder / "test_lab.py"

    @property
    def pristine(self) -> Path:
        """starter.py as the course gives it out, kept apart: in git a learner's own commits may stand before it."""
        return ROOT / "labkit" / "course" / "starters" / f"{self.folder.name}.txt"

    def find_task(self, name: str) -> Task:
        """The task with this name.

        Raises:
            UserError: naming the lab's tasks.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        raise UserError(f"lab {self.number} has no task {name!r}; its tasks are {', '.join(task.name for task in self.tasks)}")

    def implementation(self, choice: str) -> Path:
        """The file to grade.

        Args:
            choice: ``solution``, ``starter`` or the path of a .py file (relative to the current directory).

        Raises:
            UserError: ``choice`` is none of the three, or there is no such file.
        """
        if choice in ("solution", "starter"):
            return self.folder / f"{choice}.py"
        path = Path(choice).expanduser().absolute()
        if path.suffix != ".py":
            raise UserError(f"LAB_IMPL is {choice!r}; it must be 'solution' (the default), 'starter' or the path of a .py file")
        if not path.is_file():
            raise UserError(f"LAB_IMPL names {path}, and there is no such file; give the path of a .py file, or 'starter'")
        return path


def all_labs() -> list[Lab]:
    """Every lab, in the order in which they are meant to be done: 01, 03, 02, 04."""
    return sorted((Lab.read(toml.parent) for toml in (ROOT / "labs").glob("*/lab.toml")), key=lambda lab: lab.order)


def find_lab(number: str) -> Lab:
    """The lab with this number, ``1`` and ``01`` alike.

    Raises:
        UserError: naming the labs there are.
    """
    labs = all_labs()
    for lab in labs:
        if lab.number == number.zfill(2):
            return lab
    raise UserError(f"there is no lab {number!r}; the labs are {', '.join(lab.number for lab in labs)}")


def chosen_implementation() -> str:
    """What the environment asks to grade: ``LAB_IMPL``, or the solution."""
    return os.environ.get("LAB_IMPL") or "solution"


def load_implementation(path: Path) -> ModuleType:
    """Runs one starter.py or solution.py and returns it as a module, under a name no other file has.

    Three files are called starter.py: by name the second would be taken for the first.

    Raises:
        UserError: the file does not compile or fails while it is imported; the message names the line.
    """
    name = f"lab_{path.parent.name.replace('-', '_')}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        # Compiled anew each time: Python tells stale bytecode by size and whole seconds, and two saves can have both in common.
        exec(compile(path.read_bytes(), path, "exec", dont_inherit=True), vars(module))
    except SyntaxError as error:
        raise UserError(
            f"{path.name} line {error.lineno} is not Python yet: {error.msg}; mend that line, then check again"
        ) from error
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        raise UserError(
            f"{path.name} fails while it is imported, at line {lines[-1] if lines else 1}: {type(error).__name__}: {error}; "
            "a lab file should only define things, so mend that line, then check again"
        ) from error
    return module

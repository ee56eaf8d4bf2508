"""The labs on disk: reads lab.toml, and imports an implementation.

Nothing here imports torch, which takes a second: ``./lab`` alone shows the board at once.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tomllib
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from labkit.system.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
"""The work tree: the folder with README.md, labs/ and mini_vllm/."""


@dataclass(frozen=True)
class Task:
    """One task of a lab; it is passed if all of its tests pass.

    Attributes:
        name: one word, for the command line.
        tests: names of test functions in test_lab.py; each test function belongs to exactly one task.
        hints: three levels: a question, a place to read, the shape of the answer.
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
        number: two digits, "01".
        order: the number that sorts the labs of the course.
        time_limit: seconds after which a test is stopped.
        tags: the hardware it needs, "CPU-OK" or "GPU-OPT".
        boxed: whether ``./lab grade`` runs the file in a separate process; not if the tests start processes that import it.
    """

    folder: Path
    number: str
    title: str
    order: int
    tags: tuple[str, ...]
    tasks: tuple[Task, ...]
    time_limit: int = 10
    boxed: bool = True

    @classmethod
    def read(cls, folder: Path) -> Lab:
        """Reads ``folder``/lab.toml and returns the lab."""
        data = tomllib.loads((folder / "lab.toml").read_text())
        tasks = tuple(Task(**t | {"tests": tuple(t["tests"]), "hints": tuple(t["hints"])}) for t in data["tasks"])
        return cls(folder, **data | {"tags": tuple(data["tags"]), "tasks": tasks})

    @property
    def points(self) -> int:
        """The sum of the tasks' points."""
        return sum(task.points for task in self.tasks)

    @property
    def tests(self) -> Path:
        """The path of the lab's tests, test_lab.py."""
        return self.folder / "test_lab.py"

    @property
    def pristine(self) -> Path:
        """The path of a copy of the original starter.py; in git, a learner may have committed another version."""
        return ROOT / "labkit" / "course" / "starters" / f"{self.folder.name}.txt"

    def find_task(self, name: str) -> Task:
        """Returns the task with this name.

        Raises:
            UserError: no task has this name; the message lists the names.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        raise UserError(f"lab {self.number} has no task {name!r}; its tasks are {', '.join(task.name for task in self.tasks)}")

    def implementation(self, choice: str) -> Path:
        """Returns the path of the file to grade; ``choice`` is ``solution``, ``starter`` or the path of a .py file.

        Raises:
            UserError: the choice is none of the three, or the file does not exist.
        """
        if choice in ("solution", "starter"):
            return self.folder / f"{choice}.py"
        path = Path(choice).expanduser().absolute()
        if path.suffix != ".py":
            raise UserError(f"{choice!r} cannot be graded; give 'solution', 'starter' or the path of a .py file")
        if not path.is_file():
            raise UserError(f"there is no file {path}; give the path of a .py file, 'solution' or 'starter'")
        return path


def all_labs() -> list[Lab]:
    """Returns every lab, in the order of the course: 01, 03, 02, 04."""
    return sorted((Lab.read(toml.parent) for toml in (ROOT / "labs").glob("*/lab.toml")), key=lambda lab: lab.order)


def find_lab(number: str) -> Lab:
    """Returns the lab with this number, ``1`` or ``01``.

    Raises:
        UserError: no lab has this number; the message lists the numbers.
    """
    labs = all_labs()
    for lab in labs:
        if lab.number == number.zfill(2):
            return lab
    raise UserError(f"there is no lab {number!r}; the labs are {', '.join(lab.number for lab in labs)}")


def chosen_implementation() -> str:
    """Returns the value of the environment variable ``LAB_IMPL``, or ``solution`` if it is not set."""
    return os.environ.get("LAB_IMPL") or "solution"


def load_implementation(path: Path) -> ModuleType:
    """Imports a starter.py or solution.py as a module with a unique name, since every lab has files of these names.

    Raises:
        UserError: the file does not compile, or raises an error during import; the message names the line.
    """
    name = f"lab_{path.parent.name.replace('-', '_')}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        # Always compiled: Python detects stale bytecode by size and whole seconds, and two saves can agree in both.
        exec(compile(path.read_bytes(), path, "exec", dont_inherit=True), vars(module))
    except SyntaxError as error:
        raise UserError(
            f"{path.name} line {error.lineno} is not Python yet: {error.msg}; fix that line, then check again"
        ) from error
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        raise UserError(
            f"{path.name} fails while it is imported, at line {lines[-1] if lines else 1}: {type(error).__name__}: {error}; "
            "a lab file should only define things, so fix that line, then check again"
        ) from error
    return module

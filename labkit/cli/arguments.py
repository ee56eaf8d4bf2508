"""Panels of ``./lab --help``, arguments that several commands take, and their shell completion."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from labkit.system.labs import all_labs

LEARN, INSPECT, SET_UP, TEACH = "Do the labs", "Inspect a checkpoint, a load or a run", "Set up and test", "Grade a class"
"""The panels, in the order in which the help shows them."""


def lab_numbers() -> list[str]:
    """Returns the completions of a lab number."""
    return [lab.number for lab in all_labs()]


def task_names(context: typer.Context) -> list[str]:
    """Returns the completions of a task name: the tasks of the lab that is named before it."""
    return [task.name for lab in all_labs() if lab.number == context.params.get("number") for task in lab.tasks]


lab_argument = partial(typer.Argument, autocompletion=lab_numbers)
LabNumber = Annotated[str, lab_argument(metavar="01|02|03|04", help="lab number")]

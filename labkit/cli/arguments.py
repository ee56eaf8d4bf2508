"""Arguments that several commands take, and what Tab offers for them."""

from __future__ import annotations

from typing import Annotated

import typer

from labkit.system.labs import all_labs


def lab_numbers() -> list[str]:
    """What Tab offers where a lab is meant."""
    return [lab.number for lab in all_labs()]


def task_names(context: typer.Context) -> list[str]:
    """What Tab offers where a task of the lab before it is meant."""
    return [task.name for lab in all_labs() if lab.number == context.params.get("number") for task in lab.tasks]


LabNumber = Annotated[str, typer.Argument(metavar="01|02|03|04", help="which lab", autocompletion=lab_numbers)]

"""Gives a checkpoint's tensors one by one to the real class on meta: vLLM stops at the first name without a home, this does not.

Imports vLLM; ``labkit.load.explain.mend`` imports this only when it is needed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from labkit.checkpoints.headers import UNREAD_SUFFIXES, Shape
from labkit.checkpoints.known_models import Model
from labkit.load.trace.build import as_rank, build, group_of_one, parameter_dtype, said_by
from labkit.load.trace.coverage import Box, whole, without
from labkit.load.trace.live import mapping_rows
from labkit.load.trace.recorder import CopyRecorder

MOST_TENSORS = 2000
"""Of a checkpoint with more tensors than these, the layers 0, 1 and the last are asked about; the others have the same names."""


@dataclass(frozen=True)
class Survey:
    """What each tensor met with.

    Attributes:
        placed: tensors that were copied somewhere.
        skipped: tensors that the class passed over without a word.
        homeless: tensors that it has no place for, with their shapes.
        misfits: tensors whose place is of another shape, each with what was said.
        wanted: names that would fill parameters that are empty, with the shape of the parameter.
        empty: those parameters.
        parameters: all there are, with their shapes.
    """

    placed: tuple[str, ...]
    skipped: tuple[str, ...]
    homeless: dict[str, Shape]
    misfits: dict[str, str]
    wanted: dict[str, Shape]
    empty: dict[str, Shape]
    parameters: dict[str, Shape]


def look(model: Model) -> Survey:
    """Builds the class as the one rank of TP 1, and loads every tensor by itself."""
    meta = torch.device("meta")
    dtype = parameter_dtype(model)
    placed: list[str] = []
    skipped: list[str] = []
    homeless: dict[str, Shape] = {}
    misfits: dict[str, str] = {}
    with group_of_one(), as_rank(0, 1):
        built, _ = build(model, dtype, meta)
        recorder = CopyRecorder(dict(built.named_parameters()), lambda: built.state_dict(keep_vars=True))
        with recorder:
            for name, shape in _some(model).items():
                before = len(recorder.copies)
                tensor = torch.empty(shape, dtype=dtype, device=meta)
                try:
                    cast(Any, built).load_weights(recorder.watch([(name, tensor)]))
                except Exception as error:
                    if isinstance(error, KeyError) or re.search(
                        "no module or parameter|nested weight|has no parameter", str(error)
                    ):
                        homeless[name] = shape
                    else:
                        misfits[name] = said_by(error)
                    continue
                (placed if len(recorder.copies) > before else skipped).append(name)
    empty = _empty(recorder)
    wanted = _wanted(built, empty, {*placed, *misfits})
    passed = [name for name in skipped if not name.endswith(UNREAD_SUFFIXES)]
    parameters = {name: tuple(parameter.shape) for name, parameter in recorder.parameters.items()}
    return Survey(tuple(placed), tuple(passed), homeless, misfits, wanted, empty, parameters)


def _some(model: Model) -> dict[str, Shape]:
    """The tensors to ask about."""
    if len(model.shapes) <= MOST_TENSORS:
        return dict(model.shapes)
    numbers = {name: int(found[1]) for name in model.shapes if (found := re.search(r"\.(\d+)\.", name))}
    chosen = {0, 1, max(numbers.values(), default=0)}
    return {name: shape for name, shape in model.shapes.items() if numbers.get(name, 0) in chosen}


def _empty(recorder: CopyRecorder) -> dict[str, Shape]:
    """Parameters of which a part was neither copied to nor filled."""
    covered: dict[str, list[Box]] = defaultdict(list)
    for copy in recorder.copies:
        covered[copy.parameter].append(copy.destination)
    for name, box in recorder.fills:
        covered[name].append(box)
    shapes = {name: tuple(parameter.shape) for name, parameter in recorder.parameters.items()}
    return {name: shape for name, shape in shapes.items() if without(whole(shape), covered[name])}


def _wanted(built: nn.Module, empty: dict[str, Shape], known: set[str]) -> dict[str, Shape]:
    """The names by which the class would fill its empty parameters: its own names, and before them those that its rows fuse."""
    names: dict[str, Shape] = {}
    for parameter, shape in empty.items():
        fused = [parameter.replace(row.to, row.from_) for row in mapping_rows(built) if row.to in parameter]
        names |= {name: shape for name in [*fused, parameter] if name not in known}
    return names

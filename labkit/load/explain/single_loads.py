"""Loads a checkpoint's tensors one by one into the real class on meta, because vLLM stops at the first tensor that fails.

Imports vLLM; ``labkit.load.explain.find_fix`` imports this module only when it needs it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from labkit.checkpoints.headers import LEFT_OVER, Shape
from labkit.checkpoints.known_models import Model
from labkit.load.library_output import describe_error
from labkit.load.trace.boxes import Box, whole, without
from labkit.load.trace.real_load import stacked_rows
from labkit.load.trace.real_model import as_rank, build, group_of_one, parameter_dtype
from labkit.load.trace.recorder import CopyRecorder

MAX_TENSORS = 2000
"""Of a checkpoint with more tensors, only the layers 0, 1 and the last are loaded; the others have the same names."""

UNMATCHED = "no module or parameter|nested weight|has no parameter"
"""vLLM's messages for a name that the class has no parameter for."""


@dataclass(frozen=True)
class SingleLoads:
    """The result of each tensor's load.

    Attributes:
        loaded: tensors that were copied.
        ignored: tensors that the class ignored without a message.
        unmatched: tensors that the class has no parameter for, with their shapes.
        wrong_shape: tensors that do not fit their parameter, each with vLLM's message.
        unfilled: parameters of which a part was not filled, with their shapes.
        fillers: checkpoint names that would fill them, with the shape of the parameter.
        parameters: all parameters, with their shapes.
    """

    loaded: tuple[str, ...]
    ignored: tuple[str, ...]
    unmatched: dict[str, Shape]
    wrong_shape: dict[str, str]
    unfilled: dict[str, Shape]
    fillers: dict[str, Shape]
    parameters: dict[str, Shape]


def load_each_tensor(model: Model) -> SingleLoads:
    """Builds the class at TP 1, and loads every tensor by itself."""
    meta = torch.device("meta")
    dtype = parameter_dtype(model)
    loaded: list[str] = []
    ignored: list[str] = []
    unmatched: dict[str, Shape] = {}
    wrong_shape: dict[str, str] = {}
    with group_of_one(), as_rank(0, 1):
        built, _ = build(model, dtype, meta)
        recorder = CopyRecorder(dict(built.named_parameters()), lambda: built.state_dict(keep_vars=True))
        with recorder:
            for name, shape in _sample(model).items():
                before = len(recorder.copies)
                tensor = torch.empty(shape, dtype=dtype, device=meta)
                try:
                    cast(Any, built).load_weights(recorder.watch([(name, tensor)]))
                except Exception as error:
                    if isinstance(error, KeyError) or re.search(UNMATCHED, str(error)):
                        unmatched[name] = shape
                    else:
                        wrong_shape[name] = describe_error(error)
                    continue
                (loaded if len(recorder.copies) > before else ignored).append(name)
    unfilled = _unfilled(recorder)
    return SingleLoads(
        loaded=tuple(loaded),
        ignored=tuple(name for name in ignored if not name.endswith(LEFT_OVER)),
        unmatched=unmatched,
        wrong_shape=wrong_shape,
        unfilled=unfilled,
        fillers=_fillers(built, unfilled, {*loaded, *wrong_shape}),
        parameters={name: tuple(parameter.shape) for name, parameter in recorder.parameters.items()},
    )


def _sample(model: Model) -> dict[str, Shape]:
    """The tensors to load."""
    if len(model.shapes) <= MAX_TENSORS:
        return dict(model.shapes)
    numbers = {name: int(found[1]) for name in model.shapes if (found := re.search(r"\.(\d+)\.", name))}
    chosen = {0, 1, max(numbers.values(), default=0)}
    return {name: shape for name, shape in model.shapes.items() if numbers.get(name, 0) in chosen}


def _unfilled(recorder: CopyRecorder) -> dict[str, Shape]:
    """Parameters of which a part was neither copied to nor filled with a number."""
    boxes: dict[str, list[Box]] = defaultdict(list)
    for name, box in [*((copy.parameter, copy.destination) for copy in recorder.copies), *recorder.fills]:
        boxes[name].append(box)
    shapes = {name: tuple(parameter.shape) for name, parameter in recorder.parameters.items()}
    return {name: shape for name, shape in shapes.items() if without(whole(shape), boxes[name])}


def _fillers(built: nn.Module, unfilled: dict[str, Shape], known: set[str]) -> dict[str, Shape]:
    """The names that would fill the parameters: first those that the class's rows fuse, then the parameters' own."""
    names: dict[str, Shape] = {}
    for parameter, shape in unfilled.items():
        fused = [parameter.replace(row.to, row.from_) for row in stacked_rows(built) if row.to in parameter]
        names |= {name: shape for name in [*fused, parameter] if name not in known}
    return names

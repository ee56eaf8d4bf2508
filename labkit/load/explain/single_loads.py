"""Loads a checkpoint's tensors one by one into the real class on meta, because vLLM stops at the first tensor that fails.

Imports vLLM; ``labkit.load.explain.find_fix`` imports this module only when it needs it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from labkit.checkpoints.headers import UNREAD_SUFFIXES, Shape
from labkit.checkpoints.known_models import Model
from labkit.load.library_output import describe_error
from labkit.load.trace.boxes import Box, whole, without
from labkit.load.trace.real_load import stacked_rows
from labkit.load.trace.real_model import as_rank, build, group_of_one, parameter_dtype
from labkit.load.trace.recorder import CopyRecorder

MAX_TENSORS = 2000
"""Of a checkpoint with more tensors, only layers 0, 1 and the last are loaded; the other layers have the same tensor names."""

UNMATCHED = "no module or parameter|nested weight|has no parameter"
"""vLLM's messages for a name that the class has no parameter for."""


@dataclass
class SingleLoads:
    """The results of loading each tensor of a checkpoint by itself.

    Attributes:
        loaded: tensors that were copied.
        ignored: tensors that the class ignored without a message.
        unmatched: tensors that the class has no parameter for.
        wrong_shape: tensors that do not fit their parameter -> vLLM's message.
        unfilled: parameters of which a part was neither copied to nor filled with a number; ``parameters`` has all.
        fillers: checkpoint names that would fill the unfilled parameters -> the shape of the parameter.
    """

    loaded: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    unmatched: dict[str, Shape] = field(default_factory=dict)
    wrong_shape: dict[str, str] = field(default_factory=dict)
    unfilled: dict[str, Shape] = field(default_factory=dict)
    fillers: dict[str, Shape] = field(default_factory=dict)
    parameters: dict[str, Shape] = field(default_factory=dict)


def load_each_tensor(model: Model) -> SingleLoads:
    """Builds vLLM's class at TP 1 on the meta device, and loads each tensor (see MAX_TENSORS) by itself; returns the results."""
    meta, dtype, result = torch.device("meta"), parameter_dtype(model), SingleLoads()
    with group_of_one(), as_rank(0, 1):
        built, _ = build(model, dtype, meta)
        with CopyRecorder(dict(built.named_parameters()), lambda: built.state_dict(keep_vars=True)) as recorder:
            for name, shape in _sample(model).items():
                before = len(recorder.copies)
                try:
                    cast(Any, built).load_weights(recorder.watch([(name, torch.empty(shape, dtype=dtype, device=meta))]))
                except Exception as error:
                    if isinstance(error, KeyError) or re.search(UNMATCHED, str(error)):
                        result.unmatched[name] = shape
                    else:
                        result.wrong_shape[name] = describe_error(error)
                    continue
                if len(recorder.copies) > before:
                    result.loaded.append(name)
                elif not name.endswith(UNREAD_SUFFIXES):
                    result.ignored.append(name)
    result.parameters = {name: tuple(parameter.shape) for name, parameter in recorder.parameters.items()}
    boxes: dict[str, list[Box]] = defaultdict(list)
    for name, box in [*((copy.parameter, copy.destination) for copy in recorder.copies), *recorder.fills]:
        boxes[name].append(box)
    result.unfilled = {name: shape for name, shape in result.parameters.items() if without(whole(shape), boxes[name])}
    for parameter, shape in result.unfilled.items():  # first the names of the tensors that the class fuses
        fused = [parameter.replace(row.to, row.from_) for row in stacked_rows(built) if row.to in parameter]
        known = {*result.loaded, *result.wrong_shape}
        result.fillers |= {name: shape for name in [*fused, parameter] if name not in known}
    return result


def _sample(model: Model) -> dict[str, Shape]:
    """The tensors to load, name -> shape: all, or of more than MAX_TENSORS those of some layers."""
    numbers = {name: int(found[1]) for name in model.shapes if (found := re.search(r"\.(\d+)\.", name))}
    chosen = {0, 1, max(numbers.values(), default=0)} if len(model.shapes) > MAX_TENSORS else {0, *numbers.values()}
    return {name: shape for name, shape in model.shapes.items() if numbers.get(name, 0) in chosen}

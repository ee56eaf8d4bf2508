"""Strict weight loader: plans every copy, reports all faults in one error, and copies only if there is no fault.

The whole shape of a tensor is compared with the model, whichever shard this rank loads: a tensor that is too large is a fault;
its first rows are not loaded silently.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from mini_vllm.loading.checkpoint import Checkpoint, CheckpointError
from mini_vllm.loading.mapping import StackedRow, translate
from mini_vllm.parallel import Shard, ShardId, whole

Kind = Literal["missing", "partly covered", "unexpected", "duplicated", "truncated", "mis-shaped"]


@dataclass(frozen=True)
class Fault:
    """One mismatch between checkpoint and model.

    Attributes:
        kind: ``missing``: no tensor for a parameter. ``partly covered``: tensors for some rows of a parameter only.
            ``unexpected``: a tensor without a parameter. ``duplicated``: two tensors for the same rows, or one in two files.
            ``truncated``: a tensor with more rows or columns than would be read. ``mis-shaped``: any other wrong shape.
        name: the parameter for ``missing`` and ``partly covered``, else the tensor.
        message: names of tensor and parameter, and their shapes or rows.
    """

    kind: Kind
    name: str
    message: str


class LoadError(CheckpointError):
    """A checkpoint does not match the model; ``faults`` has every mismatch, the message has the first 20."""

    SHOWN = 20

    def __init__(self, checkpoint: Checkpoint, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        lines = [f"{fault.kind}: {fault.message}" for fault in faults[: self.SHOWN]]
        if len(faults) > self.SHOWN:
            lines.append(f"... and {len(faults) - self.SHOWN} more")
        super().__init__(
            f"the checkpoint in {checkpoint.folder} does not fit the model, {len(faults)} faults:\n  "
            + "\n  ".join(lines)
            + "\nnothing was loaded; compare these names and shapes with config.json and the model's mapping rows"
        )


BATCH = 64
"""Number of tensors copied before the mapped memory of their file is released; bounds the memory in addition to parameters."""

Target = tuple[str, ShardId]
"""(parameter name, shard id)."""


def load_weights(
    model: nn.Module, checkpoint: Checkpoint, rows: Sequence[StackedRow], ignored: Callable[[str], bool] = lambda name: False
) -> None:
    """Loads every row of every parameter of this rank exactly once.

    Args:
        model: a layer's ``shards`` (layers/linear.py) is this rank's part of each checkpoint tensor; a layer without ``shards``
            loads whole tensors.
        rows: the model's mapping rows.
        ignored: returns whether the tensor of a name may be left unused.

    Raises:
        LoadError: a tensor is unexpected or duplicated, has a wrong shape, or rows are in no tensor. Nothing was copied.
    """
    parameters = dict(model.named_parameters())
    shards = dict(_shards(model, parameters))
    found: dict[Target, str] = {}
    faults: list[Fault] = []
    for tensor in checkpoint:
        if ignored(tensor):
            continue
        for file in checkpoint.stored_again.get(tensor, ()):
            message = f"{tensor} is in {file} too, and not only in {checkpoint.file(tensor)}, which it would be read from"
            faults.append(Fault("duplicated", tensor, message))
        target = translate(tensor, rows)
        if target not in shards and target[0] in parameters:
            message = (
                f"{tensor} is stored fused, or its mapping row has a wrong shard id: the model loads {target[0]} from one tensor "
                "per shard id; split the tensor, or correct the row"
            )
            faults.append(Fault("duplicated", tensor, message))
        elif target not in shards:
            message = f"{tensor} goes to {target_name(target)}, which the model does not have"
            faults.append(Fault("unexpected", tensor, message))
        elif target in found:
            faults.append(Fault("duplicated", tensor, f"{tensor} and {found[target]} both go to {target_name(target)}"))
        else:
            found[target] = tensor
            faults += _mismatch(tensor, checkpoint.shape(tensor), target, shards[target])
    for name in parameters:
        faults += _uncovered(name, {target[1]: shard for target, shard in shards.items() if target[0] == name}, found)
    if faults:
        raise LoadError(checkpoint, faults)
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for file in sorted({checkpoint.file(tensor) for tensor in found.values()}):
            copies = [(target, tensor) for target, tensor in found.items() if checkpoint.file(tensor) == file]
            for start in range(0, len(copies), BATCH):
                batch = copies[start : start + BATCH]
                into = [shards[target].place(parameters[target[0]].data) for target, _ in batch]
                tensors = [shards[target].take(checkpoint[tensor]) for target, tensor in batch]
                deque(threads.map(_copy, into, tensors))
                del tensors
                checkpoint.release(file)


def _copy(into: Tensor, tensor: Tensor) -> None:
    """Copies ``tensor`` into ``into``, by numpy on one thread if the dtypes are equal: torch divides each copy among all threads,
    which is slower for hundreds of tensors, and much slower on a busy machine."""
    if into.dtype == tensor.dtype and into.device.type == "cpu":
        np.copyto(into.view(torch.uint8).numpy(), tensor.view(torch.uint8).numpy())
    else:
        into.copy_(tensor)


def _shards(model: nn.Module, parameters: Mapping[str, Tensor]) -> Iterator[tuple[Target, Shard]]:
    for name, parameter in parameters.items():
        owner, _, kind = name.rpartition(".")
        own = getattr(model.get_submodule(owner), "shards", None)
        for shard_id, shard in (own(kind) if own else whole(parameter)).items():
            yield (name, shard_id), shard


def _mismatch(tensor: str, shape: tuple[int, ...], target: Target, shard: Shard) -> Iterator[Fault]:
    if shape == shard.shape:
        return
    message = f"{tensor} is {shape}, and {target_name(target)} takes {shard.shape}"
    if len(shape) == len(shard.shape) and all(has >= takes for has, takes in zip(shape, shard.shape, strict=True)):
        beyond = " and ".join(
            f"{has - takes} {what}"
            for has, takes, what in zip(shape, shard.shape, ("rows", "columns"), strict=False)
            if has > takes
        )
        yield Fault("truncated", tensor, f"{message}: {beyond} would never be read")
    else:
        yield Fault("mis-shaped", tensor, message)


def _uncovered(parameter: str, shards: Mapping[ShardId, Shard], found: Container[Target]) -> Iterator[Fault]:
    missing = [shard_id for shard_id in shards if (parameter, shard_id) not in found]
    if len(missing) == len(shards):
        yield Fault("missing", parameter, f"{parameter} is in no tensor of the checkpoint")
    elif missing:
        rows = sum(stop - start for start, stop in (shard.target for shard in shards.values()))
        empty = " and ".join("[{}], rows {}:{}".format(shard_id, *shards[shard_id].target) for shard_id in missing)
        message = f"{parameter} has {rows} rows, and {empty} of them are in no tensor of the checkpoint"
        yield Fault("partly covered", parameter, message)


def target_name(target: Target) -> str:
    """Returns a target's name for error messages: the parameter, with its shard id in brackets if not None."""
    parameter, shard = target
    return parameter if shard is None else f"{parameter} [{shard}]"

"""The strict loader: plans every copy, reports everything that is wrong in one error, and only then copies.

A tensor's whole shape is compared with what the model was built for, whatever part of it this rank takes: one that is too large
is a fault, where a loader that narrows without looking reads the first rows and serves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
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
    """One thing that does not fit.

    Attributes:
        kind: ``missing``: no tensor for a parameter. ``partly covered``: tensors for some of its rows only. ``unexpected``: a
            tensor without a parameter. ``duplicated``: two tensors for the same rows, or one that is in two files.
            ``truncated``: a tensor with more rows or columns than would be read. ``mis-shaped``: any other shape.
        name: the parameter if a tensor is lacking, else the tensor.
        message: what, where, and both shapes.
    """

    kind: Kind
    name: str
    message: str


class LoadError(CheckpointError):
    """A checkpoint and a model that do not fit; the message lists what is wrong, with targets and shapes.

    Attributes:
        faults: all of it.
    """

    SHOWN = 20

    def __init__(self, checkpoint: Checkpoint, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        lines = [f"{fault.kind}: {fault.message}" for fault in faults[: self.SHOWN]]
        if len(faults) > self.SHOWN:
            lines.append(f"... and {len(faults) - self.SHOWN} more")
        super().__init__(
            f"the checkpoint in {checkpoint.folder} does not fit the model, {len(faults)} faults:\n  "
            + "\n  ".join(lines)
            + "\ncompare config.json with the checkpoint's shapes; nothing was loaded"
        )


BATCH = 64
"""Tensors copied before the memory is let go of that their bytes have come to: what a file takes besides the parameters."""

Target = tuple[str, ShardId]
"""A parameter, and which shard of it."""


def load_weights(
    model: nn.Module, checkpoint: Checkpoint, rows: Sequence[StackedRow], ignored: Callable[[str], bool] = lambda name: False
) -> None:
    """Fills every row of every parameter that this rank has, exactly once.

    Args:
        model: its layers say in ``shards`` (layers/linear.py) what this rank takes of which checkpoint tensor; a layer that
            says nothing takes its tensors whole.
        checkpoint: where the tensors come from.
        rows: the model's mapping rows.
        ignored: which tensors may be left over.

    Raises:
        LoadError: a tensor has no home, the wrong shape or a rival; a parameter stays empty. Nothing has been copied then.
    """

    def file_of(copy: tuple[Target, str]) -> str:
        return checkpoint.file(copy[1])

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
        if target not in shards:
            faults.append(_homeless(tensor, target, parameters))
        elif target in found:
            faults.append(Fault("duplicated", tensor, f"{tensor} and {found[target]} both go to {words(target)}"))
        else:
            found[target] = tensor
            faults += _misfit(tensor, checkpoint.shape(tensor), target, shards[target])
    for name in parameters:
        faults += _uncovered(name, {target[1]: shard for target, shard in shards.items() if target[0] == name}, found)
    if faults:
        raise LoadError(checkpoint, faults)
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for file, copies in groupby(sorted(found.items(), key=file_of), key=file_of):
            waiting = list(copies)
            while waiting:
                batch, waiting = waiting[:BATCH], waiting[BATCH:]
                into = [shards[target].place(parameters[target[0]].data) for target, _ in batch]
                tensors = [shards[target].take(checkpoint[tensor]) for target, tensor in batch]
                deque(threads.map(_copy, into, tensors))
                del tensors
                checkpoint.release(file)


def _copy(into: Tensor, tensor: Tensor) -> None:
    """Copies a tensor, on one thread if its numbers stay what they are: torch shares each among all, which costs more than it
    saves when there are hundreds, and much more when the machine does other things as well."""
    if into.dtype == tensor.dtype and into.device.type == "cpu":
        np.copyto(into.view(torch.uint8).numpy(), tensor.view(torch.uint8).numpy())
    else:
        into.copy_(tensor)


def _shards(model: nn.Module, parameters: Mapping[str, Tensor]) -> Iterator[tuple[Target, Shard]]:
    for name, parameter in parameters.items():
        owner, _, kind = name.rpartition(".")
        layer = model.get_submodule(owner)
        own: Callable[[str], Mapping[ShardId, Shard]] | None = getattr(layer, "shards", None)
        for shard_id, shard in (own(kind) if own else whole(parameter)).items():
            yield (name, shard_id), shard


def _homeless(tensor: str, target: Target, parameters: Mapping[str, Tensor]) -> Fault:
    if target[0] in parameters:
        # The parameter's own name, and no shard of it.
        message = f"{tensor} is stored fused, and the model takes {target[0]} from tensors of its own names"
        return Fault("duplicated", tensor, message)
    return Fault("unexpected", tensor, f"{tensor} goes to {words(target)}, which the model does not have")


def _misfit(tensor: str, shape: tuple[int, ...], target: Target, shard: Shard) -> Iterator[Fault]:
    if shape == shard.shape:
        return
    message = f"{tensor} is {shape}, and {words(target)} takes {shard.shape}"
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
    lacking = [shard_id for shard_id in shards if (parameter, shard_id) not in found]
    if len(lacking) == len(shards):
        yield Fault("missing", parameter, f"{parameter} is in no tensor of the checkpoint")
    elif lacking:
        rows = sum(stop - start for start, stop in (shard.target for shard in shards.values()))
        spans = [(shard_id, *shards[shard_id].target) for shard_id in lacking]
        empty = " and ".join(f"[{shard_id}], rows {start}:{stop}" for shard_id, start, stop in spans)
        message = f"{parameter} has {rows} rows, and {empty} of them are in no tensor of the checkpoint"
        yield Fault("partly covered", parameter, message)


def words(target: Target) -> str:
    """A target as messages have it."""
    parameter, shard = target
    return parameter if shard is None else f"{parameter} [{shard}]"

"""Tensor parallelism: several processes, the ranks, run the same model, each with its shard of every large weight.

torchrun starts the ranks, and torch.distributed connects them: gloo for tensors on CPUs, NCCL on GPUs. Layers do the exchanges.
Shoeybi et al. 2019, "Megatron-LM", section 3: shard one product by its outputs and the next by its inputs, and a single sum over
the ranks completes both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mini_vllm.contract import ModelLostError

ShardId = str | int | None
"""As in vLLM: "q", "k", "v", or 0 (gate) and 1 (up); None for a parameter that is loaded from one checkpoint tensor."""


@dataclass(frozen=True)
class Shard:
    """The part of a checkpoint tensor that a rank loads, and where in the parameter it is copied to.

    Attributes:
        shape: shape of the whole checkpoint tensor.
        source: (start, stop) of the part along ``dim`` of the checkpoint tensor; ``target`` is the same range of the parameter.
    """

    shape: tuple[int, ...]
    dim: int
    source: tuple[int, int]
    target: tuple[int, int]

    def take(self, tensor: Tensor) -> Tensor:
        """Returns the rank's part of the checkpoint tensor, a view."""
        return tensor.narrow(self.dim, self.source[0], self.source[1] - self.source[0])

    def place(self, parameter: Tensor) -> Tensor:
        """Returns the part of the parameter to copy to, a view."""
        return parameter.narrow(self.dim, self.target[0], self.target[1] - self.target[0])


def whole(parameter: Tensor) -> Mapping[ShardId, Shard]:
    """Returns {None: shard} for a parameter that every rank has in full."""
    return {None: Shard(tuple(parameter.shape), 0, (0, len(parameter)), (0, len(parameter)))}


class ParallelError(ValueError):
    """A size is not divisible by the number of ranks; the message has both numbers."""


class RankLostError(ModelLostError):
    """The connection to another rank was lost; the model cannot run again without that rank."""


@dataclass(frozen=True)
class TPGroup:
    """The ranks that share a model: ``rank`` is this process's number, from 0, ``size`` how many there are. Named as in vLLM."""

    rank: int = 0
    size: int = 1

    def divide(self, total: int, what: str) -> int:
        """Returns ``total / size``; raises ParallelError, with ``what`` in the message, if ``total`` is not divisible."""
        if total % self.size:
            divisors = [size for size in range(1, total + 1) if total % size == 0 and size <= 4 * self.size]
            raise ParallelError(
                f"{total} {what} cannot be shared evenly by {self.size} ranks; start {' or '.join(map(str, divisors))} ranks"
            )
        return total // self.size

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sums x over the ranks, in place on every rank, and returns x."""
        if self.size > 1:
            with watched():
                dist.all_reduce(x)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """Concatenates x (T, C) of every rank, in order of ranks; returns (T, size * C) on every rank."""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)]
        with watched():
            dist.all_gather(parts, x.contiguous())
        return torch.cat(parts, dim=-1)

    def broadcast(self, message: Any = None) -> Any:
        """Sends rank 0's message, any JSON value, and returns it on every rank; other ranks wait for it and pass no argument."""
        content = torch.tensor(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
        size = torch.tensor(len(content))
        with watched():
            dist.broadcast(size, 0)
            if self.rank:
                content = content.new_empty(int(size))
            dist.broadcast(content, 0)
        return json.loads(bytes(content.tolist()))


ALONE = TPGroup()

_current: ContextVar[TPGroup] = ContextVar("tp_group", default=ALONE)


def get_tp_group() -> TPGroup:
    """Returns the group of the enclosing :func:`tp_group` block, which new layers belong to; a single rank by default."""
    return _current.get()


@contextmanager
def tp_group(group: TPGroup) -> Iterator[None]:
    """Makes layers that are created inside the block belong to ``group``."""
    token = _current.set(group)
    try:
        yield
    finally:
        _current.reset(token)


def connect() -> TPGroup:
    """Connects the ranks that torchrun started, and returns their group; without torchrun, a group of one rank.

    Raises:
        RankLostError: the other ranks cannot be reached.
        ParallelError: this process was connected by an earlier call.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        return ALONE
    if dist.is_initialized():
        raise ParallelError(
            f"these {size} ranks serve a model already, and the other ranks run its steps only; start a job for each model"
        )
    # Ranks other than 0 may wait for days for the next step; a rank that dies closes its connections, which is an error at once.
    with watched():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(days=365))
    return TPGroup(dist.get_rank(), size)


@contextmanager
def watched() -> Iterator[None]:
    """Converts a RuntimeError inside the block, torch.distributed's error of a broken connection, to RankLostError."""
    try:
        yield
    except RuntimeError as error:
        raise RankLostError(
            f"rank {os.environ.get('RANK', 0)} of {os.environ.get('WORLD_SIZE', 1)} has lost another rank, and the model cannot "
            f"run without it: read that rank's error, and start the job again ({str(error).splitlines()[0][:200]})"
        ) from error

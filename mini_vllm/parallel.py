"""Tensor parallelism: several processes, the ranks, have a shard of every large weight each and run the same model.

torchrun starts them, and torch.distributed connects them: gloo for tensors on CPUs, NCCL on GPUs. A model's layers do the rest.
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
"""As in vLLM: "q", "k", "v", or 0 (gate) and 1 (up); None for a parameter that one checkpoint tensor fills."""


@dataclass(frozen=True)
class Shard:
    """A rank's part of a checkpoint tensor, and its place in the parameter.

    Attributes:
        shape: shape of the whole checkpoint tensor.
        source: start and stop of the part along ``dim`` of the checkpoint tensor; target the same of the parameter.
    """

    shape: tuple[int, ...]
    dim: int
    source: tuple[int, int]
    target: tuple[int, int]

    def take(self, tensor: Tensor) -> Tensor:
        """Selects the part of the checkpoint tensor."""
        return tensor.narrow(self.dim, self.source[0], self.source[1] - self.source[0])

    def place(self, parameter: Tensor) -> Tensor:
        """Selects the place in the parameter."""
        return parameter.narrow(self.dim, self.target[0], self.target[1] - self.target[0])


def whole(parameter: Tensor) -> Mapping[ShardId, Shard]:
    """The shard of a parameter that every rank has in full."""
    return {None: Shard(tuple(parameter.shape), 0, (0, len(parameter)), (0, len(parameter)))}


class ParallelError(ValueError):
    """A size is not divisible by the number of ranks; the message has both numbers."""


class RankLostError(ModelLostError):
    """Another rank was lost during communication; nothing can be computed without it."""


@dataclass(frozen=True)
class TPGroup:
    """The ranks that share a model: the number of this one, from 0, and how many there are. The name is vLLM's."""

    rank: int = 0
    size: int = 1

    def divide(self, total: int, what: str) -> int:
        """Each rank's part of ``total``; raises ParallelError if it is not divisible."""
        if total % self.size:
            divisors = [size for size in range(1, total + 1) if total % size == 0 and size <= 4 * self.size]
            raise ParallelError(
                f"{total} {what} cannot be shared evenly by {self.size} ranks; start {' or '.join(map(str, divisors))} of them"
            )
        return total // self.size

    def all_reduce(self, x: Tensor) -> Tensor:
        """Replaces x, on every rank, by the sum over the ranks."""
        if self.size > 1:
            with watched():
                dist.all_reduce(x)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """Concatenates (T, C) of every rank to (T, size * C), on every rank."""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)]
        with watched():
            dist.all_gather(parts, x.contiguous())
        return torch.cat(parts, dim=-1)

    def broadcast(self, message: Any = None) -> Any:
        """Sends rank 0's message, any JSON value, to every rank, which waits for it; nothing is pickled."""
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
    """The group of layers that are made now; a single rank by default."""
    return _current.get()


@contextmanager
def tp_group(group: TPGroup) -> Iterator[None]:
    """Layers made inside the block belong to ``group``."""
    token = _current.set(group)
    try:
        yield
    finally:
        _current.reset(token)


def connect() -> TPGroup:
    """Connects the ranks that torchrun started; a process started alone is a group of one.

    Raises:
        RankLostError: the other ranks cannot be reached.
        ParallelError: the ranks are connected already.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        return ALONE
    if dist.is_initialized():
        raise ParallelError(
            f"these {size} ranks serve a model already, and the others follow that one; start a job for each model"
        )
    # A following rank may wait for days for its next step; a rank that dies closes its connections, which is an error at once.
    with watched():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(days=365))
    return TPGroup(dist.get_rank(), size)


@contextmanager
def watched() -> Iterator[None]:
    """Raises RankLostError for the backend's error of a broken connection."""
    try:
        yield
    except RuntimeError as error:
        raise RankLostError(
            f"rank {os.environ.get('RANK', 0)} of {os.environ.get('WORLD_SIZE', 1)} has lost another rank, and the model is "
            f"whole only with all: see what that one said, and start the job again ({str(error).splitlines()[0][:200]})"
        ) from error

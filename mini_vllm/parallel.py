"""Tensor parallelism: several processes, the ranks, hold a part of every large weight each, and run the same model side by side.

torch.distributed starts and connects them (torchrun): tensors on CPUs go over gloo, those on GPUs over NCCL. A model takes part
in it through the layers it is made of. Shoeybi et al. 2019, "Megatron-LM", section 3: cut one product by its outputs and the
next by its inputs, and one sum over the ranks makes both whole.
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
"""What vLLM calls it: "q", "k", "v", or 0 (gate) and 1 (up); None for a parameter that one checkpoint tensor fills."""


@dataclass(frozen=True)
class Shard:
    """What a rank takes of a checkpoint tensor, and where it lays it.

    Attributes:
        shape: the whole checkpoint tensor's.
        dim: the dimension that it is cut along.
        source: first and last + 1 of what is taken, along ``dim`` of the checkpoint tensor.
        target: the same along ``dim`` of the parameter, which has all of the other dimensions.
    """

    shape: tuple[int, ...]
    dim: int
    source: tuple[int, int]
    target: tuple[int, int]

    def take(self, tensor: Tensor) -> Tensor:
        """The part of the checkpoint tensor."""
        return tensor.narrow(self.dim, self.source[0], self.source[1] - self.source[0])

    def place(self, parameter: Tensor) -> Tensor:
        """The part of the parameter."""
        return parameter.narrow(self.dim, self.target[0], self.target[1] - self.target[0])


def whole(parameter: Tensor) -> Mapping[ShardId, Shard]:
    """Every rank has all of it."""
    return {None: Shard(tuple(parameter.shape), 0, (0, len(parameter)), (0, len(parameter)))}


class ParallelError(ValueError):
    """A size that this many ranks cannot share; the message has both numbers."""


class RankLostError(ModelLostError):
    """Another rank is gone in the middle of an exchange; nothing can be computed without it."""


@dataclass(frozen=True)
class TPGroup:
    """The ranks that share one model, as one of them sees it; vLLM's name for it is the same.

    Attributes:
        rank: this one's number, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def divide(self, total: int, what: str) -> int:
        """Each rank's part of ``total``.

        Raises:
            ParallelError: it leaves a remainder.
        """
        if total % self.size:
            fitting = [size for size in range(1, total + 1) if total % size == 0 and size <= 4 * self.size]
            raise ParallelError(
                f"{total} {what} cannot be shared evenly by {self.size} ranks; start {' or '.join(map(str, fitting))} of them"
            )
        return total // self.size

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of every rank's x, in x's own memory and on every rank."""
        if self.size > 1:
            with watched():
                dist.all_reduce(x)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """(T, C) of every rank, side by side in the order of ranks: (T, size * C), on every rank."""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)]
        with watched():
            dist.all_gather(parts, x.contiguous())
        return torch.cat(parts, dim=-1)

    def broadcast(self, message: Any = None) -> Any:
        """Rank 0's message, which is anything that JSON has, on every rank; one other than 0 waits for it. Nothing is pickled."""
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
    """The group that layers made now belong to; one rank alone unless told."""
    return _current.get()


@contextmanager
def tp_group(group: TPGroup) -> Iterator[None]:
    """Layers made inside belong to ``group`` for good."""
    token = _current.set(group)
    try:
        yield
    finally:
        _current.reset(token)


def connect() -> TPGroup:
    """Joins the ranks that torchrun started; a process that was started alone is a group of one.

    Raises:
        RankLostError: the others cannot be reached.
        ParallelError: it has joined them before.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        return ALONE
    if dist.is_initialized():
        raise ParallelError(
            f"these {size} ranks serve a model already, and the others follow that one; start a job for each model"
        )
    # A rank that follows waits for its next step as long as nobody asks; one that dies closes its connections, which is seen.
    with watched():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(days=365))
    return TPGroup(dist.get_rank(), size)


def disconnect() -> None:
    """Leaves the ranks, before the process ends: the backend's own threads would be torn out of their work."""
    dist.destroy_process_group()


@contextmanager
def watched() -> Iterator[None]:
    """Turns what the backend says of a broken connection into a sentence."""
    try:
        yield
    except RuntimeError as error:
        raise RankLostError(
            f"rank {os.environ.get('RANK', 0)} of {os.environ.get('WORLD_SIZE', 1)} has lost another rank, and the model is "
            f"whole only with all: see what that one said, and start the job again ({str(error).splitlines()[0][:200]})"
        ) from error

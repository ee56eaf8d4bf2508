"""Decode steps without the Python between their loops: what a step has called is called again in the next of its shape.

The same idea as vLLM's CUDA graphs (``CUDAGraphWrapper``, vllm/compilation/cuda_graph.py): a step is *captured* while it runs,
with the memory it used, and *replayed* after new inputs have been laid where the old ones were. A decode step of a small model
is a few hundred loops of a few microseconds each, and the Python between them costs as much again.

    decode steps of as many rows     1st       2nd        3rd        4th ...
                                     as it is  captured   replayed   replayed
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mini_vllm.forward_context import ForwardContext, KVCache, get_forward_context
from mini_vllm.layers.attention import PagedDecodes, paged_decodes
from mini_vllm.layers.compiled import Call, recorded_calls, suits, use_torchs_threads
from mini_vllm.parallel import get_tp_group

MOST_ROWS = 32
"""With more rows, Python is a small part of the step, and what a captured step used would be much memory to keep."""

Region = Callable[..., Tensor]
"""The part of a model that is captured: tensors, the step's rows first in each, to one tensor."""


@dataclass(frozen=True)
class Shape:
    """What two steps must have in common for one to be replayed as the other."""

    kv_cache: KVCache
    num_rows: int
    table_width: int


@dataclass(frozen=True)
class Graph:
    """One captured step.

    Attributes:
        shape: which steps it serves.
        inputs: where its inputs lie.
        decodes: where the loops read who is where, one for each sliding window of the model.
        calls: each loop with its arguments, in order; the arguments keep the memory alive.
        output: where its result lies after a replay.
    """

    shape: Shape
    inputs: tuple[Tensor, ...]
    decodes: tuple[PagedDecodes, ...]
    calls: tuple[Call, ...]
    output: Tensor

    def replay(self, inputs: tuple[Tensor, ...], step: PagedDecodes) -> Tensor:
        """The region's result for other inputs; good until the next replay."""
        for own, new in zip(self.inputs, inputs, strict=True):
            own.copy_(new)
        for decodes in self.decodes:
            decodes.block_tables.copy_(step.block_tables)
            decodes.lengths.copy_(step.lengths)
        use_torchs_threads()
        for loop, arguments in self.calls:
            loop(*arguments)
        return self.output


class Replayed:
    """A region of a model, replayed where that is possible and run as it is where it is not: in prefills, with an adapter, on
    several ranks, on a GPU, with many rows, or when the region computes anything outside of this package's own loops.

    Args:
        region: computes the same loops for the same shape; it may write to its inputs and to the KV cache, and keeps nothing.
    """

    def __init__(self, region: Region) -> None:
        self._region = region
        self._alone = get_tp_group().size == 1
        self._graph: Graph | None = None
        self._last: Shape | None = None
        self._foreign = False
        self.replays = 0

    def __call__(self, *inputs: Tensor) -> Tensor:
        """What ``region(*inputs)`` returns."""
        context = get_forward_context()
        if not self._may_replay(context, inputs[0]):
            return self._region(*inputs)
        step = paged_decodes(context, range(len(context.lengths)))
        shape = Shape(context.kv_cache, len(inputs[0]), step.block_tables.shape[1])
        if self._graph and self._graph.shape == shape:
            self.replays += 1
            return self._graph.replay(inputs, step)
        if self._last != shape:
            self._last = shape
            return self._region(*inputs)
        return self._capture(context, shape, inputs)

    def _may_replay(self, context: ForwardContext, rows: Tensor) -> bool:
        all_decodes = len(rows) == len(context.lengths) <= MOST_ROWS
        return all_decodes and not self._foreign and self._alone and not any(context.lora_ids) and suits(rows)

    def _capture(self, context: ForwardContext, shape: Shape, inputs: tuple[Tensor, ...]) -> Tensor:
        own = tuple(each.clone() for each in inputs)
        with recorded_calls() as calls, _Foreign() as foreign:
            output = self._region(*own)
        self._foreign = foreign.found
        if not self._foreign:
            self._graph = Graph(
                shape, own, tuple(group for (group,) in context.attention_metadata.values()), tuple(calls), output
            )
        return output


HARMLESS = torch.ops.aten.empty.memory_format, torch.ops.aten.detach_.default
"""Fresh memory, and what a tensor goes through on its way to numpy."""


class _Foreign(TorchDispatchMode):
    """Watches what torch is asked for and finds whatever is neither harmless nor another view of old memory: a computation, which
    a replay would leave out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in HARMLESS:
            known = {each.untyped_storage().data_ptr() for each in args if isinstance(each, Tensor)}
            made = [each for each in (result if isinstance(result, (list, tuple)) else [result]) if isinstance(each, Tensor)]
            is_view = not func._schema.is_mutable and all(each.untyped_storage().data_ptr() in known for each in made)
            self.found = self.found or not is_view
        return result

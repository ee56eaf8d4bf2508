"""Decode steps without the Python between their loops: a step's calls are recorded, and repeated for steps of the same shape.

As with vLLM's CUDA graphs (``CUDAGraphWrapper``, vllm/compilation/cuda_graph.py), a step is *captured* while it runs, with the
memory it uses, and *replayed* after new inputs are copied into that memory. A decode step of a small model is a few hundred loops
of a few microseconds each, and the Python between the loops takes as long as the loops.

    decode steps of one shape        1st       2nd        3rd        4th ...
                                     computed  captured   replayed   replayed
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mini_vllm.forward_context import ForwardContext, KVCache, get_forward_context
from mini_vllm.kernels.numba_jit import Call, recorded_calls, use_torchs_threads
from mini_vllm.kernels.paged_decode import PagedDecodes

MAX_ROWS = 32
"""With more rows, Python is a small part of the step, and the memory of a captured step is large."""

Region = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The part of a model that is captured: (hidden states, cos, sin), whose first dimension is the step's rows -> hidden states."""

Shape = tuple[KVCache, int, int]
"""(KV cache, number of rows, width of the block tables): a captured step can be replayed for steps with the same three."""


@dataclass(frozen=True)
class Graph:
    """One captured step: the calls of its loops in order, and the memory that the loops read and write. ``decodes`` has one group
    for each sliding window of the model."""

    shape: Shape
    inputs: tuple[Tensor, ...]
    write_slots: Tensor
    decodes: tuple[PagedDecodes, ...]
    calls: tuple[Call, ...]
    output: Tensor

    def replay(self, inputs: tuple[Tensor, ...], context: ForwardContext, step: PagedDecodes) -> Tensor:
        """Returns the region's output for other inputs of the same shape; the next replay overwrites this output."""
        for own, new in zip(self.inputs, inputs, strict=True):
            own.copy_(new)
        self.write_slots.copy_(context.write_slots)
        for decodes in self.decodes:
            decodes.block_tables.copy_(step.block_tables)
            decodes.lengths.copy_(step.lengths)
        use_torchs_threads()
        for loop, arguments in self.calls:
            loop(*arguments)
        return self.output


class DecodeGraph:
    """Computes a region of a model, by replay if possible: not for a step with a prefill, an adapter or more than MAX_ROWS rows,
    and never if torch computes anything in the region.

    The region must call the same loops for the same shape; it may write to its inputs and the KV cache, and to no other state.
    """

    def __init__(self, region: Region) -> None:
        self._region = region
        self._graph: Graph | None = None
        self._last: Shape | None = None
        self._uses_torch = False
        self.replays = 0

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Returns ``region(*inputs)``; the next call may overwrite it."""
        context = get_forward_context()
        all_decodes = len(inputs[0]) == len(context.lengths) <= MAX_ROWS
        if self._uses_torch or not all_decodes or any(context.lora_ids) or inputs[0].dtype != torch.float32:
            return self._region(*inputs)
        step = PagedDecodes.of(context, range(len(context.lengths)), None)
        shape = context.kv_cache, len(inputs[0]), step.block_tables.shape[1]
        if self._graph and self._graph.shape == shape:
            self.replays += 1
            return self._graph.replay(inputs, context, step)
        if self._last != shape:
            self._last = shape
            return self._region(*inputs)
        own = tuple(each.clone() for each in inputs)
        with recorded_calls() as calls, _TorchWatch() as watch:  # type: ignore[no-untyped-call]
            output = self._region(*own)
        self._uses_torch = watch.found
        if not self._uses_torch:
            decodes = tuple(group for (group,) in context.attention_metadata.values())
            self._graph = Graph(shape, own, context.write_slots, decodes, tuple(calls), output)
        return output


HARMLESS = torch.ops.aten.empty.memory_format, torch.ops.aten.detach_.default
"""torch operations that may be left out of a replay: allocation, and the conversion to numpy, which calls detach."""


class _TorchWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sets ``found`` if torch computes anything, which a replay would leave out; a view of an argument is no computation."""

    found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in HARMLESS:
            known = {each.untyped_storage().data_ptr() for each in args if isinstance(each, Tensor)}
            made = result if isinstance(result, (list, tuple)) else [result]
            new = any(isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in known for each in made)
            self.found = self.found or new or func._schema.is_mutable
        return result

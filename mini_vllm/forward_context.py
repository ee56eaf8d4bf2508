"""Forward context: a step's inputs beside tokens and positions. Layers read them here, so that a model need not pass them on.

request         a, 3 tokens in this step's chunk           b, one decode
tokens          a5  a6  a7                                 b9
row               0   1   2                                  3
query_start       0                                          3     4 (the end)
logits_indices            2                                  3
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from functools import cached_property
from math import prod
from mmap import mmap
from typing import Any, Self

import torch
from torch import Tensor


class KVCache:
    """The KV tensors of one engine, a pair per attention layer, allocated when the layer first runs.

    A slot is a block id times the block size plus the offset in the block; every layer's tensors have the same slots.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self._layers: dict[str, tuple[Tensor, Tensor]] = {}

    def layer(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """Returns a layer's keys and values, each (B, block_size, K, D); a first call allocates them like ``like`` (T, K, D)."""
        if name not in self._layers:
            shape = (self.num_blocks, self.block_size, *like.shape[1:])
            self._layers[name] = (_zeros(shape, like), _zeros(shape, like))
        return self._layers[name]


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    # Anonymous memory: the operating system allocates each page, zeroed, when the page is first written.
    return torch.frombuffer(mmap(-1, prod(shape) * like.element_size()), dtype=like.dtype).view(shape)


@dataclass(frozen=True)
class ForwardContext:
    """Inputs of one step for attention, LM head and adapters.

    Attributes:
        kv_cache: the engine's KV tensors.
        query_start: S + 1 numbers: the tokens of request s are the rows query_start[s]:query_start[s + 1].
        lengths: S numbers: tokens of request s in the cache after the step.
        block_tables: S tuples: the block ids of request s, in the order of positions; several requests may share blocks.
        write_slots: int64 of shape (T,): the slot of each token's key and value.
        logits_indices: int64 of shape (R,), ascending: the rows whose logits are needed.
        lora_ids: S numbers: the adapter of request s, 0 for none; empty when no request has one.
        attention_metadata: sliding window (None: none) -> the attention groups, which the first layer with this window computes.
    """

    kv_cache: KVCache
    query_start: tuple[int, ...]
    lengths: tuple[int, ...]
    block_tables: tuple[tuple[int, ...], ...]
    write_slots: Tensor
    logits_indices: Tensor
    lora_ids: tuple[int, ...] = ()
    attention_metadata: dict[int | None, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the step as a JSON object for another process, without kv_cache and attention_metadata: each has its own."""
        values = {name: getattr(self, name) for name in _STEP_FIELDS}
        return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, step: Mapping[str, Any], kv_cache: KVCache) -> Self:
        """Rebuilds a context from the result of :meth:`to_json` and this process's KV tensors."""
        return cls(kv_cache, **{name: _from_list(step[name], kind == "Tensor") for name, kind in _STEP_FIELDS.items()})

    @cached_property
    def rows_by_lora(self) -> dict[int, Tensor | slice]:
        """Adapter -> the rows of the requests that use it, int64 indices, or a slice if all do; empty when no request does."""
        rows: dict[int, list[int]] = {lora_id: [] for lora_id in self.lora_ids if lora_id}
        for request, lora_id in enumerate(self.lora_ids):
            if lora_id:
                rows[lora_id] += range(self.query_start[request], self.query_start[request + 1])
        num_tokens = self.query_start[-1]
        return {lora_id: slice(None) if len(own) == num_tokens else torch.tensor(own) for lora_id, own in rows.items()}


_STEP_FIELDS = {each.name: each.type for each in fields(ForwardContext) if each.name not in ("kv_cache", "attention_metadata")}


def _from_list(value: Any, is_tensor: bool) -> Any:
    if is_tensor:
        return torch.tensor(value, dtype=torch.int64)
    return tuple(_from_list(each, False) for each in value) if isinstance(value, list | tuple) else value


_current: ContextVar[ForwardContext | None] = ContextVar("forward_context", default=None)


@contextmanager
def set_forward_context(context: ForwardContext) -> Iterator[None]:
    """Makes :func:`get_forward_context` return ``context`` inside the block; raises RuntimeError while another step runs."""
    if _current.get() is not None:
        raise RuntimeError("a forward context is already set; leave that set_forward_context block before you enter another")
    token = _current.set(context)
    try:
        with torch.inference_mode():
            yield
    finally:
        _current.reset(token)


def get_forward_context() -> ForwardContext:
    """Returns the context of the running step; raises RuntimeError when no step runs, as in a call outside the engine."""
    context = _current.get()
    if context is None:
        raise RuntimeError("no forward context: attention needs the engine's KV slots, so run the model through LLM or LLMEngine")
    return context

"""What a step needs to know beside its tokens: which blocks hold whose keys and values. Models without attention never meet it.

request         a, 3 tokens so far in this step's chunk    b, one decode
tokens          a5  a6  a7                                 b9
row               0   1   2                                  3
query_start       0                                          3     4 (the end)
logits_indices            2                                  3
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from mmap import mmap
from typing import Any

import torch
from torch import Tensor


class KVCache:
    """The KV tensors of one engine, a pair per attention layer, made when the layer first asks for them.

    A block id times the block size, plus the offset inside the block, is a slot; every layer's tensors have the same slots.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self._layers: dict[str, tuple[Tensor, Tensor]] = {}

    def layer(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """The key and the value tensor of one layer.

        Args:
            name: the layer's name, unique in its model.
            like: (T, K, D), keys as the layer makes them: heads, head size, dtype and device are taken from it.

        Returns:
            Two tensors of shape (B, block_size, K, D), zero where no token was written to. On a CPU they take memory as
            they fill: the system hands out a page of zeros when it is first written.
        """
        if name not in self._layers:
            shape = (self.num_blocks, self.block_size, *like.shape[1:])
            self._layers[name] = (_zeros(shape, like), _zeros(shape, like))
        return self._layers[name]


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    return torch.frombuffer(mmap(-1, prod(shape) * like.element_size()), dtype=like.dtype).view(shape)


@dataclass(frozen=True)
class ForwardContext:
    """One step, as attention and the LM head see it.

    Attributes:
        kv_cache: the engine's KV tensors.
        query_start: S + 1 numbers: the tokens of request s are rows query_start[s] to query_start[s + 1].
        lengths: S numbers: how many tokens request s has in the cache when the step is done.
        block_tables: S tuples: the blocks where they live, in the order of positions; several requests may share some.
        write_slots: int64 of shape (T,): where each token's key and value are written.
        logits_indices: int64 of shape (R,), ascending: the rows whose logits are asked for.
        lora_ids: S numbers: which adapter request s asked for, 0 for none; left out when nobody asked for one.
        attention_metadata: what attention layers work out of all this once per step, by sliding window.
    """

    kv_cache: KVCache
    query_start: tuple[int, ...]
    lengths: tuple[int, ...]
    block_tables: tuple[tuple[int, ...], ...]
    write_slots: Tensor
    logits_indices: Tensor
    lora_ids: tuple[int, ...] = ()
    attention_metadata: dict[int | None, Any] = field(default_factory=dict)

    @cached_property
    def rows_by_lora(self) -> dict[int, Tensor | slice]:
        """Adapter -> the rows of the step whose requests asked for it; empty when none did. Worked out once per step."""
        rows: dict[int, list[int]] = {lora_id: [] for lora_id in self.lora_ids if lora_id}
        for request, lora_id in enumerate(self.lora_ids):
            if lora_id:
                rows[lora_id] += range(self.query_start[request], self.query_start[request + 1])
        num_tokens = self.query_start[-1]
        return {lora_id: slice(None) if len(own) == num_tokens else torch.tensor(own) for lora_id, own in rows.items()}


_current: ContextVar[ForwardContext | None] = ContextVar("forward_context", default=None)


@contextmanager
def set_forward_context(context: ForwardContext) -> Iterator[None]:
    """Makes ``context`` what the layers see, for one model call.

    Raises:
        RuntimeError: a step is already under way; one step runs at a time.
    """
    if _current.get() is not None:
        raise RuntimeError("a forward context is already set: one step must end before the next begins")
    token = _current.set(context)
    try:
        with torch.inference_mode():
            yield
    finally:
        _current.reset(token)


def get_forward_context() -> ForwardContext:
    """The step under way.

    Raises:
        RuntimeError: there is none: the model was called outside the engine.
    """
    context = _current.get()
    if context is None:
        raise RuntimeError("no forward context: attention needs the engine's KV slots, so run the model through LLM or LLMEngine")
    return context

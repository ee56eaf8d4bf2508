"""Causal attention over keys and values in scattered blocks (Kwon et al. 2023, "PagedAttention", section 4.1).

A step is divided into groups, each computed by one call of torch's scaled_dot_product_attention (SDPA): one group for every
prefill chunk, and one for all decodes. A group first gathers the keys and values of its requests from their blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mini_vllm.forward_context import ForwardContext, get_forward_context


class Attention(nn.Module):
    """Writes this step's keys and values to the KV cache, then computes attention of every request over its own tokens.

    Grouped queries (Ainslie et al. 2023, "GQA"): N query heads share K kv heads, G = N / K each.

    Args:
        name: identifies the layer's tensors in the KV cache; unique in its model.
        sliding_window: how many keys a query attends to, the newest, including the query's own; None for all.

    Attributes:
        write_kv: function that writes keys and values to the cache; kernels/install.py sets a faster one.
        group_decodes: function that makes the group of a step's decodes; kernels/install.py sets one that gathers nothing.
    """

    def __init__(self, name: str, sliding_window: int | None = None) -> None:
        super().__init__()
        self.name = name
        self.sliding_window = sliding_window
        self.write_kv: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None] = write_kv
        self.group_decodes: GroupRequests = gather_requests

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Maps q (T, N, D) and k (T, K, D), both after rotary embedding, and v (T, K, D), to (T, N * D)."""
        context = get_forward_context()
        keys, values = context.kv_cache.layer(self.name, k)
        self.write_kv(k, v, keys, values, context.write_slots)
        groups = context.attention_metadata.get(self.sliding_window)
        if groups is None:
            groups = context.attention_metadata[self.sliding_window] = self._groups(context, q)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for group in groups:
            group.attend(q, keys, values, out)
        return out.flatten(1)

    def _groups(self, context: ForwardContext, q: Tensor) -> list[AttentionGroup]:
        """Returns the groups of a step for this layer's window; only device and dtype of q are used."""
        num_queries = [stop - start for start, stop in zip(context.query_start, context.query_start[1:], strict=False)]
        groups = [gather_requests(context, [r], self.sliding_window, q) for r, count in enumerate(num_queries) if count > 1]
        if decodes := [r for r, count in enumerate(num_queries) if count == 1]:
            groups.append(self.group_decodes(context, decodes, self.sliding_window, q))
        return groups


def write_kv(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """Copies k and v, (T, K, D), to the slots (T,) of ``keys`` and ``values``, a layer's (B, block_size, K, D)."""
    slots = slots.to(k.device)
    keys.flatten(0, 1).index_copy_(0, slots, k)
    values.flatten(0, 1).index_copy_(0, slots, v)


class AttentionGroup(Protocol):
    """A group of a step's requests whose attention is computed in one call."""

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
        """Computes attention of the group's rows of q (T, N, D) over ``keys`` and ``values``; writes these rows of ``out``."""


GroupRequests = Callable[[ForwardContext, Sequence[int], int | None, Tensor], AttentionGroup]
"""(context, requests of one group, sliding window, queries of the step) -> the group."""


@dataclass(frozen=True)
class GatheredGroup:
    """Requests whose keys and values are gathered for one call of SDPA: one prefill chunk, or all decodes.

    Attributes:
        rows: the rows of the step that are the group's tokens.
        blocks: ids of the blocks to read, equally many for each request, or a slice when the ids are consecutive.
        num_requests: number of requests in this group, S here.
        num_keys: how many keys of each request's blocks are used, L here; the mask excludes keys past a request's end.
        mask: added to the scores, 0 where a query attends to a key, else -inf: (S, 1, 1, L), or (1, 1, n, L) of a chunk of n
            tokens. None if each decode attends to every key, or each token of a prefill to all keys up to its own.
    """

    rows: Tensor | slice
    blocks: Tensor | slice
    num_requests: int
    num_keys: int
    mask: Tensor | None

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
        """Gathers keys and values, then as :meth:`AttentionGroup.attend`."""
        q, k, v = q[self.rows], self._gather(keys), self._gather(values)
        grouped = q.view(len(q), k.shape[2], -1, k.shape[3])
        if len(q) == self.num_requests:  # decodes: the G queries of a kv head are SDPA's sequence, which reads the keys once
            attended = F.scaled_dot_product_attention(grouped, k.transpose(1, 2), v.transpose(1, 2), attn_mask=self.mask)
            out[self.rows] = attended.reshape(q.shape)
        else:  # a prefill: the kv heads are SDPA's batch; a stride of zero gives each to its G queries
            q = grouped.permute(1, 2, 0, 3)
            k, v = (heads.permute(2, 0, 1, 3).expand(-1, q.shape[1], -1, -1) for heads in (k, v))
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, is_causal=self.mask is None)
            # The rows of one request are consecutive, so out[rows] is a view.
            out[self.rows].view(grouped.shape).copy_(attended.permute(2, 0, 1, 3))

    def _gather(self, cache: Tensor) -> Tensor:
        """Selects the group's keys or values from (B, block_size, K, D): (S, L, K, D), a view if the blocks are consecutive."""
        blocks = cache[self.blocks] if isinstance(self.blocks, slice) else cache.index_select(0, self.blocks)
        return blocks.view(self.num_requests, -1, *cache.shape[2:])[:, : self.num_keys]


def gather_requests(context: ForwardContext, requests: Sequence[int], window: int | None, q: Tensor) -> AttentionGroup:
    """Makes the group of one request with any number of queries, or of several requests with one query each."""
    size = context.kv_cache.block_size
    num_queries = context.query_start[requests[0] + 1] - context.query_start[requests[0]]
    rows = [row for r in requests for row in range(context.query_start[r], context.query_start[r + 1])]
    # Blocks before the window of a request's first query are not read.
    oldest = [max(0, context.lengths[r] - num_queries + 1 - window) // size if window else 0 for r in requests]
    tables = [context.block_tables[r][first : -(-context.lengths[r] // size)] for r, first in zip(requests, oldest, strict=True)]
    num_blocks = max(map(len, tables))
    blocks = [block for table in tables for block in table + table[-1:] * (num_blocks - len(table))]
    first_keys = torch.tensor(oldest).view(-1, 1, 1, 1) * size
    lengths = torch.tensor([context.lengths[r] for r in requests]).view(-1, 1, 1, 1)
    num_keys = int((lengths - first_keys).max())
    key = first_keys + torch.arange(num_keys)
    query = lengths - num_queries + torch.arange(num_queries).unsqueeze(1)
    attends = key <= query
    if window:
        attends &= key > query - window
    no_mask = bool(attends.all()) if num_queries == 1 else num_keys == num_queries and not window
    return GatheredGroup(
        rows=as_slice(rows) or torch.tensor(rows, device=q.device),
        blocks=as_slice(blocks) or torch.tensor(blocks, device=q.device),
        num_requests=len(requests),
        num_keys=num_keys,
        mask=None if no_mask else torch.zeros(attends.shape, dtype=q.dtype).masked_fill_(~attends, float("-inf")).to(q.device),
    )


def as_slice(numbers: list[int]) -> slice | None:
    """Returns consecutive numbers as a slice, which indexes without a copy; None when the numbers are not consecutive."""
    first, count = numbers[0], len(numbers)
    return slice(first, first + count) if numbers == list(range(first, first + count)) else None

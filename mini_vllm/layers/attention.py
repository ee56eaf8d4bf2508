"""Causal attention over keys and values that live in scattered blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mini_vllm.forward_context import ForwardContext, get_forward_context
from mini_vllm.layers.paged_attention import paged_decode_attention


class Attention(nn.Module):
    """Writes this step's keys and values to their slots, then lets each request's queries see all of its own.

    Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with PagedAttention", section 4.1;
    grouped queries: Ainslie et al. 2023, "GQA". N query heads share K kv heads, G = N / K each.

    Args:
        name: of the layer, unique in its model: whose keys and values these are.
        sliding_window: how many keys a query sees, its own the last of them; None for all.
    """

    def __init__(self, name: str, sliding_window: int | None = None) -> None:
        super().__init__()
        self.name = name
        self.sliding_window = sliding_window

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of every request in the step.

        Args:
            q: (T, N, D), rotated already.
            k: (T, K, D), rotated already.
            v: (T, K, D).

        Returns:
            (T, N * D).
        """
        context = get_forward_context()
        groups = context.attention_metadata.get(self.sliding_window)
        if groups is None:
            groups = attention_groups(context, self.sliding_window, q)
            context.attention_metadata[self.sliding_window] = groups
        keys, values = context.kv_cache.layer(self.name, k)
        if isinstance(groups[0], PagedDecodes):
            return self._paged(groups[0], q, k, v, keys, values).flatten(1)
        slots = context.write_slots.to(k.device)
        keys.flatten(0, 1).index_copy_(0, slots, k)
        values.flatten(0, 1).index_copy_(0, slots, v)
        out = torch.empty_like(q)
        for group in groups:
            if isinstance(group, PagedDecodes):
                rows = group.rows
                out[rows] = self._paged(group, q[rows], k[rows], v[rows], keys, values)
            elif group.is_decode:
                out[group.rows] = self._decode(q[group.rows], group.read(keys), group.read(values), group.mask)
            else:  # a request's rows follow one another, so this is a view
                self._prefill(q[group.rows], group.read(keys), group.read(values), group.mask, out[group.rows])
        return out.flatten(1)

    def _paged(self, group: PagedDecodes, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return paged_decode_attention(q, k, v, keys, values, group.block_tables, group.lengths, self.sliding_window)

    def _decode(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """S requests with one query each, (S, N, D), over keys (S, L, K, D). The G queries of a kv head stand where SDPA
        expects the queries of a sequence, so that its keys are read once for all of them."""
        grouped = q.view(len(q), k.shape[2], -1, k.shape[3])
        out = F.scaled_dot_product_attention(grouped, k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
        return out.reshape(q.shape)

    def _prefill(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor) -> None:
        """n queries of one request, (n, N, D), over keys (1, L, K, D). The kv heads stand where SDPA expects the batch, and
        each is given to its G queries by a stride of zero."""
        grouped = (len(q), k.shape[2], -1, k.shape[3])
        q = q.view(grouped).permute(1, 2, 0, 3)
        k, v = (heads.permute(2, 0, 1, 3).expand(-1, q.shape[1], -1, -1) for heads in (k, v))
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        out.view(grouped).copy_(seen.permute(2, 0, 1, 3))


@dataclass(frozen=True)
class PagedDecodes:
    """All decodes of a step in float32 on a CPU: their attention reads the blocks where they lie, and writes to them. Where it is
    the first group of a step, it is the only one.

    Attributes:
        rows: which rows of the step the queries are.
        block_tables: int64 of shape (S, blocks of the longest request, rounded up to TABLE_STEP), padded with zeros.
        lengths: int64 of shape (S,): the tokens of each request in the cache.
    """

    rows: Tensor | slice
    block_tables: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class AttentionGroup:
    """Requests whose keys and values are gathered for one call of SDPA: a prefill chunk, or decodes that are not
    paged.

    Attributes:
        is_decode: one query per request.
        rows: which rows of the step the queries are.
        blocks: the blocks to read, as many for each request: ids, or first and last when they follow one another.
        num_requests: S, of this group.
        num_keys: how many keys of each request's blocks are read.
        mask: added to the scores: 0 where a query sees a key, else -inf; (S, 1, 1, L), or (n, L) of a prefill chunk. None: a
            decode sees every key, a prefill those up to its own.
    """

    is_decode: bool
    rows: Tensor | slice
    blocks: Tensor | slice
    num_requests: int
    num_keys: int
    mask: Tensor | None

    def read(self, cache: Tensor) -> Tensor:
        """Keys or values of the group out of (B, block_size, K, D), as (S, L, K, D): a view where the blocks allow it."""
        blocks = cache[self.blocks] if isinstance(self.blocks, slice) else cache.index_select(0, self.blocks)
        return blocks.view(self.num_requests, -1, *cache.shape[2:])[:, : self.num_keys]


def attention_groups(context: ForwardContext, window: int | None, q: Tensor) -> list[PagedDecodes | AttentionGroup]:
    """Cuts a step into calls, prefills first; every layer with the same window makes the same ones. Queries say the device and
    the dtype."""
    num_queries = [stop - start for start, stop in zip(context.query_start, context.query_start[1:], strict=False)]
    decodes = [request for request, count in enumerate(num_queries) if count == 1]
    groups: list[PagedDecodes | AttentionGroup] = [
        _group(context, [request], window, q) for request, count in enumerate(num_queries) if count > 1
    ]
    if decodes:
        paged = q.dtype == torch.float32 and q.device.type == "cpu"
        groups.append(paged_decodes(context, decodes) if paged else _group(context, decodes, window, q))
    return groups


TABLE_STEP = 64
"""Tables are as wide as a multiple of it, so that a step's are mostly as wide as those of the step before."""


def paged_decodes(context: ForwardContext, requests: Sequence[int]) -> PagedDecodes:
    """The step's decodes, of these requests."""
    tables = [context.block_tables[r] for r in requests]
    num_blocks = -(-max(map(len, tables)) // TABLE_STEP) * TABLE_STEP
    rows = [context.query_start[r] for r in requests]
    return PagedDecodes(
        rows=_slice(rows) or torch.tensor(rows),
        block_tables=torch.tensor([table + (0,) * (num_blocks - len(table)) for table in tables]),
        lengths=torch.tensor([context.lengths[r] for r in requests]),
    )


def _group(context: ForwardContext, requests: Sequence[int], window: int | None, q: Tensor) -> AttentionGroup:
    """``requests``: one with any number of queries, or several with one each."""
    size = context.kv_cache.block_size
    num_queries = context.query_start[requests[0] + 1] - context.query_start[requests[0]]
    rows = [row for r in requests for row in range(context.query_start[r], context.query_start[r + 1])]
    # The first query of a request sees the fewest keys of its past; nobody reads the blocks before those.
    oldest = [max(0, context.lengths[r] - num_queries + 1 - window) // size if window else 0 for r in requests]
    tables = [context.block_tables[r][first : -(-context.lengths[r] // size)] for r, first in zip(requests, oldest, strict=True)]
    num_blocks = max(map(len, tables))
    blocks = [block for table in tables for block in table + table[-1:] * (num_blocks - len(table))]
    first_keys = torch.tensor(oldest).view(-1, 1, 1, 1) * size
    lengths = torch.tensor([context.lengths[r] for r in requests]).view(-1, 1, 1, 1)
    num_keys = int((lengths - first_keys).max())
    key = first_keys + torch.arange(num_keys)
    query = lengths - num_queries + torch.arange(num_queries).unsqueeze(1)
    seen = key <= query
    if window:
        seen &= key > query - window
    plain = bool(seen.all()) if num_queries == 1 else num_keys == num_queries and not window
    return AttentionGroup(
        is_decode=num_queries == 1,
        rows=_slice(rows) or torch.tensor(rows, device=q.device),
        blocks=_slice(blocks) or torch.tensor(blocks, device=q.device),
        num_requests=len(requests),
        num_keys=num_keys,
        mask=None if plain else torch.zeros(seen.shape, dtype=q.dtype).masked_fill_(~seen, float("-inf")).to(q.device),
    )


def _slice(numbers: list[int]) -> slice | None:
    """The same numbers as a slice, which indexes without a copy, if each is one more than that before it."""
    first, count = numbers[0], len(numbers)
    return slice(first, first + count) if numbers == list(range(first, first + count)) else None

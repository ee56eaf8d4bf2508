"""Embedding and LM head, sharded over the ranks by the vocabulary.

A vocabulary of 100, padded to 128, on rank 1 of 2:   rows of the checkpoint   64:100
                                                      rows of the parameter     0:36, and 36:64 are zero
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mini_vllm.forward_context import get_forward_context
from mini_vllm.layers.linear import LinearBase
from mini_vllm.parallel import Shard, ShardId, get_tp_group

PADDING = 64
"""The vocabulary is padded to a multiple of this number, as in vLLM, so that every rank has equally many rows."""


def padded_rows(vocab_size: int) -> int:
    """Returns the number of rows of each rank, padding included."""
    padded = -(-vocab_size // PADDING) * PADDING
    return get_tp_group().divide(padded, f"rows of a vocabulary of {vocab_size}, padded to a multiple of {PADDING},")


def vocab_shard(table: VocabParallelEmbedding | ParallelLMHead, parameter: str = "weight") -> Mapping[ShardId, Shard]:
    """Returns {None: shard}: this rank's rows of the checkpoint tensor, loaded into the first rows of the parameter."""
    rows, hidden_size = table.weight.shape
    first, last = (min(rank * rows, table.vocab_size) for rank in (table.tp.rank, table.tp.rank + 1))
    return {None: Shard((table.vocab_size, hidden_size), 0, (first, last), (0, last - first))}


def clear_padding(table: VocabParallelEmbedding | ParallelLMHead) -> None:
    """Sets the padding rows to zero, because no checkpoint has these rows."""
    table.weight.data[vocab_shard(table)[None].target[1] :].zero_()


class VocabParallelEmbedding(nn.Module):
    """Looks up a row of ``weight`` (V padded / ranks, H) per token; ParallelError if the rows are not divisible by the ranks."""

    shards = vocab_shard

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.tp = get_tp_group()
        self.vocab_size = vocab_size
        self.weight = nn.Parameter(torch.empty(padded_rows(vocab_size), hidden_size), requires_grad=False)
        clear_padding(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps token ids, int64 of shape (T,), to (T, H)."""
        tokens = tokens.to(self.weight.device)
        if self.tp.size == 1:
            return F.embedding(tokens, self.weight)
        own = tokens - self.tp.rank * len(self.weight)
        elsewhere = (own < 0) | (own >= len(self.weight))
        return self.tp.all_reduce(F.embedding(own.masked_fill(elsewhere, 0), self.weight).masked_fill_(elsewhere[:, None], 0))


class ParallelLMHead(LinearBase):
    """Computes logits from hidden states, for the rows in ``logits_indices`` only, so that a prefill does not compute the whole
    vocabulary for every token.

    ``weight`` has an embedding's shape, so that LM head and embedding may share one.
    """

    shards = vocab_shard

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__(hidden_size, padded_rows(vocab_size))
        self.vocab_size = vocab_size
        clear_padding(self)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps hidden states (T, H) to logits (R, V)."""
        logits = self.tp.all_gather(super().forward(hidden[get_forward_context().logits_indices]))
        return logits[:, : self.vocab_size]

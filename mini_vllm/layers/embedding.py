"""The two ends of a model: tokens to vectors, vectors to logits; the ranks share the vocabulary.

A vocabulary of 100, padded to 128, as rank 1 of 2 has it:   rows of the checkpoint   64:100
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
"""The vocabulary is padded to a multiple of it, as in vLLM: ranks have as many rows, and kernels like even numbers."""


class VocabParallelEmbedding(nn.Module):
    """A row of ``weight`` per token; each rank has some of the rows.

    Attributes:
        weight: (V padded / ranks, H).

    Raises:
        ParallelError: the ranks cannot share the padded vocabulary.
    """

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.tp = get_tp_group()
        self.vocab_size = vocab_size
        self.weight = nn.Parameter(torch.empty(padded_rows(vocab_size), hidden_size), requires_grad=False)
        clear_padding(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 of shape (T,) to (T, H)."""
        tokens = tokens.to(self.weight.device)
        if self.tp.size == 1:
            return F.embedding(tokens, self.weight)
        own = tokens - self.tp.rank * len(self.weight)
        elsewhere = (own < 0) | (own >= len(self.weight))
        return self.tp.all_reduce(F.embedding(own.masked_fill(elsewhere, 0), self.weight).masked_fill_(elsewhere[:, None], 0))

    def shards(self, parameter: str) -> Mapping[ShardId, Shard]:
        """The rows of this rank."""
        return vocab_shard(self)


class ParallelLMHead(LinearBase):
    """Hidden states to logits, for the rows that were asked for only: a prefill never pays the vocabulary for every token.

    ``weight`` has an embedding's shape, so that the two may share it.
    """

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__(hidden_size, padded_rows(vocab_size))
        self.vocab_size = vocab_size
        clear_padding(self)

    def forward(self, hidden: Tensor) -> Tensor:
        """(T, H) to (R, V), R rows of the step having been asked for."""
        logits = self.tp.all_gather(super().forward(hidden[get_forward_context().logits_indices]))
        return logits[:, : self.vocab_size]

    def shards(self, parameter: str) -> Mapping[ShardId, Shard]:
        """The rows of this rank."""
        return vocab_shard(self)


def padded_rows(vocab_size: int) -> int:
    """How many rows each rank has."""
    padded = -(-vocab_size // PADDING) * PADDING
    return get_tp_group().divide(padded, f"rows of a vocabulary of {vocab_size}, padded to a multiple of {PADDING},")


def vocab_shard(table: VocabParallelEmbedding | ParallelLMHead) -> Mapping[ShardId, Shard]:
    """The rows of this rank, which are the first of its parameter."""
    rows, hidden_size = table.weight.shape
    first, last = (min(rank * rows, table.vocab_size) for rank in (table.tp.rank, table.tp.rank + 1))
    return {None: Shard((table.vocab_size, hidden_size), 0, (first, last), (0, last - first))}


def clear_padding(table: VocabParallelEmbedding | ParallelLMHead) -> None:
    """Makes the rows zero that no checkpoint fills."""
    table.weight.data[vocab_shard(table)[None].target[1] :].zero_()

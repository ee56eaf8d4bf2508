"""The two ends of a model: tokens to vectors, vectors to logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mini_vllm.forward_context import get_forward_context
from mini_vllm.layers.linear import Linear


class VocabParallelEmbedding(nn.Module):
    """A row of ``weight`` (V, H) per token; named after the dimension vLLM cuts for tensor parallelism."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size), requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 of shape (T,) to (T, H)."""
        return F.embedding(tokens, self.weight)


class ParallelLMHead(Linear):
    """Hidden states to logits, for the rows that were asked for only: a prefill never pays the vocabulary for every token.

    ``weight`` is (V, H), an embedding's shape, so that the two may share it.
    """

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__(hidden_size, vocab_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """(T, H) to (R, V), R rows of the step having been asked for."""
        return super().forward(hidden[get_forward_context().logits_indices])

"""Lab 01, solution: a bigram model, added to an engine that has never heard of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mini_vllm import register_model

ARCHITECTURE = "BigramForCausalLM"
"""What config.json's "architectures" calls this model."""


class BigramModel:
    """Logits from a table, by the last token alone."""

    def __init__(self, table: Tensor) -> None:
        """Keeps the table.

        Args:
            table: floating point of shape (V, V); row t holds the logits of the token after t.
        """
        self.table = table

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits of the next token, for every token of the step.

        Args:
            tokens: int64 of shape (T,).
            positions: int64 of shape (T,), not needed: a contract may give more than a model takes.

        Returns:
            (T, V): row i answers tokens[i].
        """
        return self.table[tokens]

    @classmethod
    def from_checkpoint(cls, config: Mapping[str, Any], checkpoint: Mapping[str, Tensor]) -> BigramModel:
        """Builds the model from the tensor called ``table``.

        Raises:
            ValueError: the table is not (V, V) for config.json's vocab_size.
        """
        table, wanted = checkpoint["table"], (config["vocab_size"], config["vocab_size"])
        if table.shape != wanted:
            raise ValueError(f"the checkpoint's table is {tuple(table.shape)} and config.json's vocab_size asks for {wanted}")
        return cls(table)


def register() -> None:
    """Tells the engine who builds a bigram model."""
    register_model(ARCHITECTURE, BigramModel.from_checkpoint)

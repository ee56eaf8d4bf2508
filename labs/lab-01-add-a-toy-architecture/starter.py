"""Lab 01, your work: add a bigram model to an engine that has never heard of it.

A bigram model has one table. Row t holds the logits of whatever follows token t:

                      next token
                     0    1    2    3
        last   0  [ 0.1  0.2  0.0  2.0 ]   after 0 comes 3
        token  1  [ 1.5  0.0  0.3  0.1 ]   after 1 comes 0
               2  [ ...                ]

Replace each `raise NotImplementedError` and run `./lab check 01 --impl starter`.
T is the number of tokens in a step, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

ARCHITECTURE = "BigramForCausalLM"
"""What config.json's "architectures" calls this model."""


class BigramModel:
    """Logits from a table, by the last token alone."""

    def __init__(self, table: Tensor) -> None:
        """Keeps the table.

        Args:
            table: floating point of shape (V, V); row t holds the logits of the token after t.
        """
        raise NotImplementedError("task forward: keep the table")

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits of the next token, for every token of the step.

        Args:
            tokens: int64 of shape (T,): every token scheduled in this step, of every request, end to end.
            positions: int64 of shape (T,): where each token stands in its own request. The engine gives them to every
                model; this one does not need them.

        Returns:
            The table's dtype, of shape (T, V): row i answers tokens[i].
        """
        raise NotImplementedError("task forward: answer every token with its row of the table")

    @classmethod
    def from_checkpoint(cls, config: Mapping[str, Any], checkpoint: Mapping[str, Tensor]) -> BigramModel:
        """Builds the model from what is on disk.

        Args:
            config: config.json; ``config["vocab_size"]`` is V.
            checkpoint: tensors by name; the table is called ``table``.

        Returns:
            A model that answers from the checkpoint's table.

        Raises:
            ValueError: the table is not (V, V); the message has both shapes.
        """
        raise NotImplementedError("task checkpoint: build the model from the tensor called 'table'")


def register() -> None:
    """Tells the engine who builds an ARCHITECTURE; see ``register_model`` in mini_vllm/models/registry.py."""
    raise NotImplementedError("task checkpoint: register BigramModel.from_checkpoint under ARCHITECTURE")

"""The narrow waist: what the engine asks of a model, which is one method.

The letters of every docstring in mini_vllm:

    T  tokens in a step, of every request, end to end       H  hidden size
    S  requests in a step                                   N  query heads
    R  rows of a step whose logits are asked for            K  key/value heads
    L  tokens of one request so far                         D  head size
    V  vocabulary                                           B  blocks

vLLM splits the same duty in two, ``forward(input_ids, positions, ...)`` -> hidden states and ``compute_logits(hidden)``
-> logits (vllm/model_executor/models/interfaces_base.py); here one method does both.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class ContractError(Exception):
    """A model answered with something else than the logits that the contract asks for."""


class ModelLostError(Exception):
    """A model will answer nothing any more, whatever it is asked; the engine does not look for a request that is at fault."""


class Model(Protocol):
    """Anything that turns tokens into logits; the engine calls ``model.forward(...)`` and touches nothing else."""

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits of the next token.

        Args:
            tokens: int64 of shape (T,): every token scheduled in this step, of every request, end to end.
            positions: int64 of shape (T,): where each token stands in its own request, from 0.

        Returns:
            floating point of shape (T, V), or (R, V) when the model has already kept only the R rows that were asked for
            (``ForwardContext.logits_indices`` says which, and in what order): at least the last token of each request.
        """
        ...


def last_logits(logits: object, num_tokens: int, logits_indices: Tensor) -> Tensor:
    """The rows that were asked for.

    Args:
        logits: what the model returned.
        num_tokens: T.
        logits_indices: int64 of shape (R,): the rows.

    Returns:
        Floating point of shape (R, V).

    Raises:
        ContractError: ``logits`` is no floating point tensor of shape (T, V) or (R, V); the message says both shapes.
    """
    num_rows = logits_indices.numel()
    wanted = f"(T, V) = ({num_tokens}, V) or (R, V) = ({num_rows}, V)"
    if not isinstance(logits, Tensor):
        raise ContractError(f"forward() returned a {type(logits).__name__}; return logits, a tensor of shape {wanted}")
    if logits.dim() != 2 or logits.shape[0] not in (num_tokens, num_rows) or not logits.is_floating_point():
        raise ContractError(
            f"forward() was given {num_tokens} tokens, asked for the logits of {num_rows}, and returned {logits.dtype} of shape "
            f"{tuple(logits.shape)}; return floating point logits of shape {wanted}"
        )
    return logits[logits_indices] if logits.shape[0] == num_tokens else logits

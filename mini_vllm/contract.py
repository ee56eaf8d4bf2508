"""The contract between engine and model: one method.

Shape letters of every docstring in mini_vllm:

    T  tokens in a step, of every request, end to end       H  hidden size
    S  requests in a step                                   N  query heads
    R  rows of a step whose logits are needed               K  key/value heads
    L  tokens of one request so far                         D  head size
    V  vocabulary                                           B  blocks

In vLLM it is two methods, ``forward(input_ids, positions, ...)`` -> hidden states and ``compute_logits(hidden)`` -> logits
(vllm/model_executor/models/interfaces_base.py).
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class ContractError(Exception):
    """A model returned no logits of the right shape and type, or logits of which the largest is not finite."""


class ModelLostError(Exception):
    """A model cannot run again with any request, so the engine does not search for the request that caused the error."""


class Model(Protocol):
    """Any object that computes logits from tokens; the engine calls ``model.forward(...)`` and uses nothing else."""

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Computes the logits of the next token.

        Args:
            tokens: int64 of shape (T,): every token scheduled in this step, of every request, end to end.
            positions: int64 of shape (T,): the position of each token in its own request, from 0.

        Returns:
            logits, floating point of shape (T, V), or (R, V) with only the R rows in ``ForwardContext.logits_indices``, in that
            order: at least the last token of each request.
        """


def last_logits(logits: object, num_tokens: int, logits_indices: Tensor) -> Tensor:
    """Checks what a model returned for T = ``num_tokens``, and returns the rows ``logits_indices``, int64 (R,), of it: (R, V).

    Raises:
        ContractError: ``logits`` is not a floating point tensor of shape (T, V) or (R, V); the message has both shapes.
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

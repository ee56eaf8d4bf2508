"""Low-rank adapters of a linear layer: Hu et al. 2021, "LoRA", section 4.1.

    y = x W^T + s (x A^T) B^T        W (out, in)   A (r, in)   B (out, r)   s = alpha / r

Every request of a step uses the same W, and the A and B of the request's adapter. A fused layer has one A and one B for all its
projections, so that x is read once. For qkv_proj with an adapter of rank r on q and v, not on k:

    A   r rows of q's        B   rows of q   | B of q |   0    |
        r rows of v's            rows of k   |   0    |   0    |
                                 rows of v   |   0    | B of v |

vLLM computes a whole batch in one kernel (vllm/lora/punica_wrapper/), after Chen et al. 2023, "Punica".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from mini_vllm.forward_context import get_forward_context


@dataclass(frozen=True)
class LoRALayerWeights:
    """One adapter's A (r, in) and s * B (out, r) for one layer, on this rank; r is the sum over the layer's projections."""

    lora_a: Tensor
    lora_b: Tensor


def add_lora(out: Tensor, x: Tensor, adapters: Mapping[int, LoRALayerWeights]) -> None:
    """Adds the product of x (T, in) and each request's adapter to the request's rows of ``out`` (T, out), in place.

    ``adapters`` maps lora ids to weights; an adapter that is not in ``adapters`` adds nothing.

    Raises:
        ValueError: x does not have one row for each token of the step, so that the request of a row is not determined.
    """
    context = get_forward_context()
    num_tokens = context.query_start[-1]
    if context.rows_by_lora and x.shape[:-1] != (num_tokens,):
        raise ValueError(
            f"a layer with adapters was given {tuple(x.shape)} in a step of {num_tokens} tokens; give it ({num_tokens}, "
            f"{x.shape[-1]}), a row for each token, or an adapter without this layer"
        )
    for lora_id, rows in context.rows_by_lora.items():
        if lora_id in adapters:
            weights = adapters[lora_id]
            out[rows] += F.linear(F.linear(x[rows], weights.lora_a), weights.lora_b)

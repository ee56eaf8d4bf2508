"""Weights in the layout that their kernel reads fastest, made once when all are loaded; int8 is one such layout.

vLLM gives every linear layer a quant method for this, with the same hook (vllm/model_executor/layers/linear.py).
"""

from __future__ import annotations

from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mini_vllm.layers.linear import Linear

QUANTIZATIONS = (None, "int8")


class Kernel(Protocol):
    """A weight that knows how to be multiplied with; it is built from the plain weight (out, in) and bias (out,) or None."""

    def __call__(self, x: Tensor) -> Tensor:
        """(T, in) to (T, out)."""
        ...


class PackedKernel:
    """float32 weights cut into the blocks that oneDNN's matrix product walks through, instead of at each call.

    For a single row of x nothing but reading counts. Processors with AVX-512 read the plain weight faster (25.9 GB/s against
    17.5), so they keep it as well; Zen 3 reads the packed one faster (17.9 against 10.9).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        # The number of rows is a hint; above one it does not change the layout.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, 32)
        self.plain = weight if torch.backends.cpu.get_cpu_capability() == "AVX512" else None
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """(T, in) to (T, out)."""
        if len(x) == 1 and self.plain is not None:
            return F.linear(x, self.plain, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")  # type: ignore[no-any-return]


class Int8Kernel:
    """Weights as q * scale, q an int8 and one scale per output channel: a quarter of the bytes to read.

    Dettmers et al. 2022, "LLM.int8()", section 2.1 (absmax, row-wise). No weight is off by more than scale / 2. Weight-only:
    activations are never quantized to int8; torch's kernel for few tokens takes them rounded to bfloat16. For many tokens
    arithmetic outweighs reading, so the weights are widened again and the product is a plain one.
    """

    FEW_TOKENS = 16

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        # The kernel takes scales in bfloat16. Made a little larger, they are rounded to no less than |weight| / 127.
        largest = weight.abs().amax(dim=1).float().clamp(min=1e-30)
        self.scale = (largest / 127 * (1 + 2**-8)).bfloat16()
        self.weight = (weight / self.scale.float().unsqueeze(1)).round().to(torch.int8)
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """(T, in) to (T, out)."""
        if len(x) <= self.FEW_TOKENS:
            out = torch._weight_int8pack_mm(x.bfloat16(), self.weight, self.scale).to(x.dtype)
        else:
            out = F.linear(x, self.weight.to(x.dtype).mul_(self.scale.unsqueeze(1)))
        return out if self.bias is None else out + self.bias


def process_weights_after_loading(model: object, quantization: str | None = None) -> None:
    """Swaps the weight of every linear layer for a kernel's own copy and frees the plain one; the hook has vLLM's name.

    A weight that an embedding shares stays as it is for the embedding.

    Args:
        model: anything; what is no torch module has nothing to swap.
        quantization: None, or "int8".

    Raises:
        ValueError: ``quantization`` is something else.
    """
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization is {quantization!r}; it must be None or 'int8'")
    # type(), since isinstance() would read an attribute of a model that is bound to have no more than forward.
    if not issubclass(type(model), nn.Module):
        return
    for module in cast("nn.Module", model).modules():
        if isinstance(module, Linear) and module.kernel is None:
            kernel = Int8Kernel if quantization else PackedKernel
            if quantization or _packable(module.weight):
                with torch.inference_mode():
                    module.kernel = kernel(module.weight, module.bias)
                module.weight = nn.Parameter(module.weight.new_empty(0), requires_grad=False)


def _packable(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and torch._C._has_mkldnn

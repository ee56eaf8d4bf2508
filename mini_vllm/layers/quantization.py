"""Weights in the form that they are multiplied in, made once when all are loaded; int8 is one such form.

vLLM gives every linear layer a quant method for this, with the same hook (vllm/model_executor/layers/linear.py).
"""

from __future__ import annotations

from math import prod
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from mini_vllm.layers.linear import LinearBase
from mini_vllm.layers.packed_matmul import LANES, pack, packed_matmul, unpack

QUANTIZATIONS = (None, "int8")


class PackedKernel:
    """A weight laid out for a product with few rows, as decode steps have; for many rows, where arithmetic outweighs reading, it
    is laid out plainly again and torch multiplies.

    Args:
        weight: (out, in), float32 or int8.
        scale: float32 (out,): what each output is multiplied with.
        bias: (out,) or None.
        packed: memory for the packed form.
    """

    FEW_ROWS = 256

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None, packed: Tensor) -> None:
        self.out_size = len(weight)
        self.packed, self.scale, self.bias = packed, scale, bias
        pack(weight, packed)

    def __call__(self, x: Tensor) -> Tensor:
        """(T, in) to (T, out), in x's dtype."""
        if len(x) <= self.FEW_ROWS:
            out = packed_matmul(x.float(), self.packed, self.scale, self.out_size).to(x.dtype)
        else:
            plain = unpack(self.packed)[:, : self.out_size]
            out = plain_matmul(x, plain if plain.is_floating_point() else (plain * self.scale).to(x.dtype))
        return out if self.bias is None else out.add_(self.bias)


def plain_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """(T, in) times (in, out), by oneDNN where torch has it; what torch takes, MKL, is half as fast on processors not Intel's."""
    if x.dtype != torch.float32 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return x @ weight
    return torch.ops.mkldnn._linear_pointwise(x, weight.t(), None, "none", [], "")  # type: ignore[no-any-return]


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight as q * scale: Dettmers et al. 2022, "LLM.int8()", section 2.1 (absmax, row-wise).

    Args:
        weight: (out, in).

    Returns:
        q, int8 (out, in), and scale, float32 (out,). No weight is off by more than scale / 2. Activations are not quantized.
    """
    scale = weight.float().abs().amax(dim=1).clamp(min=1e-30) / 127
    return (weight.float() / scale.unsqueeze(1)).round().to(torch.int8), scale


def process_weights_after_loading(model: object, quantization: str | None = None) -> None:
    """Gives every linear layer on the CPU its kernel, and frees the weight it was loaded into; the hook has vLLM's name.

    A weight that an embedding shares stays for the embedding. Without quantization only float32 is packed.

    Args:
        model: anything; what is no torch module has nothing to pack.
        quantization: None, or "int8".

    Raises:
        ValueError: ``quantization`` is something else.
    """
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization is {quantization!r}; it must be None or 'int8'")
    # type(), since isinstance() would read an attribute of a model that is bound to have no more than forward.
    modules = cast("nn.Module", model).modules() if issubclass(type(model), nn.Module) else ()
    layers = [module for module in modules if isinstance(module, LinearBase) and _packable(module, quantization)]
    shapes = [(-(-len(layer.weight) // LANES), layer.weight.shape[1], LANES) for layer in layers]
    # One piece of memory for all: numpy asks the system to back a large one with large pages, which are found faster.
    arena = torch.from_numpy(np.empty(sum(map(prod, shapes)), np.int8 if quantization else np.float32))
    parts = torch.split(arena, [prod(shape) for shape in shapes])
    for layer, shape, part in zip(layers, shapes, parts, strict=True):
        weight, scale = quantize_int8(layer.weight) if quantization else (layer.weight.data, torch.ones(len(layer.weight)))
        layer.kernel = PackedKernel(weight, scale, layer.bias_to_add, part.view(shape))
        layer.weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)


def _packable(layer: LinearBase, quantization: str | None) -> bool:
    suits = quantization is not None or layer.weight.dtype == torch.float32
    return layer.kernel is None and layer.weight.device.type == "cpu" and suits

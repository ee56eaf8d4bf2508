"""Quantization of weights to int8 or int4 when they are loaded; activations are not quantized.

    q * scale            int8    q from -127 to 127, a scale for each output (LM head: for each group of inputs too)
    q * scale + zero     int4    q from 0 to 15, a scale and a zero for each group of inputs of each output

vLLM gives every linear layer a quant_method with a process_weights_after_loading (vllm/model_executor/layers/linear.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mini_vllm.config import QuantizationConfig
from mini_vllm.layers.embedding import ParallelLMHead
from mini_vllm.layers.linear import LinearBase

HEAD_GROUP = 32
"""Number of inputs that share a scale in the LM head, which is int8 with both methods, because its rounding errors go straight
into the logits; benchmarks/ledger.md has the cost of a coarser head."""


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight as q * scale + zero.

    Attributes:
        q: (out, in): int8, uint8 with numbers from 0 to 15, or floating point when nothing is rounded.
        scale: (groups, out): float16 for uint8, else float32. Group g has in / groups inputs, from g * in / groups on.
        zero: for uint8 float16 (groups, out), the weight that q = 0 represents; else of shape (0, 0), and not added.
    """

    q: Tensor
    scale: Tensor
    zero: Tensor

    @classmethod
    def plain(cls, weight: Tensor) -> QuantizedWeight:
        """Wraps a weight (out, in) without rounding it."""
        return cls(weight, torch.ones(1, len(weight)), torch.empty(0, 0))

    @classmethod
    def int8(cls, weight: Tensor, group_size: int | None = None) -> QuantizedWeight:
        """Rounds a weight (out, in) to 8 bits; no number changes by more than scale / 2.

        Each output has one scale (Dettmers et al. 2022, "LLM.int8()", section 2.1: absmax, row-wise), or one per group of inputs.
        """
        groups = weight.float().reshape(len(weight), -1, group_size or weight.shape[1])
        scale = groups.abs().amax(dim=2, keepdim=True).clamp(min=1e-30) / 127
        return cls((groups / scale).round().to(torch.int8).flatten(1), scale[..., 0].t(), torch.empty(0, 0))

    @classmethod
    def int4(cls, weight: Tensor, group_size: int) -> QuantizedWeight:
        """Rounds a weight (out, in) to 4 bits between the minimum and the maximum of each group: llama.cpp's Q4_1.

        No number changes by more than scale / 2, apart from the rounding of scale and zero to float16.
        """
        groups = weight.float().reshape(len(weight), -1, group_size)
        least, largest = groups.aminmax(dim=2, keepdim=True)
        # The smallest number of float16, for groups whose numbers are all the same.
        scale, zero = ((largest - least) / 15).clamp(min=2**-24).half(), least.half()
        q = ((groups - zero.float()) / scale.float()).round().clamp(0, 15)
        return cls(q.to(torch.uint8).flatten(1), scale[..., 0].t(), zero[..., 0].t())

    def dequantized(self) -> Tensor:
        """Returns q * scale + zero, float32 (out, in)."""
        groups = self.q.t().view(len(self.scale), -1, len(self.q)) * self.scale.float().unsqueeze(1)
        return (groups.add_(self.zero.float().unsqueeze(1)) if len(self.zero) else groups).flatten(0, 1).t()


class QuantizedProduct:
    """A linear layer's product with a weight that is dequantized in each call; computed in float32."""

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.nbytes = weight.q.nbytes + weight.scale.nbytes + weight.zero.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """Maps (T, in) to (T, out), in x's dtype."""
        bias = None if self.bias is None else self.bias.float()
        return F.linear(x.float(), self.weight.dequantized(), bias).to(x.dtype)


def process_weights_after_loading(model: object, quantization: QuantizationConfig) -> None:
    """Quantizes the weight of every linear layer of a model, and frees the weight that was loaded; named as in vLLM.

    The memory of a weight that an embedding shares is not freed. Each rank of tensor parallelism quantizes its part.

    Raises:
        ValueError: a layer's inputs are not a multiple of the group size; no layer has been changed then.
    """
    layers = {name: layer for name, layer in linear_layers(model).items() if layer.kernel is None}
    for name, layer in layers.items():
        inputs, size = layer.weight.shape[1], quantization.group_size
        if quantization.method == "int4" and inputs % size and not isinstance(layer, ParallelLMHead):
            ranks = f" on each of {layer.tp.size} ranks" if layer.tp.size > 1 else ""
            divisor = max(each for each in range(1, min(size, inputs) + 1) if inputs % each == 0)
            raise ValueError(
                f"{name} has {inputs} inputs{ranks}, which int4 cannot divide into groups of {size}; "
                f'pass quantization={{"quant_method": "int4", "group_size": {divisor}}}'
            )
    for layer in layers.values():
        layer.kernel = QuantizedProduct(_quantized(layer, quantization), layer.bias_to_add)
        free_weight(layer)


def free_weight(layer: LinearBase) -> None:
    """Replaces a layer's weight by an empty one; the layer's kernel holds the weight that it multiplies with."""
    layer.weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)


def weight_bytes(model: object) -> int:
    """Returns the bytes of a model's parameters, buffers and kernels' weights on this rank; a shared weight counts once."""
    module = as_module(model)
    kernels = sum(getattr(layer.kernel, "nbytes", 0) for layer in linear_layers(model).values())
    return kernels + sum(part.nbytes for parts in (module.parameters(), module.buffers()) for part in parts)


def linear_layers(model: object) -> dict[str, LinearBase]:
    """Returns a model's linear layers, LM head included, by name; empty if the model is no torch module."""
    return {name: module for name, module in as_module(model).named_modules() if isinstance(module, LinearBase)}


def as_module(model: object) -> nn.Module:
    """Returns the model, or an empty module if the model is no torch module and so has no layers."""
    # type(), since isinstance() would read an attribute of a model that promises no more than forward.
    return cast("nn.Module", model) if issubclass(type(model), nn.Module) else nn.Module()


def _quantized(layer: LinearBase, quantization: QuantizationConfig) -> QuantizedWeight:
    if isinstance(layer, ParallelLMHead):
        return QuantizedWeight.int8(layer.weight, None if layer.weight.shape[1] % HEAD_GROUP else HEAD_GROUP)
    if quantization.method == "int8":
        return QuantizedWeight.int8(layer.weight)
    return QuantizedWeight.int4(layer.weight, quantization.group_size)

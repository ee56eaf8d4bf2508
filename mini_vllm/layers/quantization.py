"""Weights in the form that they are multiplied in, made once when all are loaded: plain, int8 or int4.

    q * scale            int8    q from -127 to 127, a scale for each output
    q * scale + zero     int4    q from 0 to 15, a scale and a zero for each group of inputs of each output

Plain weights take two bytes where the checkpoint's did. Only weights are quantized, not activations. vLLM gives every linear
layer a quant method for this, with the same hook (vllm/model_executor/layers/linear.py).
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mini_vllm.config import QuantizationConfig
from mini_vllm.layers import tiles
from mini_vllm.layers.embedding import ParallelLMHead
from mini_vllm.layers.linear import LinearBase
from mini_vllm.layers.packed_matmul import PackedWeight, lanes, pack, packed_matmul, packed_shape, unpack

HEAD_GROUP = 32
"""Inputs that share a scale in the LM head, which is int8 with either method. What is rounded there goes into the logits as it
is: benchmarks/README.md has what a coarser head costs."""


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight as q * scale + zero.

    Attributes:
        q: (out, in): int8, uint8 with numbers from 0 to 15, or floating point when nothing is rounded.
        scale: (groups, out): float16 for uint8, else float32. Group g has the inputs from g * in / groups on.
        zero: the same for uint8, where it is the weight that q = 0 stands for; of shape (0, 0) for the others.
    """

    q: Tensor
    scale: Tensor
    zero: Tensor

    @classmethod
    def plain(cls, weight: Tensor) -> QuantizedWeight:
        """A weight (out, in) as it is."""
        return cls(weight, torch.ones(1, len(weight)), torch.empty(0, 0))

    @classmethod
    def int8(cls, weight: Tensor, group_size: int | None = None) -> QuantizedWeight:
        """Rounds a weight (out, in) to 8 bits; none is off by more than scale / 2.

        One scale for each output (Dettmers et al. 2022, "LLM.int8()", section 2.1: absmax, row-wise) unless there are groups.
        """
        groups = weight.float().reshape(len(weight), -1, group_size or weight.shape[1])
        scale = groups.abs().amax(dim=2, keepdim=True).clamp(min=1e-30) / 127
        return cls((groups / scale).round().to(torch.int8).flatten(1), scale[..., 0].t(), torch.empty(0, 0))

    @classmethod
    def int4(cls, weight: Tensor, group_size: int) -> QuantizedWeight:
        """Rounds a weight (out, in) to 4 bits, between the least and the largest of each group: Q4_1 of llama.cpp.

        None is off by more than scale / 2, apart from what float16 rounds off scale and zero.
        """
        groups = weight.float().reshape(len(weight), -1, group_size)
        least, largest = groups.aminmax(dim=2, keepdim=True)
        # The smallest number that float16 has, for groups that are all the same.
        scale, zero = ((largest - least) / 15).clamp(min=2**-24).half(), least.half()
        q = ((groups - zero.float()) / scale.float()).round().clamp(0, 15)
        return cls(q.to(torch.uint8).flatten(1), scale[..., 0].t(), zero[..., 0].t())


class PackedKernel:
    """A weight laid out for a product with few rows, as decode steps have. For many rows, where arithmetic outweighs reading, the
    processor's matrix unit multiplies if there is one and the weight is bfloat16; else it is laid out plainly again for torch.

    Args:
        weight: (out, in).
        bias: (out,) or None.
        packed: memory for the packed form, of ``packed_shape(weight.q)``.
    """

    FEW_ROWS = 256
    ENOUGH_FOR_TILES = 32

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, packed: Tensor) -> None:
        self.out_size = len(weight.q)
        self.packed, self.bias = packed, bias
        padding = -self.out_size % lanes(packed.dtype)
        self.scale, self.zero = (F.pad(part, (0, padding)).contiguous() for part in (weight.scale, weight.zero))
        pack(weight.q, packed)
        self._weight = PackedWeight.of(packed, self.scale, self.zero, bias, self.out_size)

    def __call__(self, x: Tensor) -> Tensor:
        """(T, in) to (T, out), in x's dtype."""
        if tiles.AVAILABLE and self.packed.dtype == torch.bfloat16 and len(x) >= self.ENOUGH_FOR_TILES:
            return tiles.tile_matmul(x.float(), self._weight).to(x.dtype)
        if len(x) <= self.FEW_ROWS:
            return packed_matmul(x.float(), self._weight).to(x.dtype)
        plain = unpack(self.packed)
        if not plain.is_floating_point():
            plain = self._dequantized(plain).to(x.dtype)
        out = plain_matmul(x, plain[:, : self.out_size])
        return out if self.bias is None else out.add_(self.bias)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(part.nbytes for part in (self.packed, self.scale, self.zero, self.bias) if part is not None)

    def _dequantized(self, q: Tensor) -> Tensor:
        """(in, out) to float32."""
        groups = q.view(len(self.scale), -1, q.shape[1]) * self.scale.float().unsqueeze(1)
        return (groups.add_(self.zero.float().unsqueeze(1)) if len(self.zero) else groups).flatten(0, 1)


def plain_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """(T, in) times (in, out), by oneDNN where torch has it; what torch takes, MKL, is half as fast on processors not Intel's."""
    if x.dtype != torch.float32 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return x @ weight
    return torch.ops.mkldnn._linear_pointwise(x, weight.t(), None, "none", [], "")  # type: ignore[no-any-return]


def process_weights_after_loading(model: object, quantization: QuantizationConfig | None = None) -> None:
    """Gives every linear layer on the CPU its kernel, and frees the weight it was loaded into; the hook has vLLM's name.

    A weight that an embedding shares stays for the embedding. Without quantization only float32 is packed. Each rank of tensor
    parallelism quantizes the part that it has.

    Args:
        model: anything; what is no torch module has nothing to pack.
        quantization: None keeps the numbers as they are.

    Raises:
        ValueError: a layer's inputs are no whole number of groups; no layer has been touched then.
    """
    layers = {name: layer for name, layer in _linear_layers(model).items() if _packable(layer, quantization)}
    if quantization is not None and quantization.method == "int4":
        for name, layer in layers.items():
            _check_groups(name, layer, quantization.group_size)
    dtypes = [_dtype(layer, quantization) for layer in layers.values()]
    shapes = [packed_shape(layer.weight.to("meta", dtype)) for layer, dtype in zip(layers.values(), dtypes, strict=True)]
    sizes = [prod(shape) * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True)]
    # One piece of memory for all: numpy asks the system to back a large one with large pages, which are found faster.
    parts = torch.split(torch.from_numpy(np.empty(sum(sizes), np.uint8)), sizes)

    def finish(layer: LinearBase, shape: tuple[int, int, int], dtype: torch.dtype, part: Tensor) -> None:
        layer.kernel = PackedKernel(_quantized(layer, quantization), layer.bias_to_add, part.view(dtype).view(shape))
        layer.weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)

    # What rounds weights, torch, shares each among all threads itself; what only packs them does not.
    with ThreadPoolExecutor(1 if quantization else torch.get_num_threads()) as threads:
        deque(threads.map(finish, layers.values(), shapes, dtypes, parts))


def weight_bytes(model: object) -> int:
    """Bytes that a model's parameters, buffers and packed weights take, on this rank; a shared weight counts once."""
    if not issubclass(type(model), nn.Module):
        return 0
    module = cast("nn.Module", model)
    kernels = [layer.kernel for layer in _linear_layers(model).values() if isinstance(layer.kernel, PackedKernel)]
    # A kernel's bias is the layer's own parameter.
    packed = sum(kernel.nbytes - (0 if kernel.bias is None else kernel.bias.nbytes) for kernel in kernels)
    return packed + sum(part.nbytes for parts in (module.parameters(), module.buffers()) for part in parts)


def _linear_layers(model: object) -> dict[str, LinearBase]:
    # type(), since isinstance() would read an attribute of a model that is bound to have no more than forward.
    modules = cast("nn.Module", model).named_modules() if issubclass(type(model), nn.Module) else ()
    return {name: module for name, module in modules if isinstance(module, LinearBase)}


def _packable(layer: LinearBase, quantization: QuantizationConfig | None) -> bool:
    suits = quantization is not None or layer.weight.dtype == torch.float32
    return layer.kernel is None and layer.weight.device.type == "cpu" and suits


def _check_groups(name: str, layer: LinearBase, group_size: int) -> None:
    inputs = layer.weight.shape[1]
    if inputs % group_size and not isinstance(layer, ParallelLMHead):
        ranks = f" on each of {layer.tp.size} ranks" if layer.tp.size > 1 else ""
        fitting = max(size for size in range(1, min(group_size, inputs) + 1) if inputs % size == 0)
        raise ValueError(
            f"{name} has {inputs} inputs{ranks}, which int4 cannot cut into groups of {group_size}; "
            f'pass quantization={{"quant_method": "int4", "group_size": {fitting}}}'
        )


def _dtype(layer: LinearBase, quantization: QuantizationConfig | None) -> torch.dtype:
    if quantization is None:
        return torch.bfloat16 if is_bfloat16(layer.weight) else torch.float32
    return torch.int8 if quantization.method == "int8" or isinstance(layer, ParallelLMHead) else torch.uint8


def is_bfloat16(weight: Tensor) -> bool:
    """Whether bfloat16 holds every number of a float32 weight as it is, as when the checkpoint was in bfloat16.

    Such a weight is kept in half the memory and widened again where it is multiplied: the same numbers for half the reading.
    A bfloat16 is the upper half of a float32, so the lower halves are all zero then.
    """
    parts = (part.numpy().view(np.uint32) for part in weight.data.split(ROWS_AT_A_TIME))  # type: ignore[no-untyped-call]
    return not any(np.bitwise_or.reduce(part, axis=None) & 0xFFFF for part in parts)


ROWS_AT_A_TIME = 256
"""A checkpoint in float32 is found out by the first of them."""


def _quantized(layer: LinearBase, quantization: QuantizationConfig | None) -> QuantizedWeight:
    if quantization is None:
        return QuantizedWeight.plain(layer.weight.data)
    if isinstance(layer, ParallelLMHead):
        return QuantizedWeight.int8(layer.weight, None if layer.weight.shape[1] % HEAD_GROUP else HEAD_GROUP)
    if quantization.method == "int8":
        return QuantizedWeight.int8(layer.weight)
    return QuantizedWeight.int4(layer.weight, quantization.group_size)

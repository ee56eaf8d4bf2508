"""Products of linear layers with packed weights, float32 or quantized: few tokens at the speed of reading weights, or many."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mini_vllm.kernels import amx_matmul
from mini_vllm.kernels.packed_matmul import PackedWeight, lanes, pack, packed_matmul, packed_shape, unpack
from mini_vllm.layers.linear import LinearBase
from mini_vllm.layers.quantization import QuantizedProduct, QuantizedWeight, free_weight, linear_layers


class PackedKernel:
    """A linear layer's product with a packed weight.

    Few rows, as in decode steps, are multiplied by packed_matmul. Many rows are multiplied by the matrix unit (AMX) if the CPU
    has one and the weight is bfloat16, else the weight is unpacked and multiplied by torch. The argument ``packed`` is memory of
    shape ``packed_shape(weight.q)``, which the constructor packs the weight into.
    """

    FEW_ROWS = 256
    MIN_AMX_ROWS = 32

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, packed: Tensor) -> None:
        self.packed, self.bias, out_size = packed, bias, len(weight.q)
        padding = -out_size % lanes(packed.dtype)
        self.scale, self.zero = (F.pad(part, (0, padding)).contiguous() for part in (weight.scale, weight.zero))
        pack(weight.q, packed)
        self.nbytes = packed.nbytes + self.scale.nbytes + self.zero.nbytes
        self._weight = PackedWeight.of(packed, self.scale, self.zero, bias, out_size)

    def __call__(self, x: Tensor) -> Tensor:
        """Maps (T, in) to (T, out), in x's dtype."""
        if amx_matmul.AVAILABLE and self.packed.dtype == torch.bfloat16 and len(x) >= self.MIN_AMX_ROWS:
            return amx_matmul.amx_matmul(x.float(), self._weight).to(x.dtype)
        if len(x) <= self.FEW_ROWS:
            return packed_matmul(x.float(), self._weight).to(x.dtype)
        unpacked = unpack(self.packed)
        if not unpacked.is_floating_point():
            unpacked = QuantizedWeight(unpacked.t(), self.scale, self.zero).dequantized().t().to(x.dtype)
        out = onednn_matmul(x, unpacked[:, : self._weight.out_size])
        return out if self.bias is None else out.add_(self.bias)


def onednn_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Multiplies (T, in) by (in, out), with oneDNN if torch has it: MKL, torch's default, is half as fast on non-Intel CPUs."""
    if x.dtype != torch.float32 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return x @ weight
    return torch.ops.mkldnn._linear_pointwise(x, weight.t(), None, "none", [], "")  # type: ignore[no-any-return]


def pack_linear_layers(model: object) -> None:
    """Gives every linear layer on the CPU that is float32 or quantized a :class:`PackedKernel`, and frees its plain weight.

    The memory of a weight that an embedding shares is not freed. float32 weights that bfloat16 represents exactly take two bytes.
    """
    weights = {layer: weight for layer in linear_layers(model).values() if (weight := _weight(layer)) is not None}
    dtypes = [_packed_dtype(weight.q) for weight in weights.values()]
    shapes = [packed_shape(weight.q) for weight in weights.values()]
    sizes = [prod(shape) * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True)]
    # One allocation for all weights: numpy asks the kernel for huge pages for a large one, which makes reading it faster.
    parts = torch.split(torch.from_numpy(np.empty(sum(sizes), np.uint8)), sizes)

    def finish(layer: LinearBase, shape: tuple[int, int, int], dtype: torch.dtype, part: Tensor) -> None:
        layer.kernel = PackedKernel(weights[layer], layer.bias_to_add, part.view(dtype).view(shape))
        free_weight(layer)
        del weights[layer]

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        deque(threads.map(finish, list(weights), shapes, dtypes, parts))


def _weight(layer: LinearBase) -> QuantizedWeight | None:
    """Returns the weight to pack; None if the layer stays plain or is packed already."""
    if isinstance(layer.kernel, QuantizedProduct):
        return layer.kernel.weight
    packable = layer.kernel is None and layer.weight.dtype == torch.float32 and layer.weight.device.type == "cpu"
    return QuantizedWeight.plain(layer.weight.data) if packable else None


def _packed_dtype(weight: Tensor) -> torch.dtype:
    """Returns bfloat16 if the weight is float32 and bfloat16 represents every number exactly, else the weight's dtype."""
    if weight.dtype != torch.float32:
        return weight.dtype
    # A bfloat16 is the upper half of a float32: all lower halves are zero. Other weights mostly fail in the first part.
    parts = (part.numpy().view(np.uint32) for part in weight.data.split(256))  # type: ignore[no-untyped-call]
    return torch.float32 if any(np.bitwise_or.reduce(part, axis=None) & 0xFFFF for part in parts) else torch.bfloat16

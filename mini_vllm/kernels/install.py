"""Sets the kernels on a loaded model: the only module that imports both the plain layers and the kernels for them."""

from __future__ import annotations

import torch

from mini_vllm.kernels import elementwise
from mini_vllm.kernels.decode_graph import DecodeGraph
from mini_vllm.kernels.packed_linear import pack_linear_layers
from mini_vllm.kernels.paged_decode import PagedDecodes
from mini_vllm.layers.activation import SiluAndMul
from mini_vllm.layers.attention import Attention
from mini_vllm.layers.norm import RMSNorm
from mini_vllm.layers.quantization import as_module
from mini_vllm.layers.rotary import ApplyRotary
from mini_vllm.models.decoder import DecoderModel
from mini_vllm.parallel import get_tp_group


def install_kernels(model: object) -> None:
    """Sets on every layer of a model the kernels that are faster for its dtype and device.

    Linear layers on the CPU get a packed weight if they are float32 or quantized. Other layers get a kernel if every parameter
    of the model is float32 on the CPU; on one rank a decoder then also replays decode steps. All other layers stay plain torch.
    Call it after loading and quantization; an object that is no torch module is not changed.
    """
    pack_linear_layers(model)
    module = as_module(model)
    if not all(parameter.dtype == torch.float32 and parameter.is_cpu for parameter in module.parameters()):
        return
    for layer in module.modules():
        if isinstance(layer, RMSNorm):
            layer.kernel = elementwise.rms_norm
        elif isinstance(layer, SiluAndMul):
            layer.kernel = elementwise.silu_and_mul
        elif isinstance(layer, ApplyRotary):
            layer.kernel = elementwise.apply_rotary
        elif isinstance(layer, Attention):
            layer.write_kv, layer.group_decodes = elementwise.write_kv, PagedDecodes.of
        elif isinstance(layer, DecoderModel) and get_tp_group().size == 1:
            layer.replay = DecodeGraph(layer.run_layers)

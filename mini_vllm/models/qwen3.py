"""Qwen3 (Yang et al. 2025): Llama with a norm over each head of q and k, before rotary embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from mini_vllm.layers.norm import RMSNorm
from mini_vllm.models.config import DecoderConfig
from mini_vllm.models.llama import LlamaAttention, LlamaForCausalLM


class Qwen3Config(DecoderConfig):
    """Qwen3's config: head_dim 128, no biases; a sliding window from layer max_window_layers on, if use_sliding_window."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    }


class Qwen3Attention(LlamaAttention):
    """Self-attention of one layer, with a norm of each head of q and k."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attention of (T, H), result (T, H); each head of q and k is normed before its rotation by cos and sin, (T, 1, D)."""
        qkv = self.qkv_proj(hidden).view(len(hidden), -1, self.head_dim)
        q, k, v = qkv.split([self.qkv_proj.num_heads, *[self.qkv_proj.num_kv_heads] * 2], dim=1)
        q, k = self.rotary(self.q_norm(q), cos, sin), self.rotary(self.k_norm(k), cos, sin)
        return self.o_proj(self.attn(q, k, v))  # type: ignore[no-any-return]


class Qwen3ForCausalLM(LlamaForCausalLM):
    """Qwen3 as a contract.Model."""

    config_class = Qwen3Config
    attention_class = Qwen3Attention

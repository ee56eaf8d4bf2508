"""Qwen2 and Qwen2.5 (Yang et al. 2024): Llama with biases on q, k and v."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mini_vllm.models.config import DecoderConfig
from mini_vllm.models.llama import LlamaForCausalLM


class Qwen2Config(DecoderConfig):
    """Qwen2's config: biases on q, k, v, none on o; a sliding window from layer max_window_layers on, if use_sliding_window."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "qkv_bias": True,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    }


class Qwen2ForCausalLM(LlamaForCausalLM):
    """Qwen2 as a contract.Model."""

    config_class = Qwen2Config

"""Mistral (Jiang et al. 2023): Llama with a sliding window, unless config.json's sliding_window is null."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mini_vllm.models.config import DecoderConfig
from mini_vllm.models.llama import LlamaForCausalLM


class MistralConfig(DecoderConfig):
    """Mistral's config: a sliding window in every layer, 4096 tokens by default."""

    defaults: ClassVar[Mapping[str, Any]] = {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096}


class MistralForCausalLM(LlamaForCausalLM):
    """Mistral as a contract.Model."""

    config_class = MistralConfig

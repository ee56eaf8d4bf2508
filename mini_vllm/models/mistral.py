"""Mistral (Jiang et al. 2023): Llama, looking back no further than a sliding window, unless sliding_window is null."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mini_vllm.models.config import DecoderConfig
from mini_vllm.models.llama import STACKED_PARAMS_MAPPING, LlamaForCausalLM


class MistralConfig(DecoderConfig):
    """A window in every layer."""

    defaults: ClassVar[Mapping[str, Any]] = {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096}


class MistralForCausalLM(LlamaForCausalLM):
    """Mistral against the contract."""

    config_class = MistralConfig
    stacked_params_mapping = STACKED_PARAMS_MAPPING

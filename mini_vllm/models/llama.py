"""Llama (Touvron et al. 2023; grouped queries since Llama 2 70B), built from the layer library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from mini_vllm.layers.attention import Attention
from mini_vllm.layers.embedding import ParallelLMHead
from mini_vllm.layers.linear import QKVParallelLinear, RowParallelLinear
from mini_vllm.layers.rotary import ApplyRotary
from mini_vllm.loading.checkpoint import Checkpoint
from mini_vllm.loading.loader import load_weights
from mini_vllm.loading.mapping import StackedRow
from mini_vllm.models.config import DecoderConfig
from mini_vllm.models.decoder import DecoderModel

STACKED_PARAMS_MAPPING: tuple[StackedRow, ...] = (
    ("qkv_proj", "q_proj", "q"),
    ("qkv_proj", "k_proj", "k"),
    ("qkv_proj", "v_proj", "v"),
    ("gate_up_proj", "gate_proj", 0),
    ("gate_up_proj", "up_proj", 1),
)


class LlamaConfig(DecoderConfig):
    """Llama's config: no biases and no sliding window, unless config.json has them."""

    defaults: ClassVar[Mapping[str, Any]] = {"max_position_embeddings": 2048, "use_sliding_window": False}


class LlamaAttention(nn.Module):
    """Self-attention of one layer."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        heads, kv_heads, self.head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.qkv_proj = QKVParallelLinear(config.hidden_size, self.head_dim, heads, kv_heads, config.qkv_bias)
        self.o_proj = RowParallelLinear(heads * self.head_dim, config.hidden_size, config.o_bias)
        self.rotary = ApplyRotary()
        self.attn = Attention(f"layers.{layer}", config.sliding_windows[layer])

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Maps (T, H) to (T, H); cos and sin are (T, 1, D)."""
        qkv = self.qkv_proj(hidden).view(len(hidden), -1, self.head_dim)
        # q and k are adjacent, so one call rotates the heads of both.
        num_heads, num_kv_heads = self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads
        rotated = self.rotary(qkv[:, :-num_kv_heads], cos, sin)
        q, k, v = rotated[:, :num_heads], rotated[:, num_heads:], qkv[:, -num_kv_heads:]
        return self.o_proj(self.attn(q, k, v))  # type: ignore[no-any-return]


class LlamaForCausalLM(nn.Module):
    """Llama as a contract.Model. A similar family overrides the class attributes: config, attention or mapping rows."""

    config_class: ClassVar[type[DecoderConfig]] = LlamaConfig
    attention_class: ClassVar[type[nn.Module]] = LlamaAttention
    stacked_params_mapping: ClassVar[tuple[StackedRow, ...]] = STACKED_PARAMS_MAPPING

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.model = DecoderModel(config, self.attention_class)
        self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Maps tokens (T,) and positions (T,) to logits (R, V)."""
        return self.lm_head(self.model(tokens, positions))  # type: ignore[no-any-return]

    @classmethod
    def from_checkpoint(cls, config: Mapping[str, Any], checkpoint: Checkpoint) -> Self:
        """Builds the model and loads its weights; raises CheckpointError if config.json or the checkpoint does not match."""
        model = cls(cls.config_class.from_hf(config))
        tied = model.lm_head.weight is model.model.embed_tokens.weight

        def is_unused(name: str) -> bool:  # rope's frequencies, or a copy of the embedding for a tied head
            return name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight")

        load_weights(model, checkpoint, cls.stacked_params_mapping, is_unused)
        return model

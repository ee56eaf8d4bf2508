"""Llama (Touvron et al. 2023; grouped queries since Llama 2 70B), as one method over the layer library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mini_vllm.layers.activation import SiluAndMul
from mini_vllm.layers.attention import Attention
from mini_vllm.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from mini_vllm.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from mini_vllm.layers.norm import RMSNorm
from mini_vllm.layers.rotary import RotaryEmbedding, apply_rotary
from mini_vllm.loading.checkpoint import Checkpoint, CheckpointError
from mini_vllm.loading.loader import load_weights
from mini_vllm.loading.mapping import StackedRow

STACKED_PARAMS_MAPPING: tuple[StackedRow, ...] = (
    ("qkv_proj", "q_proj", "q"),
    ("qkv_proj", "k_proj", "k"),
    ("qkv_proj", "v_proj", "v"),
    ("gate_up_proj", "gate_proj", 0),
    ("gate_up_proj", "up_proj", 1),
)


@dataclass(frozen=True)
class LlamaConfig:
    """What config.json says of a Llama, under its own names."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    attention_bias: bool

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> LlamaConfig:
        """Reads config.json's object, with the defaults that Hugging Face gives to what is left out.

        Raises:
            CheckpointError: a size is missing or does not divide, or the rope is scaled in a way not known here.
        """
        try:
            heads, hidden = config["num_attention_heads"], config["hidden_size"]
            rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
            kind = rope.get("rope_type", rope.get("type", "default"))
            sizes = cls(
                hidden_size=hidden,
                num_hidden_layers=config["num_hidden_layers"],
                num_attention_heads=heads,
                num_key_value_heads=config.get("num_key_value_heads") or heads,
                head_dim=config.get("head_dim") or hidden // heads,
                intermediate_size=config["intermediate_size"],
                vocab_size=config["vocab_size"],
                max_position_embeddings=config.get("max_position_embeddings", 2048),
                rms_norm_eps=config.get("rms_norm_eps", 1e-6),
                rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
                tie_word_embeddings=config.get("tie_word_embeddings", False),
                attention_bias=config.get("attention_bias", False),
            )
        except KeyError as error:
            raise CheckpointError(
                f"config.json has no {error.args[0]}, which a Llama needs; fetch the checkpoint again"
            ) from error
        if heads % sizes.num_key_value_heads:
            raise CheckpointError(f"config.json: {heads} query heads cannot share {sizes.num_key_value_heads} kv heads evenly")
        if kind != "default":
            raise CheckpointError(f"config.json asks for rope scaling {kind!r}; this engine turns plain rope only")
        return sizes


class LlamaAttention(nn.Module):
    """Self-attention of one layer."""

    def __init__(self, config: LlamaConfig, name: str) -> None:
        super().__init__()
        heads, kv_heads, self.head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.num_heads, self.num_kv_heads = heads, kv_heads
        self.qkv_proj = QKVParallelLinear(config.hidden_size, self.head_dim, heads, kv_heads, config.attention_bias)
        self.o_proj = RowParallelLinear(heads * self.head_dim, config.hidden_size, config.attention_bias)
        self.attn = Attention(heads, self.head_dim, kv_heads, name)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(T, H) to (T, H); cos and sin are the rotary embedding's."""
        qk, v = self.qkv_proj(hidden).view(len(hidden), -1, self.head_dim).tensor_split([-self.num_kv_heads], dim=1)
        q, k = apply_rotary(qk, cos, sin).tensor_split([self.num_heads], dim=1)
        return self.o_proj(self.attn(q, k, v))  # type: ignore[no-any-return]


class LlamaMLP(nn.Module):
    """The feed-forward half of one layer."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_up_proj = MergedColumnParallelLinear(config.hidden_size, [config.intermediate_size] * 2)
        self.act_fn = SiluAndMul()
        self.down_proj = RowParallelLinear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """(T, H) to (T, H)."""
        return self.down_proj(self.act_fn(self.gate_up_proj(hidden)))  # type: ignore[no-any-return]


class LlamaDecoderLayer(nn.Module):
    """One layer: attention and feed-forward, each behind a norm and around a residual."""

    def __init__(self, config: LlamaConfig, name: str) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LlamaAttention(config, name)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(T, H) to (T, H), the same memory."""
        hidden += self.self_attn(self.input_layernorm(hidden), cos, sin)
        hidden += self.mlp(self.post_attention_layernorm(hidden))
        return hidden


class LlamaModel(nn.Module):
    """Everything but the head; parameter names are the checkpoint's, except for the fused ones."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.rotary = RotaryEmbedding(config.head_dim, config.max_position_embeddings, config.rope_theta)
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config, f"layers.{i}") for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """(T,) and (T,) to hidden states (T, H)."""
        hidden = self.embed_tokens(tokens)
        cos, sin = self.rotary(positions)
        for layer in self.layers:
            hidden = layer(hidden, cos, sin)
        return self.norm(hidden)  # type: ignore[no-any-return]


class LlamaForCausalLM(nn.Module):
    """Llama against the contract."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.model = LlamaModel(config)
        self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """(T,) and (T,) to logits (S, V)."""
        return self.lm_head(self.model(tokens, positions))  # type: ignore[no-any-return]

    @classmethod
    def from_checkpoint(cls, config: Mapping[str, Any], checkpoint: Checkpoint) -> LlamaForCausalLM:
        """Builds and fills the model.

        Raises:
            CheckpointError: config.json is no Llama's, or the checkpoint does not fit it.
        """
        model = cls(LlamaConfig.from_hf(config))
        tied = model.lm_head.weight is model.model.embed_tokens.weight
        load_weights(model, checkpoint, STACKED_PARAMS_MAPPING, ignored=lambda name: left_over(name, tied))
        return model


def left_over(name: str, tied: bool) -> bool:
    """Whether a checkpoint may hold this tensor for nothing: rope's frequencies, and the saved copy of a tied head."""
    return name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight")

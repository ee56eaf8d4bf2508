"""Lab 01, solution: a bigram model and one with attention, added to an engine that has never heard of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from mini_vllm import register_model
from mini_vllm.layers.activation import SiluAndMul
from mini_vllm.layers.attention import Attention
from mini_vllm.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from mini_vllm.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from mini_vllm.layers.norm import RMSNorm
from mini_vllm.layers.rotary import RotaryEmbedding, apply_rotary
from mini_vllm.loading.checkpoint import Checkpoint
from mini_vllm.loading.loader import load_weights
from mini_vllm.loading.mapping import StackedRow

ARCHITECTURE = "BigramForCausalLM"
"""What config.json's "architectures" calls this model."""


class BigramModel:
    """Logits from a table, by the last token alone."""

    def __init__(self, table: Tensor) -> None:
        """Keeps the table.

        Args:
            table: floating point of shape (V, V); row t holds the logits of the token after t.
        """
        self.table = table

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits of the next token, for every token of the step.

        Args:
            tokens: int64 of shape (T,).
            positions: int64 of shape (T,), not needed: a contract may give more than a model takes.

        Returns:
            (T, V): row i answers tokens[i].
        """
        return self.table[tokens]

    @classmethod
    def from_checkpoint(cls, config: Mapping[str, Any], checkpoint: Mapping[str, Tensor]) -> BigramModel:
        """Builds the model from the tensor called ``table``.

        Raises:
            ValueError: the table is not (V, V) for config.json's vocab_size.
        """
        table, wanted = checkpoint["table"], (config["vocab_size"], config["vocab_size"])
        if table.shape != wanted:
            raise ValueError(f"the checkpoint's table is {tuple(table.shape)} and config.json's vocab_size asks for {wanted}")
        return cls(table)


TINY_ARCHITECTURE = "TinyAttentionForCausalLM"
"""What config.json's "architectures" calls the second model."""


class TinyAttentionModel(nn.Module):
    """One layer of attention and one of feed-forward, each behind a norm and around a residual: a Llama in small."""

    stacked_params_mapping: ClassVar[tuple[StackedRow, ...]] = (
        ("qkv_proj", "q_proj", "q"),
        ("qkv_proj", "k_proj", "k"),
        ("qkv_proj", "v_proj", "v"),
        ("gate_up_proj", "gate_proj", 0),
        ("gate_up_proj", "up_proj", 1),
    )

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Makes the layers; their weights are filled later.

        Args:
            config: config.json: vocab_size V, hidden_size H, head_dim D, num_attention_heads N, num_key_value_heads K,
                intermediate_size, rms_norm_eps, rope_theta, max_position_embeddings.
        """
        super().__init__()
        hidden, eps, self.head_dim = config["hidden_size"], config["rms_norm_eps"], config["head_dim"]
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.embed_tokens = VocabParallelEmbedding(config["vocab_size"], hidden)
        self.input_layernorm = RMSNorm(hidden, eps)
        self.qkv_proj = QKVParallelLinear(hidden, self.head_dim, heads, kv_heads)
        self.rotary_emb = RotaryEmbedding(self.head_dim, config["max_position_embeddings"], config["rope_theta"])
        self.attn = Attention("attn")
        self.o_proj = RowParallelLinear(heads * self.head_dim, hidden)
        self.post_attention_layernorm = RMSNorm(hidden, eps)
        self.gate_up_proj = MergedColumnParallelLinear(hidden, [config["intermediate_size"]] * 2)
        self.act_fn = SiluAndMul()
        self.down_proj = RowParallelLinear(config["intermediate_size"], hidden)
        self.norm = RMSNorm(hidden, eps)
        self.lm_head = ParallelLMHead(config["vocab_size"], hidden)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits of the next token, for the rows that are asked for.

        Args:
            tokens: int64 of shape (T,).
            positions: int64 of shape (T,): by how much queries and keys are turned.

        Returns:
            (R, V).
        """
        hidden = self.embed_tokens(tokens)
        qkv = self.qkv_proj(self.input_layernorm(hidden)).view(len(tokens), -1, self.head_dim)
        num_heads, num_kv_heads = self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads
        q, k, v = qkv.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
        cos, sin = self.rotary_emb(positions)
        hidden = hidden + self.o_proj(self.attn(apply_rotary(q, cos, sin), apply_rotary(k, cos, sin), v))
        gate_up = self.gate_up_proj(self.post_attention_layernorm(hidden))
        hidden = hidden + self.down_proj(self.act_fn(gate_up))
        return self.lm_head(self.norm(hidden))

    @classmethod
    def from_checkpoint(cls, config: Mapping[str, Any], checkpoint: Checkpoint) -> TinyAttentionModel:
        """Builds and fills the model.

        Raises:
            LoadError: the checkpoint does not fit it; the message has everything that is wrong.
        """
        model = cls(config)
        load_weights(model, checkpoint, cls.stacked_params_mapping)
        return model


def register() -> None:
    """Tells the engine who builds the two models."""
    register_model(ARCHITECTURE, BigramModel.from_checkpoint)
    register_model(TINY_ARCHITECTURE, TinyAttentionModel.from_checkpoint)

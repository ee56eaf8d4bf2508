"""Lab 01, solution: a bigram model and a model with attention, added to an engine that does not know them."""

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
"""The name of this model in "architectures" of config.json."""


class BigramModel:
    """Looks up the logits of the next token in a table, by the last token."""

    def __init__(self, table: Tensor) -> None:
        """Stores the table.

        Args:
            table: floating point, shape (V, V); row t holds the logits of the token after t.
        """
        self.table = table

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Returns the logits of the next token, for every token of the step.

        Args:
            tokens: int64, shape (T,).
            positions: int64, shape (T,); not used by a bigram.

        Returns:
            Logits, shape (T, V): row i is the row of the table for tokens[i].
        """
        return self.table[tokens]

    @classmethod
    def from_checkpoint(cls, config: Mapping[str, Any], checkpoint: Mapping[str, Tensor]) -> BigramModel:
        """Builds the model from the tensor called ``table``.

        Raises:
            ValueError: if the table is not (V, V), where V is vocab_size of config.json.
        """
        table, wanted = checkpoint["table"], (config["vocab_size"], config["vocab_size"])
        if table.shape != wanted:
            raise ValueError(f"the checkpoint's table is {tuple(table.shape)}, but config.json's vocab_size requires {wanted}")
        return cls(table)


TINY_ARCHITECTURE = "TinyAttentionForCausalLM"
"""The name of the second model in "architectures" of config.json."""


class TinyAttentionModel(nn.Module):
    """A Llama with one layer: attention and feed-forward, each with a norm before and a residual around it."""

    stacked_params_mapping: ClassVar[tuple[StackedRow, ...]] = (
        ("qkv_proj", "q_proj", "q"),
        ("qkv_proj", "k_proj", "k"),
        ("qkv_proj", "v_proj", "v"),
        ("gate_up_proj", "gate_proj", 0),
        ("gate_up_proj", "up_proj", 1),
    )

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Makes the layers. Their weights are loaded later.

        Args:
            config: the contents of config.json: vocab_size V, hidden_size H, head_dim D, num_attention_heads N,
                num_key_value_heads K, intermediate_size, rms_norm_eps, rope_theta, max_position_embeddings.
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
        """Returns the logits of the next token, for the rows that the engine samples from.

        Args:
            tokens: int64, shape (T,).
            positions: int64, shape (T,): the position of each token, for the rotary embedding.

        Returns:
            Logits, shape (R, V).
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
        """Builds the model and loads its weights.

        Raises:
            LoadError: if the checkpoint does not fit the model. The message lists all faults.
        """
        model = cls(config)
        load_weights(model, checkpoint, cls.stacked_params_mapping)
        return model


def register() -> None:
    """Registers the factories of the two models with the engine."""
    register_model(ARCHITECTURE, BigramModel.from_checkpoint)
    register_model(TINY_ARCHITECTURE, TinyAttentionModel.from_checkpoint)

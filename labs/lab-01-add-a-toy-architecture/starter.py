"""Lab 01, your work: add a bigram model to an engine that has never heard of it.

A bigram model has one table. Row t holds the logits of whatever follows token t:

                      next token
                     0    1    2    3
        last   0  [ 0.1  0.2  0.0  2.0 ]   after 0 comes 3
        token  1  [ 1.5  0.0  0.3  0.1 ]   after 1 comes 0
               2  [ ...                ]

Replace each `raise NotImplementedError` and run `./lab check 01 --impl starter`.
T is the number of tokens in a step, V the vocabulary.

The second class, TinyAttentionModel, is the part "Going further" of the README: leave it for when the rest passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

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
        raise NotImplementedError("task forward: keep the table")

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits of the next token, for every token of the step.

        Args:
            tokens: int64 of shape (T,): every token scheduled in this step, of every request, end to end.
            positions: int64 of shape (T,): where each token stands in its own request. The engine gives them to every
                model; this one does not need them.

        Returns:
            The table's dtype, of shape (T, V): row i answers tokens[i].
        """
        raise NotImplementedError("task forward: answer every token with its row of the table")

    @classmethod
    def from_checkpoint(cls, config: Mapping[str, Any], checkpoint: Mapping[str, Tensor]) -> BigramModel:
        """Builds the model from what is on disk.

        Args:
            config: config.json; ``config["vocab_size"]`` is V.
            checkpoint: tensors by name; the table is called ``table``.

        Returns:
            A model that answers from the checkpoint's table.

        Raises:
            ValueError: the table is not (V, V); the message has both shapes.
        """
        raise NotImplementedError("task checkpoint: build the model from the tensor called 'table'")


TINY_ARCHITECTURE = "TinyAttentionForCausalLM"
"""What config.json's "architectures" calls the second model."""


class TinyAttentionModel(nn.Module):
    """One layer of attention and one of feed-forward, each behind a norm and around a residual: a Llama in small.

        hidden = embed_tokens(tokens)                                           (T, H)
        hidden = hidden + o_proj(attention(qkv_proj(input_layernorm(hidden))))
        hidden = hidden + down_proj(silu(gate) * up),   gate and up = gate_up_proj(post_attention_layernorm(hidden))
        logits = lm_head(norm(hidden))                                          (R, V)

    The checkpoint's tensors are called embed_tokens, input_layernorm, q_proj, k_proj, v_proj, o_proj,
    post_attention_layernorm, gate_proj, up_proj, down_proj, norm and lm_head, each with ".weight" behind. Where your
    attribute has a tensor's name, they find each other.
    """

    stacked_params_mapping: ClassVar[tuple[StackedRow, ...]] = ()
    """Rows for the tensors that do not: (your fused layer, the checkpoint's module, shard). ("qkv_proj", "q_proj", "q") is
    the first of five; the shards are "q", "k", "v", and 0 and 1 for gate and up."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Makes the layers; their weights are filled later.

        Args:
            config: config.json: vocab_size V, hidden_size H, head_dim D, num_attention_heads N, num_key_value_heads K,
                intermediate_size, rms_norm_eps, rope_theta, max_position_embeddings.
        """
        raise NotImplementedError("task attention: make the layers, each with the sizes of the whole model")

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits of the next token, for the rows that are asked for.

        Args:
            tokens: int64 of shape (T,).
            positions: int64 of shape (T,): by how much queries and keys are turned.

        Returns:
            (R, V), which is what ParallelLMHead makes of (T, H).
        """
        # qkv_proj makes (T, heads * D). How many of its heads are queries, and how many keys? Ask the layer and not
        # config.json: qkv_proj.num_heads, qkv_proj.num_kv_heads. apply_rotary and Attention take (T, heads, D).
        raise NotImplementedError("task attention: the four lines of the class's docstring")

    @classmethod
    def from_checkpoint(cls, config: Mapping[str, Any], checkpoint: Checkpoint) -> TinyAttentionModel:
        """Builds and fills the model.

        Raises:
            LoadError: the checkpoint does not fit it; ``load_weights`` raises it with everything that is wrong.
        """
        raise NotImplementedError("task attention: make the model, call load_weights with the mapping rows, return the model")


def register() -> None:
    """Tells the engine who builds an ARCHITECTURE; see ``register_model`` in mini_vllm/models/registry.py.

    For the part "Going further", a TINY_ARCHITECTURE too.
    """
    raise NotImplementedError("task checkpoint: register BigramModel.from_checkpoint under ARCHITECTURE")

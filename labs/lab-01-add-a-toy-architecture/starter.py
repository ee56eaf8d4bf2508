"""Lab 01, your work: add a bigram model to an engine that does not know it.

A bigram model has one table. Row t holds the logits of the tokens that can follow token t:

                      next token
                     0    1    2    3
        last   0  [ 0.1  0.2  0.0  2.0 ]   after 0 comes 3
        token  1  [ 1.5  0.0  0.3  0.1 ]   after 1 comes 0
               2  [ ...                ]

Replace each `raise NotImplementedError` and run `./lab check 01`.
T is the number of tokens in a step, V the vocabulary.

The second class, TinyAttentionModel, belongs to "Going further" in the README. Write it when the other tasks pass.
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
"""The name of this model in "architectures" of config.json."""


class BigramModel:
    """Looks up the logits of the next token in a table, by the last token."""

    def __init__(self, table: Tensor) -> None:
        """Stores the table.

        Args:
            table: floating point, shape (V, V); row t holds the logits of the token after t.
        """
        raise NotImplementedError("task forward: store the table")

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Returns the logits of the next token, for every token of the step. Changes neither argument.

        Args:
            tokens: int64, shape (T,): all tokens of this step, of all requests, one request after the other.
            positions: int64, shape (T,): the position of each token in its request. The engine passes positions to every
                model; this model does not need them.

        Returns:
            Logits in the dtype of the table, shape (T, V): row i is the row of the table for tokens[i].
        """
        raise NotImplementedError("task forward: return the row of the table for every token")

    @classmethod
    def from_checkpoint(cls, config: Mapping[str, Any], checkpoint: Mapping[str, Tensor]) -> BigramModel:
        """Builds the model from a checkpoint. Changes neither argument: a checkpoint tensor is mapped memory.

        Args:
            config: the contents of config.json; ``config["vocab_size"]`` is V.
            checkpoint: tensors by name; the table is called ``table``.

        Returns:
            A model with the table of the checkpoint.

        Raises:
            ValueError: if the table is not (V, V). The message has both shapes.
        """
        raise NotImplementedError("task checkpoint: build the model from the tensor called 'table'")


TINY_ARCHITECTURE = "TinyAttentionForCausalLM"
"""The name of the second model in "architectures" of config.json."""


class TinyAttentionModel(nn.Module):
    """A Llama with one layer: attention and feed-forward, each with a norm before and a residual around it.

        hidden = embed_tokens(tokens)                                           (T, H)
        hidden = hidden + o_proj(attention(qkv_proj(input_layernorm(hidden))))
        hidden = hidden + down_proj(silu(gate) * up),   gate and up = gate_up_proj(post_attention_layernorm(hidden))
        logits = lm_head(norm(hidden))                                          (R, V)

    The checkpoint's tensors are called embed_tokens, input_layernorm, q_proj, k_proj, v_proj, o_proj,
    post_attention_layernorm, gate_proj, up_proj, down_proj, norm and lm_head, each followed by ".weight". The engine loads
    a tensor into the attribute with the same name.
    """

    stacked_params_mapping: ClassVar[tuple[StackedRow, ...]] = ()
    """Five rows, one for each tensor that is part of a fused layer: (fused layer, module in the checkpoint, part of the layer).
    The first row is ("qkv_proj", "q_proj", "q"). The parts are "q", "k", "v", and 0 and 1 for gate and up."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Makes the layers. Their weights are loaded later.

        Args:
            config: the contents of config.json: vocab_size V, hidden_size H, head_dim D, num_attention_heads N,
                num_key_value_heads K, intermediate_size, rms_norm_eps, rope_theta, max_position_embeddings.
        """
        raise NotImplementedError("task attention: make the layers, each with the sizes of the whole model")

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Returns the logits of the next token, for the rows that the engine samples from. Changes neither argument.

        Args:
            tokens: int64, shape (T,).
            positions: int64, shape (T,): the position of each token, for the rotary embedding.

        Returns:
            Logits, shape (R, V): ParallelLMHead computes them from hidden states of shape (T, H).
        """
        # qkv_proj returns (T, heads * D). Take the number of query heads and kv heads from the layer, not from config.json:
        # qkv_proj.num_heads and qkv_proj.num_kv_heads. apply_rotary and Attention take (T, heads, D).
        raise NotImplementedError("task attention: compute the four lines in the docstring of the class")

    @classmethod
    def from_checkpoint(cls, config: Mapping[str, Any], checkpoint: Checkpoint) -> TinyAttentionModel:
        """Builds the model and loads its weights. Changes neither argument.

        Raises:
            LoadError: if the checkpoint does not fit the model. ``load_weights`` raises it with a list of all faults.
        """
        raise NotImplementedError("task attention: make the model, call load_weights with the mapping rows, return the model")


def register() -> None:
    """Registers the factory of ARCHITECTURE with the engine; see ``register_model`` in mini_vllm/models/registry.py.

    For "Going further", register the factory of TINY_ARCHITECTURE too.
    """
    raise NotImplementedError("task checkpoint: register BigramModel.from_checkpoint under ARCHITECTURE")

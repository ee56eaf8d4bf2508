"""Lab 04, your work: serve the two models of lab 01 with the real vLLM, as a plugin, without changing vLLM.

mini_vllm requires one method of a model. vLLM requires five:

    mini_vllm                          vLLM
    from_checkpoint(config, ...)       __init__(vllm_config=..., prefix=...)       make the parameters, without values
                                       load_weights(weights)                       fill them
    forward(tokens, positions)         embed_input_ids(input_ids)                  (T,) to (T, H)
                                       forward(input_ids, positions, ...)          (T,) to (T, H), hidden states
                                       compute_logits(hidden_states)               (R, H) to (R, V), for the rows it samples from

Replace each `raise NotImplementedError` and run `./lab check 04`. The tests install this file as a module
called `graduate`. T is the number of tokens in a step, R the rows that are sampled from, H the hidden size, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig
from vllm import ModelRegistry
from vllm.config import VllmConfig
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.interfaces import IsAttentionFree
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, maybe_prefix

ARCHITECTURE = "BigramForCausalLM"
"""The name of this model in "architectures" of config.json."""


class BigramConfig(PretrainedConfig):
    """The config.json of a bigram model. Every key of the file is an attribute (given; nothing to do here)."""

    model_type = "bigram"


class BigramForCausalLM(nn.Module):
    """Looks up the logits of the next token in a table, by the last token.

    The model has no attention, so it needs no KV cache. Declare this to vLLM: let the class inherit from ``IsAttentionFree`` too.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        """Makes the parameter ``table`` of shape (V, V), with the name of the checkpoint's tensor. Its values are loaded later.

        Args:
            vllm_config: all settings of vLLM; ``vllm_config.model_config.hf_config.vocab_size`` is V.
            prefix: the name of this module in a larger one; not needed here.
        """
        raise NotImplementedError("task bigram: make an nn.Parameter that needs no gradient")

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Returns the embedding of each token, which is its row of the table: int64 (T,) to (T, V)."""
        raise NotImplementedError("task bigram: return the rows of the table")

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: object = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Returns hidden states, one row for each token of the step. Must not change its arguments.

        Args:
            input_ids: int64, shape (T,): all tokens of the step, of all requests, one request after the other.
            positions: int64, shape (T,).
            intermediate_tensors: from the previous rank, if layers are distributed over ranks; not needed here.
            inputs_embeds: shape (T, V); if it is not None, use it in place of ``embed_input_ids(input_ids)``.

        Returns:
            Hidden states, shape (T, V). vLLM passes the rows that it samples from to ``compute_logits``.
        """
        raise NotImplementedError("task bigram: return the embeddings, which are the hidden states")

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """Returns the logits of the rows that vLLM samples from: (R, V) to (R, V)."""
        raise NotImplementedError("task bigram: return the rows, which are logits already")

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Loads the parameters.

        Args:
            weights: (name, tensor) pairs of the checkpoint; iterate over them only once. Do not change the tensors: they are
                mapped memory that other ranks read too.

        Returns:
            The names of the filled parameters. vLLM compares them with all parameters.
        """
        raise NotImplementedError("task bigram: use AutoWeightsLoader(self); the names are the same in checkpoint and model")


TINY_ARCHITECTURE = "TinyAttentionForCausalLM"
"""The name of the second model in "architectures" of config.json."""


class TinyAttentionConfig(PretrainedConfig):
    """The config.json of the second model (given; nothing to do here)."""

    model_type = "tiny_attention"


class TinyAttentionForCausalLM(nn.Module):
    """Lab 01's second model, a Llama with one layer: attention and feed-forward, each with a norm and a residual.

        hidden = embed_tokens(input_ids)                                        embed_input_ids, (T, H)
        hidden = hidden + o_proj(attention(qkv_proj(input_layernorm(hidden))))  forward
        hidden = hidden + down_proj(silu(gate) * up)                            forward
        hidden = norm(hidden)                                                   forward, (T, H)
        logits = lm_head(hidden)                                                compute_logits, (R, V)

    The checkpoint's tensors are those of lab 01: embed_tokens, input_layernorm, q_proj, k_proj, v_proj, o_proj,
    post_attention_layernorm, gate_proj, up_proj, down_proj, norm and lm_head, each followed by ".weight".
    """

    hf_to_vllm_mapper = WeightsMapper(orig_to_new_stacked={})
    """Five rows: {substring of a name in the checkpoint: (fused layer, shard)}. A row replaces the substring anywhere in a name.
    The next row is applied to the result: "q_proj" becomes "qkv_proj", which contains "v_proj"."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        """Makes the layers, each with the sizes of the whole model. Their weights are loaded later.

        Args:
            vllm_config: ``model_config.hf_config`` has vocab_size V, hidden_size H, head_dim D, num_attention_heads N,
                num_key_value_heads K, intermediate_size, rms_norm_eps, rope_theta, max_position_embeddings; ``cache_config`` is
                for ``Attention``.
            prefix: the name of this module in a larger one. ``Attention`` needs a unique name that contains the number of the
                layer; vLLM stores its keys and values under this name: ``maybe_prefix(prefix, "layers.0.attn")``.
        """
        raise NotImplementedError("task attention: make the layers, as in lab 01")

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Returns the embedding of each token: (T,) to (T, H)."""
        raise NotImplementedError("task attention: use embed_tokens")

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: object = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Returns hidden states, one row for each token: (T,) to (T, H). Must not change its arguments."""
        # A linear layer of vLLM returns a pair (output, bias): use the output. rotary_emb(positions, q, k) returns q and k after
        # rotation. q, k and v stay flat: (T, heads * D). This rank has qkv_proj.num_heads and qkv_proj.num_kv_heads heads.
        raise NotImplementedError("task attention: compute everything except lm_head")

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Returns logits: (R, H) to (R, V) on the first rank, None on the others."""
        raise NotImplementedError("task attention: call LogitsProcessor with lm_head and the hidden states")

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Loads the parameters with the mapping rows, and returns the names of the filled parameters."""
        raise NotImplementedError("task attention: use AutoWeightsLoader with a mapper")


def register() -> None:
    """Registers the two config classes with transformers and the two models with vLLM.

    Every process of vLLM calls this function, sometimes more than once. Use ``AutoConfig.register(model_type, config class)``
    and ``ModelRegistry.register_model(architecture, class or "module:Class")``.
    """
    raise NotImplementedError("task plugin: register two config classes and two models")


def entry_points() -> dict[str, dict[str, str]]:
    """Returns [project.entry-points] of your package's pyproject.toml: {group: {name: "module:function"}}.

    The name of the module is ``graduate``.
    """
    raise NotImplementedError("task plugin: return the group that vLLM reads, and the function that it calls")

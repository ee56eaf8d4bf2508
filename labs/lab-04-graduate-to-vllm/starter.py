"""Lab 04, your work: the two models of lab 01 as a plugin of the real vLLM, which serves them without a change to it.

mini_vllm asked a model for one method. vLLM asks for five:

    mini_vllm                          vLLM
    from_checkpoint(config, ...)       __init__(vllm_config=..., prefix=...)       make the parameters, empty
                                       load_weights(weights)                       fill them
    forward(tokens, positions)         embed_input_ids(input_ids)                  (T,) to (T, H)
                                       forward(input_ids, positions, ...)          (T,) to (T, H), hidden states
                                       compute_logits(hidden_states)               (R, H) to (R, V), of the rows it samples from

Replace each `raise NotImplementedError` and run `./lab check 04 --impl starter`. The tests install this file as a module
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
"""What config.json's "architectures" calls this model."""


class BigramConfig(PretrainedConfig):
    """config.json of a bigram model, as an object: every key of the file is an attribute (given; nothing to do here)."""

    model_type = "bigram"


class BigramForCausalLM(nn.Module):
    """Logits from a table, by the last token alone.

    It has no attention, so it needs no KV cache. vLLM believes that of a class that says so: see ``IsAttentionFree``.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        """Makes the table, (V, V), called ``table`` as in the checkpoint; its values are filled later.

        Args:
            vllm_config: everything vLLM was told; ``vllm_config.model_config.hf_config.vocab_size`` is V.
            prefix: the name of this module in a larger one; not needed here.
        """
        raise NotImplementedError("task bigram: an nn.Parameter that needs no gradient")

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """What stands for each token inside the model: int64 (T,) to (T, V), its row of the table."""
        raise NotImplementedError("task bigram: the rows of the table")

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: object = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Hidden states, one row for each token of the step.

        Args:
            input_ids: int64 of shape (T,): every token of the step, of every request, end to end.
            positions: int64 of shape (T,).
            intermediate_tensors: from the rank before, when layers are spread over ranks; not needed here.
            inputs_embeds: (T, V); where it is given, it is used in place of ``embed_input_ids(input_ids)``.

        Returns:
            (T, V). vLLM picks the rows that it samples from and hands them to ``compute_logits``.
        """
        raise NotImplementedError("task bigram: the embeddings are the hidden states")

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """Logits of the rows that are sampled from: (R, V) to (R, V)."""
        raise NotImplementedError("task bigram: the rows of a bigram's table are logits already")

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Fills the parameters.

        Args:
            weights: the checkpoint's tensors, (name, tensor) after (name, tensor), to be gone through once.

        Returns:
            The names of the parameters that were filled; vLLM compares them with those there are.
        """
        raise NotImplementedError("task bigram: AutoWeightsLoader(self) does it where names are the same on both sides")


TINY_ARCHITECTURE = "TinyAttentionForCausalLM"
"""What config.json's "architectures" calls the second model."""


class TinyAttentionConfig(PretrainedConfig):
    """config.json of the second model (given; nothing to do here)."""

    model_type = "tiny_attention"


class TinyAttentionForCausalLM(nn.Module):
    """Lab 01's second model: one layer of attention and one of feed-forward, each behind a norm and around a residual.

        hidden = embed_tokens(input_ids)                                        embed_input_ids, (T, H)
        hidden = hidden + o_proj(attention(qkv_proj(input_layernorm(hidden))))  forward
        hidden = hidden + down_proj(silu(gate) * up)                            forward
        hidden = norm(hidden)                                                   forward, (T, H)
        logits = lm_head(hidden)                                                compute_logits, (R, V)

    The checkpoint's tensors are those of lab 01: embed_tokens, input_layernorm, q_proj, k_proj, v_proj, o_proj,
    post_attention_layernorm, gate_proj, up_proj, down_proj, norm and lm_head, each with ".weight" behind.
    """

    hf_to_vllm_mapper = WeightsMapper(orig_to_new_stacked={})
    """Five rows, {checkpoint's word: (your fused layer, shard)}. A row replaces its word wherever a name has it, and the next
    row sees what it has made: "q_proj" makes "qkv_proj", and in that there is a "v_proj"."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        """Makes the layers, each with the sizes of the whole model; their weights are filled later.

        Args:
            vllm_config: ``model_config.hf_config`` has vocab_size V, hidden_size H, head_dim D, num_attention_heads N,
                num_key_value_heads K, intermediate_size, rms_norm_eps, rope_theta, max_position_embeddings; ``cache_config`` is
                for ``Attention``.
            prefix: the name of this module in a larger one. ``Attention`` wants a name that no other has, with the layer's
                number in it, under which vLLM keeps its keys and values: ``maybe_prefix(prefix, "layers.0.attn")``.
        """
        raise NotImplementedError("task attention: the layers, as in lab 01")

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """(T,) to (T, H)."""
        raise NotImplementedError("task attention: embed_tokens")

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: object = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Hidden states, one row for each token: (T,) to (T, H)."""
        # vLLM's linear layers return a pair, (output, bias): take the first. Its rotary_emb(positions, q, k) returns both turned,
        # and q, k, v stay flat: (T, heads * D). How many heads this rank has, qkv_proj.num_heads and .num_kv_heads know.
        raise NotImplementedError("task attention: all but the head")

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """(R, H) to (R, V), on the first rank; None on the others."""
        raise NotImplementedError("task attention: LogitsProcessor takes the head and the hidden states")

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Fills the parameters, by the mapping rows; returns the names of those it has filled."""
        raise NotImplementedError("task attention: AutoWeightsLoader again, with a mapper")


def register() -> None:
    """Tells transformers how to read the two kinds of config.json, and vLLM who builds the two models.

    Every process of vLLM calls this, and vLLM asks that it can be called again where it has been before.
    ``AutoConfig.register(model_type, config class)``, ``ModelRegistry.register_model(architecture, class or "module:Class")``.
    """
    raise NotImplementedError("task plugin: two configs, two models")


def entry_points() -> dict[str, dict[str, str]]:
    """What [project.entry-points] of your package's pyproject.toml would say: {group: {name: "module:function"}}.

    The module is called ``graduate`` there.
    """
    raise NotImplementedError("task plugin: in which group does vLLM look, and which function should it call?")

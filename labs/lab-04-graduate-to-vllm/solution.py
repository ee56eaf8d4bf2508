"""Lab 04, solution: the two models of lab 01 as a plugin of the real vLLM."""

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
    """The config.json of a bigram model. Every key of the file is an attribute."""

    model_type = "bigram"


class BigramForCausalLM(nn.Module, IsAttentionFree):
    """Looks up the logits of the next token in a table, by the last token. It has no attention, so it needs no KV cache."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        """Makes the table. Its values are loaded later.

        Args:
            vllm_config: all settings of vLLM; ``model_config.hf_config`` is config.json.
            prefix: the name of this module in a larger one.
        """
        super().__init__()
        vocab_size = vllm_config.model_config.hf_config.vocab_size
        self.table = nn.Parameter(torch.empty(vocab_size, vocab_size), requires_grad=False)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Returns the embedding of each token, which is its row of the table: (T,) to (T, V)."""
        return self.table[input_ids]

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: object = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Returns hidden states, one row for each token: (T,) to (T, V)."""
        return self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """Returns its argument: the rows that vLLM samples from are logits already, (R, V)."""
        return hidden_states

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Loads the parameters, and returns the names of the filled parameters."""
        return AutoWeightsLoader(self).load_weights(weights)


TINY_ARCHITECTURE = "TinyAttentionForCausalLM"
"""The name of the second model in "architectures" of config.json."""


class TinyAttentionConfig(PretrainedConfig):
    """The config.json of the second model."""

    model_type = "tiny_attention"


class TinyAttentionForCausalLM(nn.Module):
    """A Llama with one layer: attention and feed-forward, each with a norm before and a residual around it."""

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_stacked={  # the order matters: each row is applied to the result of the rows before it
            "v_proj": ("qkv_proj", "v"),
            "k_proj": ("qkv_proj", "k"),
            "q_proj": ("qkv_proj", "q"),
            "up_proj": ("gate_up_proj", 1),
            "gate_proj": ("gate_up_proj", 0),
        }
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        """Makes the layers. Their weights are loaded later."""
        super().__init__()
        config = vllm_config.model_config.hf_config
        hidden, eps, head_dim = config.hidden_size, config.rms_norm_eps, config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, hidden)
        self.input_layernorm = RMSNorm(hidden, eps)
        self.qkv_proj = QKVParallelLinear(hidden, head_dim, heads, kv_heads, bias=False)
        self.rotary_emb = get_rope(
            head_dim,
            max_position=config.max_position_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        )
        self.attn = Attention(
            self.qkv_proj.num_heads,
            head_dim,
            head_dim**-0.5,
            num_kv_heads=self.qkv_proj.num_kv_heads,
            cache_config=vllm_config.cache_config,
            prefix=maybe_prefix(prefix, "layers.0.attn"),
        )
        self.o_proj = RowParallelLinear(heads * head_dim, hidden, bias=False)
        self.post_attention_layernorm = RMSNorm(hidden, eps)
        self.gate_up_proj = MergedColumnParallelLinear(hidden, [config.intermediate_size] * 2, bias=False)
        self.act_fn = SiluAndMul()
        self.down_proj = RowParallelLinear(config.intermediate_size, hidden, bias=False)
        self.norm = RMSNorm(hidden, eps)
        self.lm_head = ParallelLMHead(config.vocab_size, hidden)
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Returns the embedding of each token: (T,) to (T, H)."""
        return self.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: object = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Returns hidden states, one row for each token: (T,) to (T, H)."""
        hidden = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        qkv, _ = self.qkv_proj(self.input_layernorm(hidden))
        num_heads, num_kv_heads = self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads
        q, k, v = qkv.split([heads * self.attn.head_size for heads in (num_heads, num_kv_heads, num_kv_heads)], dim=-1)
        q, k = self.rotary_emb(positions, q, k)
        attended, _ = self.o_proj(self.attn(q, k, v))
        hidden = hidden + attended
        gate_up, _ = self.gate_up_proj(self.post_attention_layernorm(hidden))
        fed, _ = self.down_proj(self.act_fn(gate_up))
        return self.norm(hidden + fed)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Returns logits: (R, H) to (R, V) on the first rank, None on the others."""
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Loads the parameters with the mapping rows, and returns the names of the filled parameters."""
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)


def register() -> None:
    """Registers the two config classes with transformers and the two models with vLLM."""
    AutoConfig.register(BigramConfig.model_type, BigramConfig)
    AutoConfig.register(TinyAttentionConfig.model_type, TinyAttentionConfig)
    ModelRegistry.register_model(ARCHITECTURE, f"{__name__}:BigramForCausalLM")
    ModelRegistry.register_model(TINY_ARCHITECTURE, f"{__name__}:TinyAttentionForCausalLM")


def entry_points() -> dict[str, dict[str, str]]:
    """Returns [project.entry-points] of pyproject.toml."""
    return {"vllm.general_plugins": {"graduate": "graduate:register"}}

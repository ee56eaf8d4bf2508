"""Lab 04, solution: lab 01's two models as a plugin of the real vLLM."""

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
    """config.json of a bigram model, as an object: every key of the file is an attribute."""

    model_type = "bigram"


class BigramForCausalLM(nn.Module, IsAttentionFree):
    """Logits from a table, by the last token alone. Nothing to attend to, so no KV cache: ``IsAttentionFree`` says it."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        """Makes the table; its values are filled later.

        Args:
            vllm_config: everything vLLM was told; ``model_config.hf_config`` is config.json.
            prefix: the name of this module in a larger one.
        """
        super().__init__()
        vocab_size = vllm_config.model_config.hf_config.vocab_size
        self.table = nn.Parameter(torch.empty(vocab_size, vocab_size), requires_grad=False)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """(T,) to (T, V): a bigram's embedding of a token is its row."""
        return self.table[input_ids]

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: object = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Hidden states, one row for each token: (T,) to (T, V)."""
        return self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """(R, V) to (R, V): the rows that are sampled from, which are logits already."""
        return hidden_states

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Fills the parameters; returns the names of those it has filled."""
        return AutoWeightsLoader(self).load_weights(weights)


TINY_ARCHITECTURE = "TinyAttentionForCausalLM"
"""What config.json's "architectures" calls the second model."""


class TinyAttentionConfig(PretrainedConfig):
    """config.json of the second model."""

    model_type = "tiny_attention"


class TinyAttentionForCausalLM(nn.Module):
    """One layer of attention and one of feed-forward, each behind a norm and around a residual: a Llama in small."""

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_stacked={  # in this order: what a row has made, the next row sees
            "v_proj": ("qkv_proj", "v"),
            "k_proj": ("qkv_proj", "k"),
            "q_proj": ("qkv_proj", "q"),
            "up_proj": ("gate_up_proj", 1),
            "gate_proj": ("gate_up_proj", 0),
        }
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        """Makes the layers; their weights are filled later."""
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
        """(T,) to (T, H)."""
        return self.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: object = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Hidden states, one row for each token: (T,) to (T, H)."""
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
        """(R, H) to (R, V), on the first rank; None on the others."""
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Fills the parameters, by the mapping rows; returns the names of those it has filled."""
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)


def register() -> None:
    """Tells transformers how to read the two kinds of config.json, and vLLM who builds the two models."""
    AutoConfig.register(BigramConfig.model_type, BigramConfig)
    AutoConfig.register(TinyAttentionConfig.model_type, TinyAttentionConfig)
    ModelRegistry.register_model(ARCHITECTURE, f"{__name__}:BigramForCausalLM")
    ModelRegistry.register_model(TINY_ARCHITECTURE, f"{__name__}:TinyAttentionForCausalLM")


def entry_points() -> dict[str, dict[str, str]]:
    """What [project.entry-points] of pyproject.toml says."""
    return {"vllm.general_plugins": {"graduate": "graduate:register"}}

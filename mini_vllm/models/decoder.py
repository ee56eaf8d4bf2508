"""Decoder shared by Llama and similar families, without the LM head: layers of attention, which the family defines, and MLP."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from mini_vllm.layers.activation import SiluAndMul
from mini_vllm.layers.embedding import VocabParallelEmbedding
from mini_vllm.layers.linear import MergedColumnParallelLinear, RowParallelLinear
from mini_vllm.layers.norm import RMSNorm
from mini_vllm.layers.rotary import RotaryEmbedding
from mini_vllm.models.config import DecoderConfig

AttentionOf = Callable[[DecoderConfig, int], nn.Module]
"""(config, index of the layer) -> a module that maps hidden (T, H), cos and sin (T, 1, D) to (T, H)."""


class DecoderMLP(nn.Module):
    """The MLP of one layer, without its norm and residual: gate and up in one product, SiLU, down."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_up_proj = MergedColumnParallelLinear(config.hidden_size, [config.intermediate_size] * 2, config.mlp_bias)
        self.act_fn = SiluAndMul()
        self.down_proj = RowParallelLinear(config.intermediate_size, config.hidden_size, config.mlp_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (T, H) to (T, H)."""
        return self.down_proj(self.act_fn(self.gate_up_proj(hidden)))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """One layer: attention and feed-forward, each after a norm and with a residual connection.

    As in vLLM, the output of attention or MLP is added to the residual by the next norm, in the same pass over memory.
    """

    def __init__(self, config: DecoderConfig, attention: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = attention
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = DecoderMLP(config)

    def forward(self, hidden: Tensor, residual: Tensor | None, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Maps hidden (T, H), not yet added to the residual, and the residual (T, H), None in the first layer, to the new two."""
        if residual is None:
            hidden, residual = self.input_layernorm(hidden), hidden
        else:
            hidden, residual = self.input_layernorm(hidden, residual)
        hidden, residual = self.post_attention_layernorm(self.self_attn(hidden, cos, sin), residual)
        return self.mlp(hidden), residual


class DecoderModel(nn.Module):
    """A decoder without its LM head. ``replay``, if set, is called instead of run_layers (kernels/decode_graph.py)."""

    def __init__(self, config: DecoderConfig, attention: AttentionOf) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.rotary_emb = RotaryEmbedding(config.head_dim, config.max_position_embeddings, config.rope_theta, config.rope_scaling)
        self.layers = nn.ModuleList(DecoderLayer(config, attention(config, i)) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.replay: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Maps tokens (T,) and positions (T,) to hidden states (T, H)."""
        return (self.replay or self.run_layers)(self.embed_tokens(tokens), *self.rotary_emb(positions))

    def run_layers(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Maps hidden (T, H) through every layer and the last norm to (T, H); cos and sin are (T, 1, D)."""
        residual = None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual, cos, sin)
        return self.norm(hidden, residual)[0]  # type: ignore[no-any-return]

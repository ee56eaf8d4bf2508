"""NewModel: the logits of the next token are a row of a table, by the last token alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import IsAttentionFree
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper


class NewModelForCausalLM(nn.Module, IsAttentionFree):
    """The five methods that vLLM asks for. ``IsAttentionFree``: no layer of this model needs a KV cache."""

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "model.": "",
        }
    )
    """From the checkpoint's names to this class's parameters."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        """Makes the parameters; ``load_weights`` fills them."""
        super().__init__()
        vocab_size = vllm_config.model_config.hf_config.vocab_size
        self.table = nn.Parameter(torch.empty(vocab_size, vocab_size), requires_grad=False)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """What stands for each token inside the model: (T,) to (T, V)."""
        return self.table[input_ids]

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: object = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of every token of the step: (T,) to (T, V)."""
        return self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """Logits of the tokens that are sampled from: (R, V) to (R, V)."""
        return hidden_states

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Fills the parameters; returns the names of those it has filled."""
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)

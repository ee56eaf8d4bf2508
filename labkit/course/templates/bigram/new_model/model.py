"""NewModel: the logits of the next token are the row of a table that the last token selects."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import IsAttentionFree
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper


class NewModelForCausalLM(nn.Module, IsAttentionFree):
    """The five methods that vLLM needs. ``IsAttentionFree``: no layer of this model needs a KV cache."""

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "model.": "",
        }
    )
    """Maps the names of the checkpoint to the parameters of this class."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        """Creates the parameters; ``load_weights`` fills them."""
        super().__init__()
        vocab_size = vllm_config.model_config.hf_config.vocab_size
        self.table = nn.Parameter(torch.empty(vocab_size, vocab_size), requires_grad=False)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Embeds the tokens: (T,) to (T, V)."""
        return self.table[input_ids]

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: object = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Computes the hidden state of every token of the step: (T,) to (T, V)."""
        return self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """Computes the logits of the R tokens that are sampled from: (R, V) to (R, V)."""
        return hidden_states

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Fills the parameters and returns their names."""
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)

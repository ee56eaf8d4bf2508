"""Checkpoints that the engine's tests serve: small random ones, and SmolLM2."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from labkit.checkpoints.fetch import fetch_smollm2

TINY: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "vocab_size": 101,
    "max_position_embeddings": 96,
}


@pytest.fixture
def tiny_model(tmp_path: Path) -> Callable[..., tuple[Path, PreTrainedModel]]:
    """Writes a random model of two layers, of the family that transformers calls so; returns its directory and
    transformers' model of it."""

    def write(family: str, shard_size: str = "1GB", **changes: Any) -> tuple[Path, PreTrainedModel]:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(TINY | changes))).eval()
        for name, parameter in model.named_parameters():
            # Larger than the usual initialisation, so that the winning token wins clearly; biases are not 0 and norms not 1.
            torch.nn.init.normal_(parameter, std=1.5 if name.endswith(("q_norm.weight", "k_norm.weight")) else 0.3)
        folder = tmp_path / "tiny"
        model.save_pretrained(folder, max_shard_size=shard_size)
        return folder, model

    return write


@pytest.fixture
def tiny_llama(tiny_model: Callable[..., tuple[Path, PreTrainedModel]]) -> Callable[..., tuple[Path, PreTrainedModel]]:
    """The same, of a Llama."""
    return partial(tiny_model, "llama")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, fetched once to the checkpoint cache."""
    return fetch_smollm2()

"""Checkpoints that the engine's tests serve: small random ones, and SmolLM2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from labkit.fetch import fetch_smollm2

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
def tiny_llama(tmp_path: Path) -> Callable[..., tuple[Path, LlamaForCausalLM]]:
    """Writes a random Llama of two layers; returns its directory and transformers' model of it."""

    def write(shard_size: str = "1GB", **changes: Any) -> tuple[Path, LlamaForCausalLM]:
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**(TINY | changes))).eval()
        for parameter in model.parameters():
            # Larger than the usual initialisation, so that the winning token wins clearly.
            torch.nn.init.normal_(parameter, std=0.3)
        folder = tmp_path / "tiny"
        model.save_pretrained(folder, max_shard_size=shard_size)
        return folder, model

    return write


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, fetched once to the checkpoint cache."""
    return fetch_smollm2()

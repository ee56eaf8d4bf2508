"""mini_vllm's rope against vLLM's own classes, where vLLM can be imported: the table that vLLM keeps, row by row."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mini_vllm.layers.rotary import RotaryEmbedding

pytest.importorskip("vllm")

from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding import get_rope, phi3_long_rope_scaled_rope

LENGTH, HEAD_DIM = 4096, 64
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1024}
LONG = {
    "short_factor": [1.0] * 32,
    "long_factor": [1.0 + i for i in range(32)],
    "original_max_position_embeddings": 1024,
}


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 4.0, "max_trained_positions": 1024},
        {"rope_type": "llama3", **LLAMA3},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
        {"rope_type": "longrope", **LONG},
    ],
    ids=lambda scaling: "-".join(map(str, list(scaling.values())[:3:2])),
)
def test_every_position_turns_as_in_vllm(scaling: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model_len = SimpleNamespace(model_config=SimpleNamespace(max_model_len=LENGTH))
    monkeypatch.setattr(phi3_long_rope_scaled_rope, "get_current_vllm_config", lambda: model_len)
    with set_current_vllm_config(VllmConfig()):
        theirs = get_rope(HEAD_DIM, LENGTH, rope_parameters=scaling | {"rope_theta": 1e6}, dtype=torch.float32)
    # longrope's table has the short rows first, and reads behind them when long ones are wanted.
    table = theirs.long_short_cos_sin_cache[1024:] if scaling["rope_type"] == "longrope" else theirs.cos_sin_cache[:LENGTH]
    assert len(table) == LENGTH
    cos, sin = RotaryEmbedding(HEAD_DIM, LENGTH, 1e6, scaling)(torch.arange(LENGTH))
    half = HEAD_DIM // 2
    # At 4095 radians, one unit in the last place of a float32 angle is 2.4e-4.
    torch.testing.assert_close(torch.cat((cos[:, 0, :half], sin[:, 0, half:]), dim=-1), table, rtol=0, atol=1e-3)
    assert torch.equal(sin[:, :, :half], -sin[:, :, half:])

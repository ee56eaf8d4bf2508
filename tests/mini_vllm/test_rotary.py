"""Rope and its scalings: against the formula, against transformers' own functions, and through config.json's two spellings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig as TransformersConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from mini_vllm.layers.rope_scaling import inverse_frequency
from mini_vllm.layers.rotary import RotaryEmbedding, apply_rotary
from mini_vllm.loading.checkpoint import CheckpointError
from mini_vllm.models.llama import LlamaConfig

SIZES = {"hidden_size": 4096, "num_hidden_layers": 2, "num_attention_heads": 32, "intermediate_size": 64, "vocab_size": 99}

SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 8.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama 3.1": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "llama 3.2, original length left out": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "yarn, as Qwen2.5": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn, factor below 1": {"rope_type": "yarn", "factor": 0.5, "original_max_position_embeddings": 32768},
    "yarn, betas, not truncated": {"rope_type": "yarn", "factor": 16.0, "beta_fast": 20, "beta_slow": 2, "truncate": False},
    "yarn, a ramp of no width": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 22000, "beta_slow": 22000},
    "yarn, not even one pair": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 99, "beta_slow": 99, "truncate": False},
    "yarn, attention factor": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.7},
    "yarn, mscales": {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.8},
    "longrope, long": {
        "rope_type": "longrope",
        "short_factor": [1.0 + i / 99 for i in range(64)],
        "long_factor": [1.0 + i for i in range(64)],
        "original_max_position_embeddings": 4096,
    },
    "longrope, attention factor": {
        "rope_type": "longrope",
        "short_factor": [1.0] * 64,
        "long_factor": [1.0 + i for i in range(64)],
        "original_max_position_embeddings": 4096,
        "attention_factor": 1.3,
    },
    "longrope, short": {
        "rope_type": "longrope",
        "short_factor": [1.0 + i for i in range(64)],
        "long_factor": [9.0] * 64,
    },
}


def rotary_of(config: dict[str, Any]) -> RotaryEmbedding:
    read = LlamaConfig.from_hf(SIZES | config)
    return RotaryEmbedding(read.head_dim, read.max_position_embeddings, read.rope_theta, read.rope_scaling)


def test_rotary_is_multiplication_by_a_unit_complex_number() -> None:
    rotary = RotaryEmbedding(head_dim=6, max_position=50, theta=100.0)
    x, positions = torch.randn(3, 2, 6, dtype=torch.float64), torch.tensor([0, 7, 49])
    numbers = torch.complex(x[..., :3], x[..., 3:])
    angles = positions[:, None].double() * 100.0 ** (-torch.arange(0, 6, 2).double() / 6)
    turned = numbers * torch.polar(torch.ones_like(angles), angles).unsqueeze(1)
    # The angles are kept in float32, as checkpoints were trained with them.
    torch.testing.assert_close(
        apply_rotary(x, *rotary(positions)), torch.cat((turned.real, turned.imag), -1), rtol=1e-4, atol=1e-5
    )


def test_rotary_gives_back_the_dtype_and_takes_heads_that_are_a_view() -> None:
    qkv = torch.randn(3, 5, 8, dtype=torch.bfloat16)
    cos, sin = RotaryEmbedding(8, 50, 100.0)(torch.tensor([3, 1, 2]))
    assert (cos.shape, cos.dtype, sin.shape, sin.dtype) == ((3, 1, 8), torch.float32, (3, 1, 8), torch.float32)
    turned = apply_rotary(qkv[:, :4], cos, sin)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, apply_rotary(qkv[:, :4].float(), cos, sin).bfloat16()), "products in float32, rounded once"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_far_positions_turn_exactly_as_in_transformers_whatever_the_dtype_a_model_is_built_in(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    positions = torch.tensor([0, 1, 8191, 100_003, 131_071])
    theirs = LlamaRotaryEmbedding(TransformersConfig(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 5e5}))
    expected = theirs(torch.zeros(1), positions[None])
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        cos, sin = rotary_of({"rope_theta": 5e5})(positions)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(cos[:, 0], expected[0][0])
    assert torch.equal(sin[:, 0, 64:], expected[1][0, :, 64:])
    assert torch.equal(sin[:, 0, :64], -expected[1][0, :, :64])


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS.keys())
@pytest.mark.parametrize("theta", [10000.0, 1e6])
def test_every_scaling_turns_as_transformers_does(scaling: dict[str, Any], theta: float) -> None:
    rope = scaling | {"rope_theta": theta}
    theirs = TransformersConfig(**SIZES, max_position_embeddings=131072, rope_parameters=dict(rope))
    # transformers asks for the length at hand, the engine for the longest that it may become.
    expected, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](theirs, seq_len=131072)
    rotary = rotary_of({"max_position_embeddings": 131072, "rope_parameters": rope})
    torch.testing.assert_close(rotary.inverse_frequency, expected, rtol=1e-6, atol=0)
    assert rotary.attention_factor == pytest.approx(factor)
    cos, sin = rotary(torch.tensor([0, 5]))
    torch.testing.assert_close(cos[0], torch.full((1, 128), factor), msg="cosine at 0 is the attention factor")
    torch.testing.assert_close(cos.square() + sin.square(), torch.full((2, 1, 128), factor**2))


def test_the_plain_scaling_differs_from_each_of_the_others() -> None:
    """Or the test above would prove nothing; dynamic alone is plain up to max_position, unless trained for fewer."""
    plain = RotaryEmbedding(128, 131072, 1e4).inverse_frequency
    for name, scaling in SCALINGS.items():
        scaled = rotary_of({"max_position_embeddings": 131072, "rope_scaling": scaling}).inverse_frequency
        assert torch.equal(scaled, plain) == (name == "dynamic"), name
    trained, _ = inverse_frequency(128, 131072, 1e4, SCALINGS["dynamic"] | {"max_trained_positions": 32768})
    # factor 4 and a length of 4 times the trained: 4 * 4 - 3 = 13
    torch.testing.assert_close(trained, 1 / (1e4 * 13 ** (128 / 126)) ** (torch.arange(0, 128, 2) / 128))


LLAMA3 = {key: value for key, value in SCALINGS["llama 3.1"].items() if key != "rope_type"}


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"rope_type": "llama3"}},
        {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"type": "llama3"}},
        {"rope_parameters": LLAMA3 | {"rope_type": "llama3", "rope_theta": 5e5}},
        {"rope_parameters": LLAMA3 | {"rope_type": "llama3"}, "rope_theta": 5e5},
        {"rope_parameters": None, "rope_scaling": LLAMA3 | {"type": "llama3"}, "rope_theta": 5e5},
        {
            "rope_theta": 5e5,
            "rope_scaling": LLAMA3 | {"type": "llama3", "original_max_position_embeddings": 4096},
            "original_max_position_embeddings": 8192,
        },
    ],
)
def test_config_json_may_spell_it_either_way(spelling: dict[str, Any]) -> None:
    expected, _ = inverse_frequency(128, 131072, 5e5, SCALINGS["llama 3.1"])
    assert torch.equal(rotary_of(spelling).inverse_frequency, expected)


@pytest.mark.parametrize("spelling", [{}, {"rope_scaling": None}, {"rope_scaling": {"type": "default"}}, {"rope_theta": None}])
def test_nothing_said_is_plain_rope(spelling: dict[str, Any]) -> None:
    assert torch.equal(rotary_of(spelling).inverse_frequency, inverse_frequency(128, 2048, 1e4, {})[0])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"rope_scaling": {"type": "stretchy", "factor": 2.0}},
            "rope scaling 'stretchy'; this engine has default, linear, dynamic, llama3, yarn, longrope",
        ),
        ({"rope_scaling": {"type": "linear"}}, "by 'linear', which needs a factor, and gives None"),
        ({"rope_scaling": {"type": "yarn", "factor": None}}, "by 'yarn', which needs a factor, and gives None"),
        ({"rope_scaling": {"type": "dynamic", "factor": 0}}, "by 'dynamic', which needs a factor, and gives 0"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "by 'llama3', which needs a low_freq_factor"),
        ({"rope_scaling": {"type": "longrope", "long_factor": [1.0] * 64}}, "by 'longrope', which needs a short_factor"),
        (
            {"rope_scaling": {"type": "longrope", "long_factor": [1.0] * 64, "short_factor": [1.0] * 3}},
            "gives short_factor 3 numbers; heads of size 128 have 64 pairs",
        ),
        ({"rope_scaling": {"type": "linear", "factor": "two"}}, "by 'linear', which needs a factor, and gives 'two'"),
        ({"partial_rotary_factor": 0.5}, "has partial_rotary_factor 0.5"),
        ({"rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1000.0}}, "has alpha 1000.0"),
        ({"rope_scaling": {"type": "default", "mrope_section": [1, 2]}}, r"has mrope_section \[1, 2\]"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "has full_attention {'rope_type': 'default'} for rope",
        ),
    ],
)
def test_what_rope_cannot_do_is_said(config: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        LlamaConfig.from_hf(SIZES | config)


def test_the_layer_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="'stretchy' is not supported; use one of default, linear"):
        RotaryEmbedding(8, 16, 100.0, {"rope_type": "stretchy"})

"""Sizes and features of a decoder, from config.json and each family's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from mini_vllm.layers import rope_scaling
from mini_vllm.loading.checkpoint import CheckpointError


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder like Llama; most fields are named as in config.json.

    Attributes:
        defaults: a family's values for keys that config.json leaves out, as in Hugging Face.
        rope_scaling: "rope_type" and the keys that it requires; see layers/rope_scaling.py.
        sliding_windows: each layer's sliding window in tokens, None for none.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any]
    sliding_windows: tuple[int | None, ...]
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Reads config.json's object; raises CheckpointError if a size is missing or invalid, or a feature is not supported."""
        config = {**cls.defaults, **config}
        check_sizes(config)
        try:
            heads, hidden, layers = config["num_attention_heads"], config["hidden_size"], config["num_hidden_layers"]
            max_position = config.get("max_position_embeddings", 2048)
            head_dim = config.get("head_dim") or hidden // heads
            theta, scaling = _rope(config, head_dim, max_position)
            bias = config.get("attention_bias", False)
            sizes = cls(
                hidden_size=hidden,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=config.get("num_key_value_heads") or heads,
                head_dim=head_dim,
                intermediate_size=config["intermediate_size"],
                vocab_size=config["vocab_size"],
                max_position_embeddings=max_position,
                rms_norm_eps=config.get("rms_norm_eps", 1e-6),
                rope_theta=theta,
                rope_scaling=scaling,
                sliding_windows=_sliding_windows(config, layers),
                tie_word_embeddings=config.get("tie_word_embeddings", False),
                qkv_bias=config.get("qkv_bias", bias),
                o_bias=bias,
                mlp_bias=config.get("mlp_bias", False),
            )
        except KeyError as error:
            raise CheckpointError(f"config.json has no {error.args[0]}, which is required; fetch the checkpoint again") from error
        if heads % sizes.num_key_value_heads:
            raise CheckpointError(
                f"config.json: {heads} query heads cannot share {sizes.num_key_value_heads} kv heads evenly; "
                "fetch the checkpoint again"
            )
        if sizes.head_dim % 2:
            raise CheckpointError(f"config.json: head_dim is {sizes.head_dim}; it must be even, as rope pairs its two halves")
        if config.get("hidden_act", "silu") not in ("silu", "swish"):
            raise CheckpointError(f"config.json has hidden_act {config['hidden_act']!r}; this engine has silu only")
        return sizes


def check_sizes(config: Mapping[str, Any]) -> None:
    """Raises CheckpointError unless config.json's sizes, the int fields of DecoderConfig, are whole numbers from 1 up."""
    for key in (each.name for each in fields(DecoderConfig) if each.type == "int"):
        if (size := config.get(key)) is not None and (type(size) is not int or size < 1):
            raise CheckpointError(f"config.json gives {key} {size!r}; it must be a whole number, at least 1")


def _rope(config: Mapping[str, Any], head_dim: int, max_position: int) -> tuple[float, Mapping[str, Any]]:
    """Returns theta and the scaling, from rope_parameters (transformers 5), or from the keys rope_scaling and rope_theta."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    original = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings") or max_position
    scaling = {**rope, "rope_type": kind, "original_max_position_embeddings": original}
    if kind not in rope_scaling.REQUIRED:
        raise CheckpointError(f"config.json has rope scaling {kind!r}; this engine has {', '.join(rope_scaling.REQUIRED)}")
    for key in rope_scaling.REQUIRED[kind]:
        value, pairs = scaling.get(key), head_dim // 2
        one_per_pair = key in ("short_factor", "long_factor")
        if one_per_pair and isinstance(value, list) and len(value) != pairs:
            raise CheckpointError(f"config.json gives {key} {len(value)} numbers; heads of size {head_dim} have {pairs} pairs")
        if not isinstance(value, list if one_per_pair else (int, float)) or not value:
            raise CheckpointError(f"config.json scales rope by {kind!r}, which needs a {key}, and gives {value!r}")
    for key in ("alpha", "mrope_section", "partial_rotary_factor", "full_attention", "sliding_attention"):
        if (value := rope.get(key, config.get(key))) not in (None, 1.0):
            raise CheckpointError(f"config.json has {key} {value!r} for rope, which this engine does not support")
    return float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0), scaling


def _sliding_windows(config: Mapping[str, Any], num_layers: int) -> tuple[int | None, ...]:
    """Returns each layer's window or None: by layer_types, or else for layers from max_window_layers on if use_sliding_window."""
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    first = config.get("max_window_layers", 0)
    plain = ["sliding_attention" if window and i >= first else "full_attention" for i in range(num_layers)]
    kinds = config.get("layer_types") or plain
    if len(kinds) != num_layers:
        raise CheckpointError(f"config.json has {num_layers} layers and layer_types for {len(kinds)}; fetch the checkpoint again")
    for i, kind in enumerate(kinds):
        if kind not in ("full_attention", "sliding_attention") or (kind == "sliding_attention" and not window):
            raise CheckpointError(
                f"config.json's layer_types makes layer {i} {kind!r} and the sliding window in use is {window}; "
                "this engine has full_attention, and sliding_attention with a window"
            )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)

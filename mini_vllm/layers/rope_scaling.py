"""Frequencies of rotary position embedding, also for models that are scaled to contexts longer than in training.

linear divides every pair's frequency by one factor, llama3 and yarn only low ones, longrope divides each by a different factor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
}
"""Kind of scaling, a rope_type of config.json -> the keys that this kind requires."""


def inverse_frequency(head_dim: int, max_position: int, theta: float, scaling: Mapping[str, Any]) -> tuple[Tensor, float]:
    """Computes the angle by which each pair is rotated per position, and the factor of cosine and sine.

    Returns:
        angles, float32 of shape (D / 2,), in radians; the attention factor, 1 for all kinds but yarn and longrope.

    Raises:
        ValueError: the kind of scaling is not in :data:`REQUIRED`.
    """
    match scaling.get("rope_type", "default"):
        case "default":
            return plain(head_dim, theta), 1.0
        case "linear":
            return plain(head_dim, theta) / scaling["factor"], 1.0
        case "dynamic":
            return plain(head_dim, dynamic_theta(head_dim, max_position, theta, scaling)), 1.0
        case "llama3":
            return llama3(plain(head_dim, theta), scaling), 1.0
        case "yarn":
            return yarn(plain(head_dim, theta), theta, scaling), yarn_attention_factor(scaling)
        case "longrope":
            return longrope(plain(head_dim, theta), max_position, scaling)
        case kind:
            raise ValueError(f"rope scaling {kind!r} is not supported; use one of {', '.join(REQUIRED)}")


def plain(head_dim: int, theta: float) -> Tensor:
    """Returns theta^(-2i/D), float32 of shape (D / 2,), computed as in transformers, so that the last bits are equal."""
    return 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def dynamic_theta(head_dim: int, max_position: int, theta: float, scaling: Mapping[str, Any]) -> float:
    """Returns the base of "dynamic NTK", which grows with the length of the context.

    transformers recomputes the base while a sequence grows past max_position; cached keys, already rotated, do not allow that. As
    in vLLM, one length is used for all sequences: max_position, relative to config.json's max_trained_positions. Without that key
    the base is theta, as in transformers for sequences up to max_position; the engine has no longer ones.
    """
    factor, trained = scaling["factor"], scaling.get("max_trained_positions") or max_position
    stretch = factor * max_position / trained - (factor - 1)
    return float(theta * stretch ** (head_dim / (head_dim - 2)))


def llama3(frequency: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Returns frequencies (D / 2,) scaled as in Llama 3.1: not changed with more than high_freq_factor turns in the original
    length, divided by factor with fewer than low_freq_factor turns, and interpolated between the two."""
    factor, low, high = float(scaling["factor"]), float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = frequency * float(scaling["original_max_position_embeddings"]) / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * frequency + (1 - kept) * frequency / factor


def yarn(frequency: Tensor, theta: float, scaling: Mapping[str, Any]) -> Tensor:
    """Returns frequencies (D / 2,) scaled as in Peng et al. 2023, "YaRN", section 3.2: like llama3, but interpolated linearly in
    the pair's index i, between the pairs with beta_fast and beta_slow turns in the original length."""
    half = len(frequency)

    def pair_with_turns(turns: float) -> float:
        return half * math.log(scaling["original_max_position_embeddings"] / (turns * 2 * math.pi)) / math.log(theta)

    first, last = pair_with_turns(scaling.get("beta_fast") or 32), pair_with_turns(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * half - 1)
    slowed = ((torch.arange(half, dtype=torch.float32) - first) / (last - first or 0.001)).clamp(0, 1)
    return frequency / float(scaling["factor"]) * slowed + frequency * (1 - slowed)


def yarn_attention_factor(scaling: Mapping[str, Any]) -> float:
    """Returns 0.1 * ln(factor) + 1 ("YaRN", section 3.4), unless config.json has attention_factor or DeepSeek's two mscales."""
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])

    def of(mscale: float) -> float:
        return 0.1 * mscale * math.log(max(scaling["factor"], 1)) + 1.0

    mscale, over = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return of(mscale) / of(over) if mscale and over else of(1)


def longrope(frequency: Tensor, max_position: int, scaling: Mapping[str, Any]) -> tuple[Tensor, float]:
    """Ding et al. 2024, "LongRoPE": divides each pair's frequency by that pair's factor. Returns (D / 2,) and attention factor.

    A checkpoint has two lists of factors. transformers switches from short to long when a sequence exceeds the original length; a
    KV cache needs one list for all sequences: long_factor if max_position exceeds that length (in vLLM: if max_model_len does).
    """
    original = scaling["original_max_position_embeddings"]
    own = torch.tensor(scaling["long_factor" if max_position > original else "short_factor"], dtype=torch.float32)
    stretch = scaling.get("factor") or max_position / original
    factor = scaling.get("attention_factor")
    if factor is None:
        factor = math.sqrt(1 + math.log(max(stretch, 1)) / math.log(original))
    return frequency / own, float(factor)

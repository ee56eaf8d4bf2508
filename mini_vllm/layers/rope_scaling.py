"""Frequencies of rotary position embedding, for models that are scaled to read further than they were trained to.

linear slows every pair by the same factor, llama3 and yarn only the slow pairs, longrope each pair by a factor of its own.
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
"""Every kind of scaling, as config.json's rope_type names it, and the keys that it cannot do without."""


def inverse_frequency(head_dim: int, max_position: int, theta: float, scaling: Mapping[str, Any]) -> tuple[Tensor, float]:
    """How fast each pair turns, and what cosine and sine are multiplied by.

    Returns:
        float32 of shape (D / 2,), in radians per position; the attention factor, 1 for all but yarn and longrope.

    Raises:
        ValueError: a kind of scaling that is not in :data:`REQUIRED`.
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
            raise ValueError(f"rope scaling {kind!r} is not known; the layer knows {', '.join(REQUIRED)}")


def plain(head_dim: int, theta: float) -> Tensor:
    """theta^(-2i/D), float32 of shape (D / 2,), rounded as transformers rounds it."""
    return 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def dynamic_theta(head_dim: int, max_position: int, theta: float, scaling: Mapping[str, Any]) -> float:
    """The base of "dynamic NTK", which grows with the length that is to be read.

    transformers takes the length of the sequence at hand, so the base changes while a sequence grows past max_position; keys
    in a KV cache stay as they were turned. So here, as in vLLM, one length counts for all: max_position, over the
    max_trained_positions that config.json may give. Without that key the base is theta itself, which is also what
    transformers does up to max_position, and the engine goes no further.
    """
    factor, trained = scaling["factor"], scaling.get("max_trained_positions") or max_position
    stretch = factor * max_position / trained - (factor - 1)
    return float(theta * stretch ** (head_dim / (head_dim - 2)))


def llama3(frequency: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Llama 3.1's: pairs that turn more than high_freq_factor times in the original length stay, those that turn less than
    low_freq_factor times are slowed by factor, and between the two it is a blend. (D / 2,) to (D / 2,)."""
    factor, low, high = float(scaling["factor"]), float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = frequency * float(scaling["original_max_position_embeddings"]) / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * frequency + (1 - kept) * frequency / factor


def yarn(frequency: Tensor, theta: float, scaling: Mapping[str, Any]) -> Tensor:
    """Peng et al. 2023, "YaRN", section 3.2: as llama3, but the blend is even in i, between the pairs that turn beta_fast and
    beta_slow times in the original length. (D / 2,) to (D / 2,)."""
    half = len(frequency)

    def pair_that_turns(times: float) -> float:
        return half * math.log(scaling["original_max_position_embeddings"] / (times * 2 * math.pi)) / math.log(theta)

    first, last = pair_that_turns(scaling.get("beta_fast") or 32), pair_that_turns(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * half - 1)
    slowed = ((torch.arange(half, dtype=torch.float32) - first) / (last - first or 0.001)).clamp(0, 1)
    return frequency / float(scaling["factor"]) * slowed + frequency * (1 - slowed)


def yarn_attention_factor(scaling: Mapping[str, Any]) -> float:
    """Section 3.4: 0.1 * ln(factor) + 1, unless config.json says otherwise (attention_factor; DeepSeek's two mscales)."""
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])

    def of(mscale: float) -> float:
        return 0.1 * mscale * math.log(max(scaling["factor"], 1)) + 1.0

    mscale, over = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return of(mscale) / of(over) if mscale and over else of(1)


def longrope(frequency: Tensor, max_position: int, scaling: Mapping[str, Any]) -> tuple[Tensor, float]:
    """Ding et al. 2024, "LongRoPE": every pair is slowed by a number of its own. (D / 2,) to (D / 2,), and the factor.

    A checkpoint has two lists. transformers changes from short to long when a sequence outgrows the original length; a KV
    cache wants one for all, so the long one is taken when max_position is beyond that length, as vLLM does with its
    max_model_len.
    """
    original = scaling["original_max_position_embeddings"]
    own = torch.tensor(scaling["long_factor" if max_position > original else "short_factor"], dtype=torch.float32)
    stretch = scaling.get("factor") or max_position / original
    factor = scaling.get("attention_factor")
    if factor is None:
        factor = math.sqrt(1 + math.log(max(stretch, 1)) / math.log(original))
    return frequency / own, float(factor)

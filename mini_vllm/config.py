"""Configuration of an engine and of quantization; fields are named as in vLLM where vLLM has the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SIZES = ("max_model_len", "block_size", "num_blocks", "max_num_batched_tokens", "max_num_seqs", "vocab_size")


@dataclass(frozen=True)
class EngineConfig:
    """Sizes of an engine.

    Attributes:
        max_model_len: the most tokens a request may have, prompt and output together.
        eos_token_ids: tokens that end a request, unless its sampling parameters set ``ignore_eos``.
        vocab_size: V; requests with token ids from V on are refused before they reach the model. None if config.json has none.
        block_size: tokens in a KV block.
        num_blocks: number of blocks; the KV tensors have ``num_blocks * block_size`` slots per layer.
        max_num_batched_tokens: the token budget of one step, shared by decodes and prefill chunks.
        max_num_seqs: the most requests that run in one step.
        enable_prefix_caching: whether requests share the blocks of a common prefix.

    Raises:
        ValueError: a size is below 1.
    """

    max_model_len: int
    eos_token_ids: frozenset[int] = frozenset()
    vocab_size: int | None = None
    block_size: int = 16
    num_blocks: int = 2048
    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 64
    enable_prefix_caching: bool = True

    def __post_init__(self) -> None:
        for name in SIZES:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")


QUANT_METHODS = ("int8", "int4")


@dataclass(frozen=True)
class QuantizationConfig:
    """Method and group size of the quantization of weights after loading (layers/quantization.py).

    Attributes:
        method: "int8" or "int4".
        group_size: for int4, how many inputs of an output share a scale and a zero; 0 for int8, which has one scale per output.
    """

    method: str
    group_size: int = 0

    def __str__(self) -> str:
        return f"{self.method}, group_size {self.group_size}" if self.group_size else self.method

    @classmethod
    def from_hf(cls, config: str | Mapping[str, Any]) -> QuantizationConfig:
        """Reads {"quant_method": "int4", "group_size": 64}, or a method's name; the default group size is 32.

        Raises:
            ValueError: the method is not "int8" or "int4", group_size is invalid, or the method has no setting of that name.
        """
        settings: dict[str, Any] = dict(config) if isinstance(config, Mapping) else {"quant_method": config}
        method = settings.pop("quant_method", None)
        if method not in QUANT_METHODS:
            raise ValueError(
                f"quantization is {method!r}, and the engine has {' and '.join(QUANT_METHODS)}; serve a checkpoint "
                "whose weights are not quantized, and pass one of these methods or None"
            )
        group_size = settings.pop("group_size", 32) if method == "int4" else 0
        if method == "int4" and (type(group_size) is not int or group_size < 1):
            raise ValueError(f"quantization int4 has group_size {group_size!r}; it must be a whole number from 1 on")
        if settings:
            has = "quant_method and group_size" if method == "int4" else "quant_method alone"
            raise ValueError(f"quantization {method} comes with {', '.join(sorted(settings))}; the engine takes {has}")
        return cls(method, group_size)

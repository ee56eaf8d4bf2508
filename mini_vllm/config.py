"""How an engine is sized; the names are vLLM's where vLLM has one."""

from __future__ import annotations

from dataclasses import dataclass

SIZES = ("max_model_len", "block_size", "num_blocks", "max_num_batched_tokens", "max_num_seqs", "vocab_size")


@dataclass(frozen=True)
class EngineConfig:
    """Limits that hold for the engine's whole life.

    Attributes:
        max_model_len: the most tokens a request may have, prompt and output together.
        eos_token_ids: tokens that end a request, unless it asks for ``ignore_eos``.
        vocab_size: V, so that token ids outside it are refused before they reach the model; None when it is not known.
        block_size: tokens a KV block holds.
        num_blocks: blocks there are; the KV tensors have ``num_blocks * block_size`` slots per layer.
        max_num_batched_tokens: the token budget of one step, shared by decodes and prefill chunks.
        max_num_seqs: the most requests that run at once.
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

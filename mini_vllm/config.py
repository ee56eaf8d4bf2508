"""How an engine is sized; the names are vLLM's where vLLM has one."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class EngineConfig:
    """Limits that hold for the engine's whole life.

    Attributes:
        max_model_len: the most tokens a request may have, prompt and output together.
        eos_token_ids: tokens that end a request, unless it asks for ``ignore_eos``.
        block_size: tokens a KV block holds.
        num_blocks: blocks there are; the KV tensors have ``num_blocks * block_size`` slots per layer.
        max_num_batched_tokens: the token budget of one step, shared by decodes and prefill chunks.
        max_num_seqs: the most requests that run at once.

    Raises:
        ValueError: a size is below 1.
    """

    max_model_len: int
    eos_token_ids: frozenset[int] = frozenset()
    block_size: int = 16
    num_blocks: int = 2048
    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and value < 1:
                raise ValueError(f"{field.name} is {value}; it must be at least 1")

"""How the next token is chosen; names and defaults as vLLM's SamplingParams."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingParams:
    """What one request asks of the sampler.

    Attributes:
        temperature: 0 is greedy; above 0 the logits are divided by it before the softmax.
        max_tokens: the most tokens to generate.
        seed: makes a sampled request repeatable, whoever shares its batch; None draws a fresh one.
        stop_token_ids: tokens that end the request, beside the model's own end-of-sequence tokens.
        ignore_eos: go on after the model's own end-of-sequence tokens.

    Raises:
        ValueError: a value is out of its range; the message says both.
    """

    temperature: float = 1.0
    max_tokens: int = 16
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}; it must be a number from 0 (greedy) up")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; it must be at least 1")
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))

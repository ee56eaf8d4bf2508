"""Sampling parameters of a request; same names, defaults and ranges as vLLM's SamplingParams (vllm/sampling_params.py:268)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

RANGES = {
    "n": (1, math.inf),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "temperature": (0, 2),
    "min_p": (0, 1),
    "top_k": (-1, math.inf),
    "seed": (0, 2**63 - 1),
    "max_tokens": (1, math.inf),
    "min_tokens": (0, math.inf),
    "logprobs": (-1, math.inf),
    "prompt_logprobs": (-1, math.inf),
}
"""Parameter -> smallest and largest value, both allowed."""

WHOLE_NUMBERS = ("n", "top_k", "seed", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs")
MAY_BE_NONE = ("seed", "max_tokens", "logprobs", "prompt_logprobs")


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Sampling parameters of one request.

    Attributes:
        n: number of answers to the same prompt.
        presence_penalty: subtracted once from the logit of every token that the answer contains.
        frequency_penalty: subtracted from a token's logit once per occurrence of the token in the answer.
        repetition_penalty: divides the positive and multiplies the negative logits of tokens in prompt or answer
            (Keskar et al. 2019, "CTRL", section 4.1).
        temperature: 0 takes the most likely token; above 0 the logits are divided by ``temperature`` before the softmax.
        top_p: keep the most likely tokens until their probabilities add up to top_p (Holtzman et al. 2020, "nucleus").
        top_k: keep that many of the most likely tokens; 0 or -1 keeps all.
        min_p: keep tokens at least min_p times as likely as the most likely one (Nguyen et al. 2024, "min-p").
        seed: makes a sampled request reproducible in any batch; None draws a random one. Answer i of n has seed + i.
        stop: texts that end the answer; the answer's text ends before the stop text, unless ``include_stop_str_in_output``.
        stop_token_ids: tokens that end the answer, beside the model's end-of-sequence tokens.
        ignore_eos: continue after the model's end-of-sequence tokens.
        max_tokens: the most tokens to generate; None continues to the engine's max_model_len.
        min_tokens: until so many tokens are generated, stop tokens are not sampled and stop texts are ignored.
        logprobs: log probabilities of that many most likely tokens beside the sampled one, at every step; -1: whole vocabulary.
        prompt_logprobs: log probabilities of every prompt token but the first, and of that many most likely tokens; -1: all.
        detokenize: whether the answer has a text.
        skip_special_tokens: leave special tokens out of the text.
        include_stop_str_in_output: leave the text or token that stopped the answer in the text.
        logit_bias: token id -> number added to its logit, from -100 to 100.

    Raises:
        ValueError: a value is out of its range, or two values contradict each other.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    logit_bias: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        for name, (least, largest) in RANGES.items():
            value = getattr(self, name)
            if value is None and name in MAY_BE_NONE:
                continue
            kind, word = (int, "whole number") if name in WHOLE_NUMBERS else (int | float, "number")
            if not isinstance(value, kind) or isinstance(value, bool) or not least <= value <= largest:
                upto = f"to {largest}" if math.isfinite(largest) else "up"
                raise ValueError(f"{name} is {value!r}; it must be a {word} from {least} {upto}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1, which keeps all tokens")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; it must be above 0, and 1 changes nothing")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens is {self.min_tokens}, above max_tokens, {self.max_tokens}; lower min_tokens")
        if self.n > 1 and self.is_greedy:
            raise ValueError(f"n is {self.n} and temperature is 0: {self.n} greedy answers would be the same; pass n=1")
        if any(not text for text in self.stop_strings):
            raise ValueError("stop holds an empty text, which would stop every answer at once; leave it out")
        if self.stop_strings and not self.detokenize:
            raise ValueError("stop asks to look for texts and detokenize=False makes none; leave one of the two out")
        for token, bias in (self.logit_bias or {}).items():
            if not -100 <= bias <= 100:
                raise ValueError(f"logit_bias of token {token} is {bias}; it must be from -100 to 100")

    def of_each_answer(self) -> list[SamplingParams]:
        """Returns parameters of the n answers, each with n=1: answer i has seed + i, and only the first has prompt_logprobs."""
        seeds = [None if self.seed is None else self.seed + index for index in range(self.n)]
        first, *others = (replace(self, n=1, seed=seed) for seed in seeds)
        return [first, *(replace(each, prompt_logprobs=None) for each in others)]

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0

    @property
    def is_plain_greedy(self) -> bool:
        """Whether every token is the argmax of the model's logits, with no penalty, bias or min_tokens."""
        penalties = self.presence_penalty, self.frequency_penalty, self.repetition_penalty
        return self.is_greedy and penalties == (0, 0, 1) and not self.min_tokens and not self.logit_bias

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple of texts, empty for None."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

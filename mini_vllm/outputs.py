"""Outputs of a request; the names are vLLM's (vllm/outputs.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]
"""``stop``: an end-of-sequence token, a stop token or a stop text. ``length``: max_tokens or the model's length. ``abort``: the
caller aborted it. ``error``: the model failed on it."""


@dataclass(frozen=True)
class Logprob:
    """The model's log probability of one token.

    Attributes:
        logprob: from the model's logits, before penalties, bias and temperature.
        rank: how many tokens are at least as likely: 1 for the most likely one.
        decoded_token: the token as text; None without a tokenizer.
    """

    logprob: float
    rank: int
    decoded_token: str | None = None


PositionLogprobs = dict[int, Logprob]
"""Token id -> its log probability: the sampled token first, then the top ones by rank."""


@dataclass(frozen=True)
class CompletionOutput:
    """One answer so far.

    Attributes:
        index: the number of the answer, of a request's n, from 0.
        text: the answer's text; empty without a tokenizer. It never ends inside a character, and until the answer ends it leaves
            out an end that may be the beginning of a stop text.
        token_ids: the tokens generated, including the one that ended the answer.
        logprobs: one entry per token, if requested.
        cumulative_logprob: the sum of the tokens' log probabilities, if requested.
        finish_reason: why it ended; None before.
        stop_reason: the stop token or stop text that ended it; None when it was the model's own end-of-sequence token.
        error: what the model raised, when ``finish_reason`` is "error".
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[PositionLogprobs] | None = None
    cumulative_logprob: float | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: Exception | None = None


@dataclass(frozen=True)
class RequestOutput:
    """One request with its answers so far.

    Attributes:
        prompt: the prompt's text; None when it was given as token ids.
        finished: whether all answers have ended.
        prompt_logprobs: one entry per prompt token, None for the first, if requested.
        num_cached_tokens: prompt tokens that the prefix cache had when the request first ran.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    num_cached_tokens: int = 0

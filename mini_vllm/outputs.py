"""Outputs of a request; named as in vLLM (vllm/outputs.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]
"""``stop``: an end-of-sequence token, a stop token or a stop text. ``length``: max_tokens or max_model_len was reached.
``abort``: the caller aborted the request. ``error``: the model failed on the request."""


@dataclass(frozen=True)
class Logprob:
    """The model's log probability of one token.

    Attributes:
        logprob: natural logarithm, from the model's logits before penalties, bias and temperature.
        rank: 1 for the most likely token: how many tokens are at least as likely, this one included.
        decoded_token: the token as text; None without a tokenizer.
    """

    logprob: float
    rank: int
    decoded_token: str | None = None


PositionLogprobs = dict[int, Logprob]
"""Token id -> log probability: first the sampled token (or the prompt's), then the most likely ones by rank."""


@dataclass(frozen=True)
class CompletionOutput:
    """One answer, finished or so far.

    Attributes:
        index: the number of the answer among the n of its request, from 0.
        text: the answer's text; empty without a tokenizer. Until the answer ends, the text stops before an incomplete character
            and before characters that may begin a stop text.
        token_ids: the tokens generated, including the one that ended the answer.
        logprobs: one entry per generated token; None if not requested.
        cumulative_logprob: the sum of the generated tokens' log probabilities; None if not requested.
        finish_reason: why the answer ended; None until then.
        stop_reason: the stop token or stop text that ended the answer; None for the model's end-of-sequence token.
        error: the exception that the request raised, when ``finish_reason`` is "error".
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
        prompt_logprobs: one entry per prompt token computed so far, None for the first token; None if not requested.
        num_cached_tokens: prompt tokens whose blocks were in the prefix cache when the request first ran.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    num_cached_tokens: int = 0

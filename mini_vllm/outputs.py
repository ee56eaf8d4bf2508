"""What a request hands back; names as vLLM's (vllm/outputs.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]
"""``stop``: an end-of-sequence token, a stop token or a stop text came. ``length``: max_tokens or the model's length was reached.
``abort``: the caller gave it up. ``error``: the model failed on it."""


@dataclass(frozen=True)
class Logprob:
    """How likely the model held one token to be.

    Attributes:
        logprob: log of the softmax of the model's own logits, before penalties, bias and temperature.
        rank: how many tokens are at least as likely: 1 for the most likely one.
        decoded_token: the token as text; None without a tokenizer.
    """

    logprob: float
    rank: int
    decoded_token: str | None = None


PositionLogprobs = dict[int, Logprob]
"""Token id -> its log probability: the token that came first, then the top ones by rank."""


@dataclass(frozen=True)
class CompletionOutput:
    """One answer, as far as it has come.

    Attributes:
        index: which of a request's n answers this is, from 0.
        text: the answer's tokens as text; empty without a tokenizer. It never ends inside a character, and while the answer
            goes on it holds back what may turn out to be the beginning of a stop text.
        token_ids: the tokens generated, the one that ended the answer among them.
        logprobs: one entry per token, if they were asked for.
        cumulative_logprob: the sum of the tokens' log probabilities, if they were asked for.
        finish_reason: why it ended, None while it goes on.
        stop_reason: the stop token or stop text that ended it; None when it was the model's own end-of-sequence token.
        error: what went wrong when ``finish_reason`` is "error".
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
    """One request with its answers, as far as they have come.

    Attributes:
        request_id: the engine's name for it.
        prompt: the prompt's text, None when it came as token ids.
        prompt_token_ids: the prompt as the model saw it.
        outputs: the answers.
        finished: whether all of them have ended.
        prompt_logprobs: one entry per prompt token, None for the first, if they were asked for.
        num_cached_tokens: how many prompt tokens were found in the prefix cache when the request first ran.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    num_cached_tokens: int = 0

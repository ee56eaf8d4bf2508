"""What a finished request hands back; names as vLLM's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]
"""``stop``: an end-of-sequence or stop token came. ``length``: max_tokens or the model's length was reached."""


@dataclass(frozen=True)
class CompletionOutput:
    """One answer.

    Attributes:
        index: which of a request's answers this is, from 0.
        text: the answer's tokens as text, special tokens left out; empty without a tokenizer.
        token_ids: the tokens generated, the one that ended the request among them.
        finish_reason: why it ended.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason


@dataclass(frozen=True)
class RequestOutput:
    """One request with its answers.

    Attributes:
        request_id: the engine's name for it.
        prompt: the prompt's text, None when it came as token ids.
        prompt_token_ids: the prompt as the model saw it.
        outputs: the answers.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]

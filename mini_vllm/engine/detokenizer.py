"""Detokenizer: converts tokens to text one at a time, and finds stop texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from mini_vllm.sampling_params import SamplingParams


class TokenDecoder(Protocol):
    """The methods of a tokenizer that the engine calls."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Returns the text of token ids."""

    def decode_stream(self, skip_special_tokens: bool = True) -> Callable[[int], str]:
        """Returns a function to call with each next token: it returns the text added, empty while a character is incomplete."""


class Detokenizer:
    """Appends the text of one answer's tokens to ``text``, and cuts ``text`` at the first stop text found."""

    def __init__(self, tokenizer: TokenDecoder, params: SamplingParams) -> None:
        self.text = ""
        self._stops, self._include_stop = params.stop_strings, params.include_stop_str_in_output
        self._token_ids: list[int] = []
        self._next = tokenizer.decode_stream(params.skip_special_tokens)
        self._tokenizer, self._skip_special_tokens = tokenizer, params.skip_special_tokens

    def append(self, token: int, may_stop: bool) -> str | None:
        """Appends a token's text; returns the stop text that it completes, of several the one that begins first, or None."""
        self._token_ids.append(token)
        before = len(self.text)
        self.text += self._next(token)
        if not may_stop:
            return None
        # A stop text may begin in the text before this token, but ends in the text of this token.
        begins = {stop: self.text.find(stop, max(0, before + 1 - len(stop))) for stop in self._stops}
        found = min((stop for stop in self._stops if begins[stop] >= 0), key=lambda stop: begins[stop], default=None)
        if found is not None:
            self.text = self.text[: begins[found] + (len(found) if self._include_stop else 0)]
        return found

    def flush(self) -> None:
        """Appends an incomplete last character, as the tokenizer decodes it; called when the answer has ended."""
        complete = self._tokenizer.decode(self._token_ids, self._skip_special_tokens)
        if complete.startswith(self.text):
            self.text = complete

    @property
    def safe_text(self) -> str:
        """The text without its last characters if they may begin a stop text."""
        if self._include_stop:
            return self.text
        held_back = max(
            (size for stop in self._stops for size in range(1, len(stop)) if self.text.endswith(stop[:size])), default=0
        )
        return self.text[: len(self.text) - held_back]

"""Detokenizer: converts tokens to text one at a time, and finds stop texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from mini_vllm.sampling_params import SamplingParams


class TokenDecoder(Protocol):
    """The methods of a tokenizer that the engine calls."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids."""

    def decode_stream(self, skip_special_tokens: bool = True) -> Callable[[int], str]:
        """A function from each next token to the text that it adds; empty while a character is incomplete."""


class Detokenizer:
    """The growing text of one answer; ``text`` is all of it so far, cut at the stop text once that is found."""

    def __init__(self, tokenizer: TokenDecoder, params: SamplingParams) -> None:
        self.text = ""
        self._stops, self._include_stop = params.stop_strings, params.include_stop_str_in_output
        self._token_ids: list[int] = []
        self._next = tokenizer.decode_stream(params.skip_special_tokens)
        self._tokenizer, self._skip_special_tokens = tokenizer, params.skip_special_tokens

    def append(self, token: int, may_stop: bool) -> str | None:
        """Adds a token's text and returns the stop text that it completes, the one that begins first."""
        self._token_ids.append(token)
        before = len(self.text)
        self.text += self._next(token)
        if not may_stop:
            return None
        # A stop text may begin in the old text, but it ends in the new one.
        begins = {stop: self.text.find(stop, max(0, before + 1 - len(stop))) for stop in self._stops}
        found = min((stop for stop in self._stops if begins[stop] >= 0), key=lambda stop: begins[stop], default=None)
        if found is not None:
            self.text = self.text[: begins[found] + (len(found) if self._include_stop else 0)]
        return found

    def flush(self) -> None:
        """Adds the text held back for an incomplete character, which stays incomplete."""
        complete = self._tokenizer.decode(self._token_ids, self._skip_special_tokens)
        if complete.startswith(self.text):
            self.text = complete

    @property
    def safe_text(self) -> str:
        """The text without an end that may be the beginning of a stop text."""
        if self._include_stop:
            return self.text
        held_back = max(
            (size for stop in self._stops for size in range(1, len(stop)) if self.text.endswith(stop[:size])), default=0
        )
        return self.text[: len(self.text) - held_back]

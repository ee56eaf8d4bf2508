"""Prompts: the accepted forms, and their conversion to token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mini_vllm.tokenizer import Tokenizer

Prompt = str | Mapping[str, Any]
"""A text, {"prompt": text} or {"prompt_token_ids": [...]}; the two mappings may have a "cache_salt" text, as in vLLM."""


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as token ids; ``text`` is None if the caller gave ids. Only requests with equal salts share cached blocks."""

    text: str | None
    token_ids: list[int]
    cache_salt: str = ""


def tokenized(prompt: Prompt, tokenizer: Tokenizer | None, add_special_tokens: bool = True) -> TokenizedPrompt:
    """Tokenizes a prompt; ValueError if the prompt has none of the accepted forms, or is text and there is no tokenizer."""
    parts = {"prompt": prompt} if isinstance(prompt, str) else dict(prompt) if isinstance(prompt, Mapping) else {}
    salt, text, token_ids = parts.pop("cache_salt", ""), parts.pop("prompt", None), parts.pop("prompt_token_ids", None)
    if parts or (text is None) == (token_ids is None) or not isinstance(salt, str):
        raise ValueError(
            f"a prompt is {_shown(prompt)}; it must be a text, {{'prompt': text}} or {{'prompt_token_ids': [...]}}; a mapping "
            "may also have a 'cache_salt' text"
        )
    if text is not None:
        if not isinstance(text, str):
            raise ValueError(f"a prompt's text is {_shown(text)}; it must be a str")
        if tokenizer is None:
            raise ValueError("the model has no tokenizer.json; give {'prompt_token_ids': [...]} instead of text")
        return TokenizedPrompt(text, tokenizer.encode(text, add_special_tokens), salt)
    if not isinstance(token_ids, list | tuple) or not all(isinstance(token, int) for token in token_ids):
        raise ValueError(f"prompt_token_ids is {_shown(token_ids)}; it must be a list of whole numbers")
    return TokenizedPrompt(None, list(token_ids), salt)


def _shown(value: object) -> str:
    words = repr(value)
    return words if len(words) <= 60 else f"{words[:60]}..."

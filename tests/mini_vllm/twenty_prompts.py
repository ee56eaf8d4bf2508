"""The prompts that mini_vllm, transformers and vLLM are compared on: twenty lengths of an old English text."""

from __future__ import annotations

from mini_vllm.tokenizer import Tokenizer

TEXT = """It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife.
However little known the feelings or views of such a man may be on his first entering a neighbourhood, this truth is so well fixed
in the minds of the surrounding families, that he is considered as the rightful property of some one or other of their daughters.
"My dear Mr. Bennet," said his lady to him one day, "have you heard that Netherfield Park is let at last?" Mr. Bennet replied that
he had not. "But it is," returned she; "for Mrs. Long has just been here, and she told me all about it." He made no answer.
"""
"""Jane Austen, "Pride and Prejudice", 1813."""


def twenty_prompts(tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of 1, 4, 7, ... 58 tokens, each from another place of the text."""
    tokens = tokenizer.encode(TEXT)
    prompts = [tokens[4 * i : 4 * i + 1 + 3 * i] for i in range(20)]
    assert [len(prompt) for prompt in prompts] == list(range(1, 61, 3))
    return prompts

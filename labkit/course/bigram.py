"""Writes a bigram model of bytes as a checkpoint that mini_vllm can serve."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

BYTES = 256


def write_bigram_checkpoint(folder: Path, text: str, architecture: str) -> None:
    """Counts the byte pairs of ``text`` and writes config.json, model.safetensors and tokenizer.json to ``folder``.

    The tensor ``table`` has shape (256, 256): element (r, c) is the log-probability that byte c follows byte r. A pair that
    does not occur counts as 1/256, so that no log-probability is infinite; the probabilities of every row sum to one.
    """
    data = torch.tensor(list(text.encode()))
    counts = torch.bincount(data[:-1] * BYTES + data[1:], minlength=BYTES * BYTES).view(BYTES, BYTES) + 1 / BYTES
    save_file({"table": (counts / counts.sum(dim=1, keepdim=True)).log()}, folder / "model.safetensors")
    config = {"architectures": [architecture], "vocab_size": BYTES, "max_position_embeddings": 1024, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    byte_tokenizer().save(str(folder / "tokenizer.json"))


def byte_tokenizer() -> Tokenizer:
    """Returns a tokenizer whose token ids are the UTF-8 bytes of the text: byte-level BPE without merges."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    others = (character for character in characters if ord(character) >= BYTES)  # GPT-2's characters for unprintable bytes
    vocabulary = {chr(byte) if chr(byte) in characters else next(others): byte for byte in range(BYTES)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer

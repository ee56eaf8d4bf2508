"""A bigram model of real text: how often each byte follows each other byte, as a checkpoint that the engine can serve."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

BYTES = 256


def write_bigram_checkpoint(folder: Path, text: str, architecture: str) -> None:
    """Counts the bytes of ``text`` and writes config.json, model.safetensors and tokenizer.json to ``folder``.

    The tensor ``table`` is (256, 256): log of the share of bytes after byte ``row`` that are byte ``column``. A pair that was
    never seen gets a count of 1/256, so that every row sums to one and none holds an infinity.
    """
    data = torch.tensor(list(text.encode()))
    counts = torch.bincount(data[:-1] * BYTES + data[1:], minlength=BYTES * BYTES).view(BYTES, BYTES) + 1 / BYTES
    save_file({"table": (counts / counts.sum(dim=1, keepdim=True)).log()}, folder / "model.safetensors")
    config = {"architectures": [architecture], "vocab_size": BYTES, "max_position_embeddings": 1024, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    byte_tokenizer().save(str(folder / "tokenizer.json"))


def byte_tokenizer() -> Tokenizer:
    """A tokenizer whose token ids are the bytes of the text's UTF-8 form: byte-level BPE without a single merge."""
    tokenizer = Tokenizer(BPE(vocab=byte_names(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_names() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte (openai/gpt-2, encoder.py): printable ones stand for themselves, the others are
    numbered from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return {chr(byte if byte in printable else next(others)): byte for byte in range(BYTES)}

"""Conversion of a llama.cpp GGUF file to the directory that transformers, vLLM and mini_vllm read.

Besides the file format, three things differ:

- names: ``blk.7.attn_q.weight`` is ``model.layers.7.self_attn.q_proj.weight``;
- numbers: blocks of 32 four-bit integers with a scale and a minimum (Q4_1) become bf16;
- the order of the rows of q and k. Rotary embedding rotates pairs of rows of a head. Hugging Face pairs row i with row i + D/2,
  llama.cpp pairs adjacent rows, so its converter interleaves the two halves of each head. For a head of D = 6 rows:

      Hugging Face   0 1 2 | 3 4 5          llama.cpp   0 3 1 4 2 5

  With the rows in llama.cpp's order every shape still fits, and the model's output is nonsense.

transformers can convert GGUF files too; the base environment has no transformers. Source of the order of rows: llama.cpp,
convert_hf_to_gguf.py, ``LlamaModel.permute``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, TokenType
from gguf.quants import dequantize
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from labkit.checkpoints.known_models import implied_shapes
from labkit.system.errors import UserError

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class ArrayReader(GGUFReader):
    """The gguf package's reader on a plain array: each of the reader's million slices is much slower on a ``numpy.memmap``."""

    @property
    def data(self) -> Any:
        """The file's bytes, uint8 of shape (size,)."""
        return self._array

    @data.setter
    def data(self, mapped: NDArray[Any]) -> None:
        self._array = mapped.view(np.ndarray)


def convert(gguf: Path, to: Path) -> None:
    """Writes config.json, generation_config.json, model.safetensors, tokenizer.json and tokenizer_config.json.

    A GGUF file always gives the same bytes. Raises OSError if the files cannot be written, and UserError for another architecture
    than ``llama``, another tokenizer than ``smollm``, an unknown tensor, or a result that does not fit config.json.
    """
    reader = ArrayReader(gguf)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    if (keys["general.architecture"], keys["tokenizer.ggml.pre"]) != ("llama", "smollm"):
        raise UserError(
            f"{gguf.name} has architecture {keys['general.architecture']!r} and tokenizer {keys['tokenizer.ggml.pre']!r}; "
            "only 'llama' with 'smollm' can be converted here"
        )
    weights = read_weights(reader, keys["llama.attention.head_count"], keys["llama.attention.head_count_kv"])
    config = config_of(keys, tied="lm_head.weight" not in weights)
    tokenizer, tokenizer_config = tokenizer_of(keys), tokenizer_config_of(keys)
    _check(weights, config, tokenizer, tokenizer_config)
    # save_file raises SafetensorError, which is no OSError, and writes files that only their owner may read.
    try:
        save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    except Exception as error:
        raise OSError(f"model.safetensors: {error}") from error
    (to / "model.safetensors").chmod(0o644)
    _write_json(to / "config.json", config)
    _write_json(to / "generation_config.json", {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")})
    (to / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    _write_json(to / "tokenizer_config.json", tokenizer_config)


def read_weights(reader: GGUFReader, num_heads: int, num_kv_heads: int) -> dict[str, Tensor]:
    """Hugging Face name -> tensor, bf16 of shape (out, in) or (H,), for every tensor of the file."""
    weights = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        if tensor.name.endswith((".attn_q.weight", ".attn_k.weight")):
            values = unpermute(values, num_heads if ".attn_q." in tensor.name else num_kv_heads)
        weights[huggingface_name(tensor.name)] = torch.tensor(values).to(torch.bfloat16)
    return weights


def unpermute(weight: NDArray[Any], num_heads: int) -> NDArray[Any]:
    """Reorders rows of q or k from llama.cpp's order to Hugging Face's: in each head, the even rows before the odd ones.

    Args:
        weight: shape (num_heads * D, in), D even.
        num_heads: N for q, K for k.
    """
    pairs = weight.reshape(num_heads, -1, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def huggingface_name(name: str) -> str:
    """``blk.7.attn_q.weight`` -> ``model.layers.7.self_attn.q_proj.weight``; raises UserError if the name is unknown."""
    match name.split("."):
        case ["blk", layer, part, "weight"] if part in LAYER_NAMES:
            return f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"
        case [part, "weight"] if part in OTHER_NAMES:
            return f"{OTHER_NAMES[part]}.weight"
    raise UserError(f"the GGUF file has a tensor {name!r}, which has no Hugging Face name here; add it to LAYER_NAMES")


def config_of(keys: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    """The content of config.json, from the metadata of the file; ``tied`` if the embedding is also the output head."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": keys["tokenizer.ggml.bos_token_id"],
        "dtype": "bfloat16",
        "eos_token_id": keys["tokenizer.ggml.eos_token_id"],
        "head_dim": keys["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "hidden_size": keys["llama.embedding_length"],
        "intermediate_size": keys["llama.feed_forward_length"],
        "max_position_embeddings": keys["llama.context_length"],
        "mlp_bias": False,
        "num_attention_heads": keys["llama.attention.head_count"],
        "num_hidden_layers": keys["llama.block_count"],
        "num_key_value_heads": keys["llama.attention.head_count_kv"],
        "pad_token_id": keys["tokenizer.ggml.padding_token_id"],
        # Stored as float32: 9.999999747378752e-06 stands for 1e-05.
        "rms_norm_eps": float(f"{keys['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_scaling": None,
        "rope_theta": float(keys["llama.rope.freq_base"]),
        "tie_word_embeddings": tied,
        "vocab_size": keys["llama.vocab_size"],
    }


def tokenizer_of(keys: dict[str, Any]) -> Tokenizer:
    """llama.cpp's ``smollm`` tokenizer: GPT-2's byte-level BPE, applied after every digit is split off."""
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    merges = [(left, right) for left, right in (merge.split(" ") for merge in keys["tokenizer.ggml.merges"])]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer


def tokenizer_config_of(keys: dict[str, Any]) -> dict[str, Any]:
    """The content of tokenizer_config.json: the special tokens by name, and the chat template."""
    tokens = keys["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[keys["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[keys["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[keys["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[keys["tokenizer.ggml.unknown_token_id"]],
        "add_bos_token": keys.get("tokenizer.ggml.add_bos_token", False),
        "clean_up_tokenization_spaces": False,
        "model_max_length": keys["llama.context_length"],
        "chat_template": keys["tokenizer.chat_template"],
    }


def _check(weights: dict[str, Tensor], config: dict[str, Any], tokenizer: Tokenizer, special: dict[str, Any]) -> None:
    """Checks that the tensors have the names and shapes of config.json, and that each special token is one token."""
    wanted = implied_shapes(config)
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        examples = ", ".join(f"{name} is {found.get(name)} and should be {wanted.get(name)}" for name in wrong[:3])
        raise UserError(f"{len(wrong)} of {len(wanted)} tensors do not fit config.json: {examples}")
    if tokenizer.encode(special["bos_token"] + special["eos_token"]).ids != [config["bos_token_id"], config["eos_token_id"]]:
        raise UserError(f"tokenizer.json does not turn {special['bos_token']} and {special['eos_token']} into one token each")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

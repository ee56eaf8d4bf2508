"""The conversion by value: rows, names, numbers, and what the tokenizer makes of text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from labkit.checkpoints.fetch.gguf_to_hf import convert, huggingface_name, unpermute
from labkit.checkpoints.known_models import implied_shapes
from labkit.system.errors import UserError


def permute(weights: NDArray[np.float32], n_head: int) -> NDArray[np.float32]:
    """What llama.cpp does to q and k when it converts a Hugging Face checkpoint (convert_hf_to_gguf.py, LlamaModel.permute)."""
    return weights.reshape(n_head, 2, weights.shape[0] // n_head // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


# --- The rows of q and k -------------------------------------------------------------------------------------------------


@given(heads=st.integers(1, 9), half=st.integers(1, 32), columns=st.integers(1, 5))
def test_unpermute_undoes_what_llama_cpp_does(heads: int, half: int, columns: int) -> None:
    weight = np.arange(heads * 2 * half * columns, dtype=np.float32).reshape(-1, columns)
    assert (unpermute(permute(weight, heads), heads) == weight).all()


def test_unpermute_by_hand() -> None:
    """Of D = 4 rows 0 2 1 3 becomes 0 1 2 3, which permuting would do as well; of D = 6 it would not."""
    assert unpermute(np.array([[0], [2], [1], [3]]), 1).tolist() == [[0], [1], [2], [3]]
    assert unpermute(np.array([0, 3, 1, 4, 2, 5])[:, None], 1)[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert unpermute(np.array([0, 2, 1, 3, 4, 6, 5, 7])[:, None], 2)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


# --- A whole file --------------------------------------------------------------------------------------------------------

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 6,
    "vocab_size": 261,
    "tie_word_embeddings": True,
}
LLAMA_CPP_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_gguf(path: Path, weights: dict[str, NDArray[np.float32]], *, architecture: str = "llama") -> Path:
    """A GGUF file of these Hugging Face weights, as llama.cpp would write it: q and k permuted, names its own, v in Q4_1."""
    tokens = CONTROL + sorted(ByteLevel.alphabet()) + ["he", "42"]
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(CONFIG["hidden_size"])
    writer.add_block_count(CONFIG["num_hidden_layers"])
    writer.add_feed_forward_length(CONFIG["intermediate_size"])
    writer.add_head_count(CONFIG["num_attention_heads"])
    writer.add_head_count_kv(CONFIG["num_key_value_heads"])
    writer.add_rope_dimension_count(CONFIG["head_dim"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * 258)
    writer.add_token_merges(["h e", "4 2"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages }}")
    for name, values in weights.items():
        match name.split("."):
            case ["model", "layers", layer, *part, "weight"]:
                part_name = ".".join(part)
                heads = {"self_attn.q_proj": CONFIG["num_attention_heads"], "self_attn.k_proj": CONFIG["num_key_value_heads"]}
                values = permute(values, heads[part_name]) if part_name in heads else values
                target = f"blk.{layer}.{LLAMA_CPP_NAMES[part_name]}.weight"
            case _:
                target = {"embed_tokens": "token_embd", "norm": "output_norm"}[name.split(".")[1]] + ".weight"
        if name.endswith("v_proj.weight"):
            writer.add_tensor(target, quantize(values, GGMLQuantizationType.Q4_1), raw_dtype=GGMLQuantizationType.Q4_1)
        else:
            writer.add_tensor(target, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_weights() -> dict[str, NDArray[np.float32]]:
    """Values that bf16 holds exactly, so that they must come back as they went in."""
    rng = np.random.default_rng(0)
    return {name: rng.integers(-128, 128, shape).astype(np.float32) / 64 for name, shape in implied_shapes(CONFIG).items()}


def test_every_tensor_comes_back_under_its_name_with_its_values(tmp_path: Path) -> None:
    weights = random_weights()
    convert(write_gguf(tmp_path / "tiny.gguf", weights), tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == weights.keys()
    for name, values in weights.items():
        assert found[name].dtype == torch.bfloat16
        if "v_proj" in name:
            step = (values.max() - values.min()) / 15
            assert np.abs(found[name].float().numpy() - values).max() <= step / 2 + 0.02, "half a step of Q4_1, and bf16"
        else:
            assert (found[name].float().numpy() == values).all(), name
    config = json.loads((tmp_path / "config.json").read_text())
    assert {key: config[key] for key in CONFIG} == CONFIG
    assert (config["rms_norm_eps"], config["rope_theta"], config["dtype"]) == (1e-5, 10000.0, "bfloat16")


def test_a_file_with_a_tensor_missing_is_refused_by_name(tmp_path: Path) -> None:
    weights = random_weights()
    del weights["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(UserError, match=r"1 of 20 tensors .*layers.1.mlp.up_proj.weight is None and should be \(64, 32\)"):
        convert(write_gguf(tmp_path / "tiny.gguf", weights), tmp_path)


def test_a_disk_that_takes_no_more(tmp_path: Path, file_size_limit: Callable[[int], None]) -> None:
    gguf = write_gguf(tmp_path / "tiny.gguf", random_weights())
    file_size_limit(20_000)
    with pytest.raises(OSError, match=r"model.safetensors: .*File too large"):
        convert(gguf, tmp_path)


def test_what_is_no_llama_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="architecture 'falcon' and tokenizer 'smollm'"):
        convert(write_gguf(tmp_path / "tiny.gguf", random_weights(), architecture="falcon"), tmp_path)
    with pytest.raises(UserError, match=r"'blk.0.ssm_in.weight', which has no Hugging Face name here"):
        huggingface_name("blk.0.ssm_in.weight")


# --- The tokenizer -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tiny")
    convert(write_gguf(folder / "tiny.gguf", random_weights()), folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@given(text=st.text())
def test_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    """Whatever is split or merged, nothing is lost: the vocabulary has every byte here."""
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_text_is_split_as_by_hand(tokenizer: Tokenizer) -> None:
    """``42`` is in the vocabulary, and would be one token if digits were not split first."""
    assert tokenizer.encode("he 42<|im_end|>").tokens == ["he", "Ġ", "4", "2", "<|im_end|>"]

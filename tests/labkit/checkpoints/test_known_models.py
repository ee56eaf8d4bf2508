"""Which model is meant and what it holds, without vLLM: known names, directories, shapes, and every refusal in a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import TINY
from safetensors.numpy import save_file

from labkit.checkpoints.known_models import check_ranks, implied_shapes, known_names, resolve
from labkit.load.trace import EXAMPLE_TENSORS, trace_load
from labkit.system.errors import UserError


def write(directory: Path, config: Mapping[str, Any] | str) -> Path:
    text = config if isinstance(config, str) else json.dumps(config)
    (directory / "config.json").write_text(text)
    return directory


def test_importing_costs_neither_torch_nor_vllm() -> None:
    code = "import sys, labkit.load.trace; print({'torch', 'vllm', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_known_names_stand_for_the_real_sizes() -> None:
    assert {"llama-3-8b", "smollm2"} <= set(known_names())
    llama, smollm2 = resolve("llama-3-8b").shapes, resolve("smollm2").shapes
    assert len(llama) == 291
    assert sum(int(np.prod(shape)) for shape in llama.values()) == 8_030_261_248
    assert len(smollm2) == 272
    assert sum(int(np.prod(shape)) for shape in smollm2.values()) == 134_515_008
    assert set(EXAMPLE_TENSORS) <= set(llama)


def test_the_parts_of_a_config_that_may_be_absent() -> None:
    config = {key: value for key, value in TINY.items() if key not in ("head_dim", "num_key_value_heads")}
    shapes = implied_shapes(config | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True})
    assert "lm_head.weight" not in shapes
    assert shapes["model.layers.0.self_attn.k_proj.weight"] == (64, 64)
    assert shapes["model.layers.0.self_attn.o_proj.bias"] == (64,)
    assert shapes["model.layers.1.mlp.up_proj.bias"] == (96,)


def test_stored_shapes_come_from_the_files_not_from_the_config(tmp_path: Path) -> None:
    save_file({"a": np.zeros((2, 3), np.float32)}, write(tmp_path, TINY) / "model-00001-of-00002.safetensors")
    save_file({"b": np.zeros(4, np.float32)}, tmp_path / "model-00002-of-00002.safetensors")
    assert resolve(tmp_path).shapes == {"a": (2, 3), "b": (4,)}
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    assert resolve(tmp_path).shapes == {"a": (2, 3)}


def refusal(model: str | Path, **options: Any) -> str:
    with pytest.raises(UserError) as refused:
        trace_load(model, **options)
    return str(refused.value)


def test_a_directory_without_config_json(tmp_path: Path) -> None:
    assert refusal(tmp_path) == (
        f"there is no config.json in {tmp_path}; give a directory that has one, or one of {len(known_names())} known names, "
        "such as llama-3-8b"
    )
    assert "known names, such as llama-3.1-8b or " in refusal("lama-3.1-8b")


def test_a_config_that_cannot_be_used(tmp_path: Path) -> None:
    assert "is not JSON" in refusal(write(tmp_path, "{"))
    assert "holds no JSON object" in refusal(write(tmp_path, "[1]"))
    said = refusal(write(tmp_path, TINY | {"architectures": ["MixtralForCausalLM"]}))
    assert "names MixtralForCausalLM, and there is no safetensors file beside it; add the files: from config.json alone" in said
    assert "names no architecture" in refusal(write(tmp_path, {}))
    assert "does not say vocab_size" in refusal(write(tmp_path, TINY | {"vocab_size": "many"}))
    assert "does not say num_key_value_heads, head_dim" in refusal(
        write(tmp_path, TINY | {"num_key_value_heads": "2", "head_dim": 2.5}), tp_size=2
    )
    assert "1,000,000,000 layers, more than any model has" in refusal(write(tmp_path, TINY | {"num_hidden_layers": 10**9}))
    assert "is not JSON" in refusal(write(tmp_path, "[" * 100_000))
    assert "describes a quantized checkpoint" in refusal(write(tmp_path, TINY | {"quantization_config": {"quant_method": "fp8"}}))


def test_a_missing_file_that_the_index_names(tmp_path: Path) -> None:
    write(tmp_path, TINY)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}')
    assert "names model-00002-of-00002.safetensors, and there is no such file beside it; fetch" in refusal(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    assert "has no weight_map that can be read" in refusal(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}')
    assert "names '../model.safetensors', which is no file name in its folder; fetch the checkpoint again" in refusal(tmp_path)


def test_a_pickled_checkpoint_is_not_taken_for_none_at_all(tmp_path: Path) -> None:
    (write(tmp_path, TINY) / "pytorch_model.bin").write_bytes(b"")
    assert "there is no safetensors file in" in refusal(tmp_path)
    assert "only pytorch_model.bin, a pickle: reading one runs the code in it" in refusal(tmp_path)


@pytest.mark.parametrize("left", [100, 20, 0])
def test_a_truncated_safetensors_file(tmp_path: Path, left: int) -> None:
    file = write(tmp_path, TINY) / "model.safetensors"
    save_file({"a": np.zeros((20, 30), np.float32)}, file)
    file.write_bytes(file.read_bytes()[:left])
    assert f"model.safetensors ({left} bytes) is cut off or is no safetensors file" in refusal(tmp_path)


def test_heads_that_the_ranks_cannot_share() -> None:
    assert refusal("smollm2", tp_size=2) == "9 query heads cannot be divided over 2 ranks; TP sizes that fit this model: 1, 3"
    assert "TP sizes that fit this model: 1, 2, 4, 8, 16, 32" in refusal("llama-3-8b", tp_size=3)
    assert "TP 0 is not a number of ranks" in refusal("llama-3-8b", tp_size=0)
    with pytest.raises(UserError, match="4 kv heads can be neither divided over 6 ranks nor repeated on them evenly"):
        check_ranks(TINY | {"num_attention_heads": 12, "num_key_value_heads": 4, "vocab_size": 192}, 6, (0,))
    with pytest.raises(UserError, match="192 padded vocabulary rows cannot be divided over 9 ranks"):
        check_ranks(TINY | {"num_attention_heads": 9, "num_key_value_heads": 9, "intermediate_size": 9}, 9, (0,))


def test_ranks_that_there_are_not() -> None:
    assert refusal("llama-3-8b", tp_size=2, ranks=[2]) == "there is no rank 2 at TP 2; give one of 0 to 1"
    assert "heads cannot be divided over" in refusal("llama-3-8b", tp_size=10**15, ranks=range(10**15))
    assert "no rank was given" in refusal("llama-3-8b", tp_size=2, ranks=[])

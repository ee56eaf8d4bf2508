"""LoRA adapters that are refused, each in one sentence and before anything is laid beside a layer."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_lora import GREEDY, PROMPTS, SEVEN, Tensors, TinyModel, change, greedy, ids, layers_of, write_adapter

from mini_vllm import LLM, LoRARequest
from mini_vllm.loading.checkpoint import CheckpointError


def name_of(module: str, letter: str) -> str:
    return f"base_model.model.model.layers.{module}.lora_{letter}.weight"


Q_A, Q_B = name_of("0.self_attn.q_proj", "A"), name_of("0.self_attn.q_proj", "B")


def beside(module: str) -> Callable[[Tensors], Tensors]:
    """Two more tensors, of a module of this name and of q_proj's shapes."""
    prefix = f"base_model.model.{module}"
    return lambda tensors: (
        tensors | {f"{prefix}.lora_A.weight": tensors[Q_A].clone(), f"{prefix}.lora_B.weight": tensors[Q_B].clone()}
    )


def one_more(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: torch.zeros(4)}


def of_shape(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: torch.zeros(shape)}


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {other: tensor for other, tensor in tensors.items() if other != name}


REFUSED: dict[str, tuple[dict[str, Any], Callable[[Tensors], Tensors], str]] = {
    "dora": ({"use_dora": True}, dict, "has use_dora = True; only plain LoRA is served"),
    "biases": ({"bias": "lora_only"}, dict, "has bias = 'lora_only'; only 'none' is served"),
    "saved modules": ({"modules_to_save": ["lm_head"]}, dict, r"has modules_to_save = \['lm_head'\]"),
    "lora bias": ({"lora_bias": True}, dict, "has lora_bias = True"),
    "transposed": ({"fan_in_fan_out": True}, dict, "has fan_in_fan_out = True"),
    "experts": ({"target_parameters": ["mlp.experts"]}, dict, r"has target_parameters = \['mlp.experts'\]"),
    "tokens": ({"trainable_token_indices": [1, 2]}, dict, r"has trainable_token_indices = \[1, 2\]"),
    "aLoRA": ({"alora_invocation_tokens": [5]}, dict, r"has alora_invocation_tokens = \[5\]"),
    "changed base": ({"init_lora_weights": "pissa"}, dict, "has init_lora_weights = 'pissa'; it needs a base that peft"),
    "no LoRA": ({"peft_type": "LOHA"}, dict, "has peft_type = 'LOHA'; only LORA"),
    "rank 0": ({"r": 0}, dict, "has r = 0; it must be a whole number from 1 up"),
    "rank in words": ({"r": "4"}, dict, "has r = '4'; it must be a whole number"),
    "no rank": ({"r": "gone"}, dict, "has r = None; it must be a whole number"),
    "no alpha": ({"lora_alpha": "gone"}, dict, "has lora_alpha = None; it must be a number"),
    "alpha NaN": ({"lora_alpha": float("nan")}, dict, "has lora_alpha = nan; it must be a number"),
    "alpha huge": ({"lora_alpha": 10**400}, dict, "has lora_alpha = 10*; it must be a number"),
    "a search without end": (
        {"rank_pattern": {"(a+)+b": 2}},
        dict,
        r"has rank_pattern = \{'\(a\+\)\+b': 2\}; it must map module names",
    ),
    "targets": ({"target_modules": 7}, dict, "has target_modules = 7; it must be a list of module names or a pattern"),
    "target": (
        {"target_modules": [*SEVEN, "c_attn"]},
        dict,
        "has 'c_attn' among its target_modules, and adapter_model.safetensors no tensors of a module of that name",
    ),
    "another rank": (
        {"r": 3},
        dict,
        r"down_proj\.lora_A\.weight is \(4, 80\), and model\.layers\.0\.mlp\.down_proj\.weight, \(48, 80\), takes "
        r"\(3, 80\) with r = 3 \(and 27 more such faults\); nothing was loaded",
    ),
    "rank by name": ({"rank_pattern": {"q_proj": 2}}, dict, r"is \(4, 48\), and .*takes \(2, 48\) with r = 2 \(and 3 more"),
    "wide A": ({}, of_shape(Q_A, 4, 49), r"q_proj\.lora_A\.weight is \(4, 49\), and .* takes \(4, 48\) with r = 4; nothing"),
    "tall B": ({}, of_shape(Q_B, 49, 4), r"q_proj\.lora_B\.weight is \(49, 4\), and .* takes \(48, 4\) with r = 4; nothing"),
    "short B": (
        {},
        of_shape(name_of("1.self_attn.k_proj", "B"), 8, 4),
        r"is \(8, 4\), and model\.layers\.1\.self_attn\.qkv_proj\.weight \[k\], \(16, 48\), takes \(16, 4\)",
    ),
    "B flat": ({}, of_shape(Q_B, 192), r"lora_B\.weight is \(192,\), and"),
    "half": (
        {},
        without(Q_B),
        r"0\.self_attn\.q_proj\.lora_B\.weight is not in adapter_model\.safetensors, and its other matrix is",
    ),
    "other half": ({}, without(Q_A), r"0\.self_attn\.q_proj\.lora_A\.weight is not in adapter_model\.safetensors"),
    "strange": (
        {},
        beside("model.layers.0.mlp.c_fc"),
        r"model\.layers\.0\.mlp\.c_fc goes to model\.layers\.0\.mlp\.c_fc\.weight, which the",
    ),
    "a layer more": (
        {},
        beside("model.layers.2.self_attn.q_proj"),
        r"goes to model\.layers\.2\.self_attn\.qkv_proj\.weight \[q\], which",
    ),
    "fused": (
        {},
        beside("model.layers.0.self_attn.qkv_proj"),
        "qkv_proj is a fused layer of q, k, v, and needs a lora_A and a lora_B for each",
    ),
    "head": ({}, beside("lm_head"), "lm_head is a ParallelLMHead, and only the linear layers between embedding and head"),
    "embedding": ({}, beside("model.embed_tokens"), r"model\.embed_tokens is a VocabParallelEmbedding, and only"),
    "norm": ({}, beside("model.norm"), r"model\.norm is a RMSNorm, and only"),
    "embedding as peft has it": (
        {},
        one_more("base_model.model.model.embed_tokens.lora_embedding_A"),
        r"embed_tokens\.lora_embedding_A is no linear layer's lora_A\.weight or lora_B\.weight",
    ),
    "dora's tensor": ({}, one_more(Q_A.replace("lora_A.weight", "lora_magnitude_vector")), "lora_magnitude_vector is no linear"),
    "lora's bias": ({}, one_more(Q_B.replace("weight", "bias")), r"lora_B\.bias is no linear layer's"),
    "a whole module": ({}, one_more("base_model.model.lm_head.weight"), r"lm_head\.weight is no linear layer's"),
    "no prefix": (
        {},
        one_more(Q_A.removeprefix("base_model.model.")),
        r"model\.layers\.0\.self_attn\.q_proj\.lora_A\.weight is no",
    ),
    "empty": ({}, lambda tensors: {}, r"adapter_model\.safetensors has no tensors"),
}


@pytest.fixture
def served(tiny_model: TinyModel, tmp_path: Path) -> tuple[LLM, LoRARequest]:
    """A model, and an adapter that fits it and has not been loaded."""
    folder, model = tiny_model("llama")
    return LLM(folder, dtype="float32"), write_adapter(tmp_path / "adapter", model)


def assert_refused(llm: LLM, adapter: LoRARequest, said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        llm.generate(ids(PROMPTS), GREEDY, [None, adapter, None, None])
    assert "\n" not in str(caught.value)
    assert not any(layer.lora for layer in layers_of(llm).values()), "nothing was laid beside any layer"
    assert not llm.llm_engine.has_unfinished_requests()


@pytest.mark.parametrize(("config", "tensors", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused_in_one_sentence(
    served: tuple[LLM, LoRARequest], config: dict[str, Any], tensors: Callable[[Tensors], Tensors], said: str
) -> None:
    llm, adapter = served
    change(Path(adapter.lora_path), config, tensors)
    assert_refused(llm, adapter, said)


def test_a_directory_mended_after_a_refusal_is_served(served: tuple[LLM, LoRARequest]) -> None:
    llm, adapter = served
    before = greedy(llm, PROMPTS)
    change(Path(adapter.lora_path), {"r": 3}, dict)
    assert_refused(llm, adapter, "with r = 3")
    assert greedy(llm, PROMPTS) == before
    change(Path(adapter.lora_path), {"r": 4}, dict)
    assert greedy(llm, PROMPTS, adapter) != before


def test_a_pickle_is_never_read(served: tuple[LLM, LoRARequest], tmp_path: Path) -> None:
    llm, adapter = served

    class Touches:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "was run",)

    folder = Path(adapter.lora_path)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Touches()))
    assert_refused(llm, adapter, r"holds adapter_model\.bin and no adapter_model\.safetensors: the first is a pickle")
    assert not (tmp_path / "was run").exists()
    (folder / "adapter_model.bin").unlink()
    assert_refused(llm, adapter, r"adapter_model\.safetensors is missing")


def test_files_stay_in_the_directory_and_whole(served: tuple[LLM, LoRARequest], tmp_path: Path) -> None:
    llm, adapter = served
    folder = Path(adapter.lora_path)
    (folder / "adapter_model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = {"weight_map": dict.fromkeys(load_file(tmp_path / "elsewhere.safetensors"), "../elsewhere.safetensors")}
    (folder / "adapter_model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(llm, adapter, "has no weight_map of tensor names to file names in this folder")
    (folder / "adapter_model.safetensors.index.json").unlink()
    (folder / "adapter_model.safetensors").write_bytes((tmp_path / "elsewhere.safetensors").read_bytes()[:-10])
    assert_refused(llm, adapter, "is no whole safetensors file")
    (folder / "adapter_config.json").write_text("[]")
    assert_refused(llm, adapter, r"adapter_config\.json holds a list, not an object")
    (folder / "adapter_config.json").unlink()
    assert_refused(llm, adapter, r"there is no adapter_config\.json in .*; lora_path is a directory that peft's save_pretrained")


def test_requests_that_contradict_each_other_are_refused(served: tuple[LLM, LoRARequest], tmp_path: Path) -> None:
    llm, adapter = served
    said = greedy(llm, PROMPTS, adapter)
    with pytest.raises(ValueError, match=f"lora_int_id 1 is {tmp_path}/other in this request and was {adapter.lora_path} before"):
        llm.generate(ids(PROMPTS), GREEDY, LoRARequest("other", 1, str(tmp_path / "other")))
    with pytest.raises(ValueError, match="there are 4 prompts and 2 lora_requests; give one for all, or as many"):
        llm.generate(ids(PROMPTS), GREEDY, [adapter, None])
    with pytest.raises(ValueError, match="lora_int_id of adapter 'x' is 0; it must be at least 1"):
        LoRARequest("x", 0, "x")
    again = LoRARequest("another name", 1, f"{adapter.lora_path}/../adapter")
    assert greedy(llm, PROMPTS, again) == said, "another way to write the same directory"

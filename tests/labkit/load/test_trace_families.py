"""Traces beyond Llama: its family from config alone, biases, many ranks, quantized and repacked parameters, other classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recordings import RECORDINGS, TINY, write_checkpoint
from safetensors.torch import save_file

from labkit.checkpoints.known_models import implied_shapes
from labkit.load.trace import MappingRow, Record, trace_load
from labkit.load.trace.coverage import Finding, find_faults
from labkit.system.errors import UserError

pytest.importorskip("vllm", reason="needs the real vLLM, which is not installed in this environment")


LAYER = "model.layers.0"


def without_file(record: Record) -> Record:
    return replace(record, dtype=None, file=None, bytes=None, parameter_dtype="any")


def family(architecture: str, **changes: Any) -> dict[str, Any]:
    """TINY as another class of the family has it."""
    model_type = architecture.removesuffix("ForCausalLM").lower()
    return TINY | {"architectures": [architecture], "model_type": model_type, "sliding_window": None} | changes


FAMILIES = {
    "Llama with biases": family("LlamaForCausalLM", attention_bias=True, mlp_bias=True),
    "Llama, tied": family("LlamaForCausalLM", tie_word_embeddings=True),
    "Mistral": family("MistralForCausalLM"),
    "Qwen2": family("Qwen2ForCausalLM", head_dim=16),
    "Qwen2, tied": family("Qwen2ForCausalLM", head_dim=16, tie_word_embeddings=True),
    "Qwen3": family("Qwen3ForCausalLM"),
}


@pytest.mark.parametrize("tp_size", [1, 2, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_family_from_config_alone_and_with_values(name: str, tp_size: int, tmp_path: Path) -> None:
    """What config.json implies is what vLLM's class takes, whole; with real tensors the same copies are made and hold."""
    config = FAMILIES[name]
    write_checkpoint(tmp_path, config, None)
    shapes = trace_load(tmp_path, tp_size, range(tp_size))
    assert shapes.device == "meta"
    assert find_faults(shapes) == []
    write_checkpoint(tmp_path, config, implied_shapes(config))
    real = trace_load(tmp_path, tp_size, range(tp_size), "cpu")
    assert find_faults(real) == []
    assert [without_file(record) for record in shapes.records] != []
    assert {without_file(r) for r in real.records} == {without_file(r) for r in shapes.records}
    assert trace_load(tmp_path, tp_size, [0], "meta").device == "meta"


def test_biases_are_fused_as_the_weights_are(tmp_path: Path) -> None:
    """Qwen2 at TP 2, rank 1: the same row of the mapping, the same rows of the parameter, one dimension less."""
    write_checkpoint(tmp_path, FAMILIES["Qwen2"], None)
    trace = trace_load(tmp_path, 2, [1])
    weight, bias = (
        next(r for r in trace.records if r.tensor == f"{LAYER}.self_attn.v_proj.{kind}") for kind in ("weight", "bias")
    )
    assert bias.mapping == weight.mapping == MappingRow(".v_proj", ".qkv_proj", "v")
    # A rank has 2 of 4 query heads and 1 of 2 kv heads, 16 rows each: q 0:32, k 32:48, v 48:64.
    assert (bias.destination, bias.source, bias.parameter_shape) == (((48, 64),), ((16, 32),), (64,))
    assert weight.destination == ((48, 64), (0, 64))


def test_a_head_size_that_vllms_qwen2_does_not_read_is_found(tmp_path: Path) -> None:
    """Its attention takes hidden_size / heads, whatever head_dim says: heads of 32 rows are cut to 16, without a word."""
    write_checkpoint(tmp_path, family("Qwen2ForCausalLM", head_dim=32), None)
    findings = find_faults(trace_load(tmp_path))
    assert {finding.fault for finding in findings} == {"cut off"}
    assert Finding("cut off", f"{LAYER}.self_attn.q_proj.weight", ((64, 128), (0, 64)), (128, 64)) in findings


def test_thirty_two_ranks_of_llama_3_8b() -> None:
    """One query head and one kv head each; four ranks in a row read the same kv head."""
    trace = trace_load("llama-3-8b", 32, range(32))
    assert find_faults(trace) == []
    k = [record.source[0] for record in trace.records if record.tensor == f"{LAYER}.self_attn.k_proj.weight"]
    assert k == [(rank // 4 * 128, rank // 4 * 128 + 128) for rank in range(32)]


def gptq(directory: Path) -> None:
    """A tiny Llama in 4 bits, as GPTQ stores it: eight input rows of a linear layer in one row of int32, 32 inputs to a scale."""
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
    config = TINY | {"hidden_size": 128, "intermediate_size": 256, "quantization_config": quantization}
    write_checkpoint(directory, config, None)
    tensors = {}
    for name, shape in implied_shapes(config).items():
        if "_proj" not in name:
            tensors[name] = torch.randn(shape, dtype=torch.float16)
            continue
        outputs, inputs = shape
        base = name.removesuffix(".weight")
        tensors[f"{base}.qweight"] = torch.randint(-(2**31), 2**31 - 1, (inputs // 8, outputs), dtype=torch.int32)
        tensors[f"{base}.qzeros"] = torch.full((inputs // 32, outputs // 8), 0x77777777, dtype=torch.int32)
        tensors[f"{base}.scales"] = torch.rand(inputs // 32, outputs).half()
        tensors[f"{base}.g_idx"] = torch.arange(inputs, dtype=torch.int32) // 32
    save_file(tensors, directory / "model.safetensors")


def test_a_quantized_checkpoint_and_what_vllm_makes_of_it(tmp_path: Path) -> None:
    """Packed as (inputs / 8, outputs), so that q, k and v lie side by side in columns; then vLLM packs them once more."""
    gptq(tmp_path)
    trace = trace_load(tmp_path, 2, [0, 1], "cpu")
    assert find_faults(trace) == []
    (k,) = [r for r in trace.records if r.tensor == f"{LAYER}.self_attn.k_proj.qweight" and r.tp_rank == 1]
    # 128 inputs are 16 rows of int32; rank 1 has 64 columns of q, then 32 of k, the second of two kv heads.
    assert (k.destination, k.source) == (((0, 16), (64, 96)), ((0, 16), (32, 64)))
    assert (k.dtype, k.parameter_dtype) == ("I32", "int32")
    assert k.parameter in trace.repacked
    assert trace.repacked[k.parameter].startswith("(16, 128) int32 -> ")


def test_parameters_that_vllm_repacks_before_it_serves_are_named() -> None:
    """The CPU engine packs its linear layers for oneDNN and keeps an empty weight: who looks then finds nothing."""
    trace = RECORDINGS["tiny-tp2"].run("cpu")
    assert f"{LAYER}.self_attn.qkv_proj.weight" in trace.repacked
    assert "model.norm.weight" not in trace.repacked


def test_another_architecture_is_traced_from_its_files(tmp_path: Path) -> None:
    """GPT-2 stores q, k and v as one tensor and its matrices transposed: vLLM turns them round on the way."""
    config = {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "hidden_size": 64,
        "ffn_dim": 96,
        "num_attention_heads": 4,
    }
    config |= {"num_hidden_layers": 1, "vocab_size": 128, "max_position_embeddings": 32, "word_embed_proj_dim": 64}
    transformers = pytest.importorskip("transformers")
    model = transformers.OPTForCausalLM(transformers.OPTConfig(**{k: v for k, v in config.items() if k != "architectures"}))
    model.save_pretrained(tmp_path)
    trace = trace_load(tmp_path, 2, [0, 1], "cpu")
    assert find_faults(trace) == []
    (k,) = [r for r in trace.records if r.tensor.endswith("self_attn.k_proj.weight") and r.tp_rank == 1]
    assert (k.destination[0], k.source[0]) == ((32, 64), (32, 64))
    assert k.mapping is not None
    assert (k.mapping.from_, k.mapping.to) == (".k_proj", ".qkv_proj")


def test_an_architecture_that_vllm_does_not_know(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TINY | {"architectures": ["LamaForCausalLM"]}, implied_shapes(TINY))
    with pytest.raises(UserError, match=r"knows no architecture LamaForCausalLM; the nearest it knows: .*LlamaForCausalLM"):
        trace_load(tmp_path)


def test_values_that_a_conversion_changed_are_a_finding(tmp_path: Path) -> None:
    """1 + 2^-10 has a place in float16 and none in bfloat16, whose next number after 1 is 1 + 2^-7; 0.5 has one in both."""
    values = {name: torch.randn(shape, dtype=torch.bfloat16) for name, shape in implied_shapes(TINY).items()}
    lost, kept = "model.layers.1.self_attn.k_proj.weight", "model.layers.1.self_attn.v_proj.weight"
    values[lost] = torch.full((64, 64), 1 + 2**-10, dtype=torch.float16)
    values[kept] = torch.full((64, 64), 0.5, dtype=torch.float16)
    write_checkpoint(tmp_path, TINY, None)
    save_file(values, tmp_path / "model.safetensors")
    trace = trace_load(tmp_path, 2, [0, 1], "cpu")
    assert [(finding.fault, finding.name) for finding in find_faults(trace)] == [("rounded", lost)]


def test_steps_that_could_not_be_run_are_named_in_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with another torch, without vLLM's kernels, where what makes parameters ready to serve fails too."""
    from labkit.load.trace import real_load

    def broken(*_: Any) -> None:
        raise AttributeError("'_OpNamespace' '_C' object has no attribute 'pack'")

    whole = RECORDINGS["tiny-tp2"].run("cpu")
    assert whole.not_run == ()
    monkeypatch.setattr(real_load, "process_weights_after_loading", broken)
    monkeypatch.setattr(real_load, "PINNED_TORCH", "2.99.0")
    monkeypatch.setattr(real_load.vllm, "__file__", "/nowhere/vllm/__init__.py")
    trace = RECORDINGS["tiny-tp2"].run("cpu")
    assert trace.records == whole.records
    kernels, versions, ready = trace.not_run
    assert "without its compiled kernels" in kernels
    assert f"torch is {torch.__version__}, and vLLM" in versions
    assert "is built for 2.99.0; kernels may fail" in versions
    assert ready == (
        "vLLM could not prepare the loaded parameters for serving: AttributeError: "
        "'_OpNamespace' '_C' object has no attribute 'pack'"
    )

"""Lab 03, the spec: names, slices, loud shapes, a strict load, and the theorem that makes fusing legal."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from mini_vllm import LLM, SamplingParams, register_model
from mini_vllm.models.llama import LlamaConfig, LlamaForCausalLM

ATTENTION = "model.layers.3.self_attn"
MLP = "model.layers.3.mlp"

LLAMA_3_8B = {"hidden_size": 4096, "num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "intermediate_size": 14336}
SMALL = {"hidden_size": 6, "num_heads": 4, "num_kv_heads": 2, "head_dim": 3, "intermediate_size": 10}
"""Grouped queries: q has 12 rows, k and v 6 each, so qkv_proj has 24; gate_up_proj has 20."""


def rows(spans: tuple[slice, slice]) -> tuple[tuple[int, int], tuple[int, int]]:
    destination, source = spans
    return (destination.start, destination.stop), (source.start, source.stop)


def numbered(num_rows: int, num_columns: int, first: int = 0) -> Tensor:
    """A tensor whose row r holds first + r + column/100, so that every row can be told from every other."""
    return first + torch.arange(num_rows).unsqueeze(1) + torch.arange(num_columns) / 100


def projections(shape: dict[str, int], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The checkpoint tensors of one layer's fused projections, at random."""
    generator = torch.Generator().manual_seed(1)
    q, kv, inter = shape["num_heads"] * shape["head_dim"], shape["num_kv_heads"] * shape["head_dim"], shape["intermediate_size"]
    heights = {f"{ATTENTION}.q_proj": q, f"{ATTENTION}.k_proj": kv, f"{ATTENTION}.v_proj": kv}
    heights |= {f"{MLP}.gate_proj": inter, f"{MLP}.up_proj": inter}
    return {
        f"{name}.weight": torch.randn(height, shape["hidden_size"], generator=generator, dtype=dtype)
        for name, height in heights.items()
    }


def fused(shape: dict[str, int], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The fused parameters of the same layer on one rank, nothing in them yet."""
    qkv = (shape["num_heads"] + 2 * shape["num_kv_heads"]) * shape["head_dim"]
    heights = {f"{ATTENTION}.qkv_proj.weight": qkv, f"{MLP}.gate_up_proj.weight": 2 * shape["intermediate_size"]}
    return {name: torch.full((height, shape["hidden_size"]), torch.nan, dtype=dtype) for name, height in heights.items()}


# --- task names --------------------------------------------------------------------------------------------------------


def test_the_five_fused_names(lab: ModuleType) -> None:
    assert lab.translate(f"{ATTENTION}.q_proj.weight") == (f"{ATTENTION}.qkv_proj.weight", "q")
    assert lab.translate(f"{ATTENTION}.k_proj.weight") == (f"{ATTENTION}.qkv_proj.weight", "k")
    assert lab.translate(f"{ATTENTION}.v_proj.weight") == (f"{ATTENTION}.qkv_proj.weight", "v")
    assert lab.translate(f"{MLP}.gate_proj.weight") == (f"{MLP}.gate_up_proj.weight", 0)
    assert lab.translate(f"{MLP}.up_proj.weight") == (f"{MLP}.gate_up_proj.weight", 1)
    assert set(lab.STACKED_PARAMS_MAPPING) == {
        ("qkv_proj", "q_proj", "q"),
        ("qkv_proj", "k_proj", "k"),
        ("qkv_proj", "v_proj", "v"),
        ("gate_up_proj", "gate_proj", 0),
        ("gate_up_proj", "up_proj", 1),
    }, "the mapping is data: one row (fused module, checkpoint module, shard id) for each tensor that is fused"


def test_biases_are_translated_too(lab: ModuleType) -> None:
    # Qwen2 has biases on q, k and v: a rule that looks for 'q_proj.weight' leaves them at whatever memory held.
    assert lab.translate(f"{ATTENTION}.v_proj.bias") == (f"{ATTENTION}.qkv_proj.bias", "v")
    assert lab.translate(f"{MLP}.gate_proj.bias") == (f"{MLP}.gate_up_proj.bias", 0)


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", f"{ATTENTION}.o_proj.weight", f"{MLP}.down_proj.weight", "lm_head.weight", "weight"]
)
def test_other_names_stay_as_they_are(lab: ModuleType, name: str) -> None:
    assert lab.translate(name) == (name, None)


@pytest.mark.parametrize(
    "name",
    [
        f"{MLP}.backup_proj.weight",
        f"{MLP}.up_proj_norm.weight",
        f"{ATTENTION}.qq_proj.weight",
        "model.up_proj_layers.0.norm.weight",
        f"{MLP}.gate_up_proj.weight",
    ],
)
def test_a_name_that_merely_contains_a_row_is_left_alone(lab: ModuleType, name: str) -> None:
    assert lab.translate(name) == (name, None), "compare the whole name of the module, not a part of it"


# --- task slices -------------------------------------------------------------------------------------------------------


def test_slices_of_llama_3_8b(lab: ModuleType) -> None:
    shape = lab.ModelShape(**LLAMA_3_8B)
    assert rows(lab.shard_slices("q", shape)) == ((0, 4096), (0, 4096))
    assert rows(lab.shard_slices("k", shape)) == ((4096, 5120), (0, 1024)), "k begins after 32 query heads of 128 rows"
    assert rows(lab.shard_slices("v", shape)) == ((5120, 6144), (0, 1024)), (
        "v begins after q and 8 kv heads: k is narrower than q"
    )
    assert rows(lab.shard_slices(0, shape)) == ((0, 14336), (0, 14336))
    assert rows(lab.shard_slices(1, shape)) == ((14336, 28672), (0, 14336))


def test_slices_of_llama_3_8b_at_tp_2(lab: ModuleType) -> None:
    shape = lab.ModelShape(**LLAMA_3_8B)
    assert rows(lab.shard_slices("q", shape, 1, 2)) == ((0, 2048), (2048, 4096))
    assert rows(lab.shard_slices("k", shape, 1, 2)) == ((2048, 2560), (512, 1024))
    assert rows(lab.shard_slices("v", shape, 1, 2)) == ((2560, 3072), (512, 1024)), "(3072, 4096) per rank: half of 6144"
    assert rows(lab.shard_slices(0, shape, 1, 2)) == ((0, 7168), (7168, 14336))
    assert rows(lab.shard_slices(1, shape, 1, 2)) == ((7168, 14336), (7168, 14336))


def test_kv_heads_are_replicated_when_ranks_outnumber_them(lab: ModuleType) -> None:
    shape = lab.ModelShape(**LLAMA_3_8B)
    # 16 ranks, 8 kv heads: 2 query heads and one whole kv head each; ranks 6 and 7 hold the same kv head, number 3.
    for rank in (6, 7):
        assert rows(lab.shard_slices("q", shape, rank, 16)) == ((0, 256), (rank * 256, rank * 256 + 256))
        assert rows(lab.shard_slices("k", shape, rank, 16)) == ((256, 384), (384, 512))
        assert rows(lab.shard_slices("v", shape, rank, 16)) == ((384, 512), (384, 512)), "512 rows per rank, not 384"


def test_multi_query_attention_has_one_kv_head_for_every_rank(lab: ModuleType) -> None:
    shape = lab.ModelShape(hidden_size=8, num_heads=4, num_kv_heads=1, head_dim=2, intermediate_size=12)
    for rank in range(4):
        assert rows(lab.shard_slices("k", shape, rank, 4)) == ((2, 4), (0, 2))
        assert rows(lab.shard_slices("v", shape, rank, 4)) == ((4, 6), (0, 2))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    kv_heads=st.integers(1, 8),
    group=st.integers(1, 4),
    head_dim=st.integers(1, 5),
    tp_size=st.sampled_from([1, 2, 4, 8, 16, 32]),
    per_rank=st.integers(1, 5),
)
def test_every_row_is_touched_exactly_once(
    lab: ModuleType, kv_heads: int, group: int, head_dim: int, tp_size: int, per_rank: int
) -> None:
    # Make the drawn sizes divisible: ranks share the query heads, and the kv heads or the copies of them.
    if tp_size > kv_heads:
        kv_heads = 1 << (kv_heads.bit_length() - 1)
        heads = max(tp_size, kv_heads * group)
        heads -= heads % tp_size
    else:
        kv_heads *= tp_size
        heads = kv_heads * group
    shape = lab.ModelShape(
        hidden_size=1, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, intermediate_size=per_rank * tp_size
    )
    heights = {
        "q": heads * head_dim,
        "k": kv_heads * head_dim,
        "v": kv_heads * head_dim,
        0: per_rank * tp_size,
        1: per_rank * tp_size,
    }
    used = {shard: torch.zeros(height, dtype=torch.int64) for shard, height in heights.items()}
    for rank in range(tp_size):
        for shards in (("q", "k", "v"), (0, 1)):
            spans = [lab.shard_slices(shard, shape, rank, tp_size) for shard in shards]
            destinations = [(destination.start, destination.stop) for destination, _ in spans]
            assert destinations[0][0] == 0, "the first shard begins at row 0"
            assert all(a[1] == b[0] for a, b in pairwise(destinations)), "no gap and no overlap"
            for shard, (destination, source) in zip(shards, spans, strict=True):
                assert destination.stop - destination.start == source.stop - source.start, "as many rows arrive as leave"
                used[shard][source] += 1
    copies = max(1, tp_size // kv_heads)
    for shard, count in used.items():
        wanted = copies if shard in ("k", "v") else 1
        assert count.tolist() == [wanted] * heights[shard], f"all ranks together use each row of {shard!r} {wanted} times"


def test_heads_that_do_not_divide_are_refused(lab: ModuleType) -> None:
    shape = lab.ModelShape(hidden_size=6, num_heads=9, num_kv_heads=3, head_dim=2, intermediate_size=12)
    with pytest.raises(ValueError, match=r"9.*2"):
        lab.shard_slices("q", shape, 0, 2)
    with pytest.raises(ValueError, match=r"12.*9"):
        lab.shard_slices(1, shape, 0, 9)


# --- task loud ---------------------------------------------------------------------------------------------------------


def test_a_shard_lands_in_its_slice_and_nowhere_else(lab: ModuleType) -> None:
    shape, param = lab.ModelShape(**SMALL), torch.full((24, 6), -1.0)
    loaded = numbered(6, 6, first=100)
    lab.load_shard(param, loaded, "k", shape)
    assert torch.equal(param[12:18], loaded), "k fills rows 12 to 18: after 4 query heads of 3 rows"
    assert torch.equal(param[:12], torch.full((12, 6), -1.0)), "q's rows are q's"
    assert torch.equal(param[18:], torch.full((6, 6), -1.0)), "v's rows are v's"


def test_a_rank_takes_its_own_rows(lab: ModuleType) -> None:
    shape, param = lab.ModelShape(**SMALL), torch.zeros(12, 6)
    lab.load_shard(param, numbered(12, 6, first=100), "q", shape, 1, 2)
    lab.load_shard(param, numbered(6, 6, first=200), "v", shape, 1, 2)
    assert param[:, 0].tolist() == [106, 107, 108, 109, 110, 111, 0, 0, 0, 203, 204, 205]
    bias = torch.zeros(10)
    lab.load_shard(bias, torch.arange(10.0), 1, shape, 1, 2)
    assert bias.tolist() == [0, 0, 0, 0, 0, 5, 6, 7, 8, 9], "a bias has rows only; rank 1's half of up goes behind gate"


@pytest.mark.parametrize(("kv_rows", "what"), [(12, "too tall"), (3, "too short")])
@pytest.mark.parametrize("tp_size", [1, 2])
def test_shape_mismatch_is_loud(lab: ModuleType, kv_rows: int, what: str, tp_size: int) -> None:
    # 12 rows are what a multi-head checkpoint has: every query head with a key of its own. The config says 2 kv heads.
    shape, param = lab.ModelShape(**SMALL), torch.full((24 // tp_size, 6), -1.0)
    for shard_id in ("k", "v"):
        with pytest.raises(ValueError, match=rf"{kv_rows}, 6.*6, 6"):
            lab.load_shard(param, numbered(kv_rows, 6), shard_id, shape, 0, tp_size)
    assert torch.equal(param, torch.full_like(param, -1.0)), (
        f"{what}: refused before a byte is copied; real vLLM cuts too tall off in silence"
    )


def test_wrong_input_size_is_loud(lab: ModuleType) -> None:
    shape = lab.ModelShape(**SMALL)
    with pytest.raises(ValueError, match=r"12, 5.*12, 6"):
        lab.load_shard(torch.zeros(24, 6), torch.zeros(12, 5), "q", shape)
    with pytest.raises(ValueError, match=r"11, 6.*10, 6"):
        lab.load_shard(torch.zeros(20, 6), torch.zeros(11, 6), 0, shape)
    with pytest.raises(ValueError, match=r"30, 6.*24, 6"):
        lab.load_shard(torch.zeros(30, 6), torch.zeros(12, 6), "q", shape)


def test_the_parameter_keeps_its_dtype_and_its_memory(lab: ModuleType) -> None:
    shape, param = lab.ModelShape(**SMALL), torch.zeros(24, 6, dtype=torch.float64)
    memory, loaded = param.data_ptr(), numbered(12, 6).to(torch.bfloat16)
    lab.load_shard(param, loaded, "q", shape)
    assert (param.dtype, param.data_ptr()) == (torch.float64, memory), "fill the parameter that is there, do not replace it"
    assert torch.equal(param[:12], loaded.double()), "the values are the checkpoint's"
    loaded.zero_()
    assert param[11, 0] == 11, "the parameter must not share the checkpoint's memory"


def test_unfused_tensors_are_cut_where_the_parameter_is_smaller(lab: ModuleType) -> None:
    shape, o_proj = lab.ModelShape(**SMALL), numbered(6, 12)
    param = torch.zeros(6, 6)
    lab.load_shard(param, o_proj, None, shape, 1, 2)
    assert torch.equal(param, o_proj[:, 6:]), "o_proj is cut along its columns: rank 1 has the second half of the inputs"
    norm = torch.zeros(6)
    lab.load_shard(norm, torch.arange(6.0), None, shape, 1, 2)
    assert norm.tolist() == [0, 1, 2, 3, 4, 5], "a norm is the same on every rank"
    with pytest.raises(ValueError, match=r"6, 18.*6, 6"):
        lab.load_shard(param, numbered(6, 18), None, shape, 1, 2)
    with pytest.raises(ValueError, match=r"6, 12.*6, 6"):
        lab.load_shard(param, o_proj, None, shape)


# --- task load ---------------------------------------------------------------------------------------------------------


def test_a_whole_layer_is_loaded_and_named(lab: ModuleType) -> None:
    shape, params, weights = lab.ModelShape(**SMALL), fused(SMALL), projections(SMALL)
    norm = {"model.norm.weight": torch.full((6,), torch.nan)}
    loaded = lab.load_weights(params | norm, [*reversed(weights.items()), ("model.norm.weight", torch.ones(6))], shape)
    assert loaded == {*params, *norm}
    q, k, v, gate, up = weights.values()
    assert torch.equal(params[f"{ATTENTION}.qkv_proj.weight"], torch.cat((q, k, v))), "q, then k, then v, whatever came first"
    assert torch.equal(params[f"{MLP}.gate_up_proj.weight"], torch.cat((gate, up)))
    assert torch.equal(norm["model.norm.weight"], torch.ones(6))


@pytest.mark.parametrize("absent", [f"{ATTENTION}.k_proj.weight", f"{MLP}.up_proj.weight", "model.norm.weight"])
def test_a_missing_tensor_is_named(lab: ModuleType, absent: str) -> None:
    params = fused(SMALL) | {"model.norm.weight": torch.zeros(6)}
    weights = projections(SMALL) | {"model.norm.weight": torch.ones(6)}
    parameter, shard_id = lab.translate(absent)
    del weights[absent]
    with pytest.raises(ValueError, match=parameter.replace(".", r"\.")) as error:
        lab.load_weights(params, weights.items(), lab.ModelShape(**SMALL))
    after = str(error.value).split(parameter)[1]
    assert shard_id is None or str(shard_id) in after, f"say which shard of {parameter} is missing: {shard_id!r} of its shards"


def test_an_unknown_tensor_is_named(lab: ModuleType) -> None:
    weights = projections(SMALL) | {"model.layers.3.self_attn.q_norm.weight": torch.ones(3)}
    with pytest.raises(ValueError, match=r"q_norm\.weight"):
        lab.load_weights(fused(SMALL), weights.items(), lab.ModelShape(**SMALL))


def test_a_tensor_that_comes_twice_is_refused(lab: ModuleType) -> None:
    weights = list(projections(SMALL).items())
    with pytest.raises(ValueError, match=r"v_proj\.weight"):
        lab.load_weights(fused(SMALL), [*weights, weights[2]], lab.ModelShape(**SMALL))


def test_a_llama_loaded_through_the_mapping_answers_as_with_the_engines_own_loader(lab: ModuleType, tmp_path: Path) -> None:
    config = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4}
    config |= {"intermediate_size": 40, "vocab_size": 64, "max_position_embeddings": 32}
    shape = lab.ModelShape(
        hidden_size=24, num_heads=6, num_kv_heads=2, head_dim=4, intermediate_size=40
    )  # what config.json says, in the lab's words

    def through_the_lab(config: dict[str, int], checkpoint: dict[str, Tensor]) -> LlamaForCausalLM:
        model = LlamaForCausalLM(LlamaConfig.from_hf(config))
        lab.load_weights(dict(model.named_parameters()), checkpoint.items(), shape)
        return model

    register_model("LlamaThroughLab03", through_the_lab)
    save_file(random_llama_checkpoint(config), tmp_path / "model.safetensors")
    prompts = [{"prompt_token_ids": [1, 2, 3, 4]}, {"prompt_token_ids": [7]}]
    answers = []
    for architecture in ("LlamaForCausalLM", "LlamaThroughLab03"):
        (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
        outputs = LLM(tmp_path).generate(prompts, SamplingParams(temperature=0, max_tokens=8))
        answers.append([output.outputs[0].token_ids for output in outputs])
    assert answers[0] == answers[1], "the same checkpoint, served twice, says the same"


def random_llama_checkpoint(config: dict[str, int]) -> dict[str, Tensor]:
    """A small Llama's tensors under the names that Hugging Face gives them."""
    hidden, head, inter = config["hidden_size"], config["head_dim"], config["intermediate_size"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (config["vocab_size"], hidden), "model.norm": (hidden,)}
    shapes["lm_head"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{p}_proj": (n, hidden) for p, n in (("q", q), ("k", kv), ("v", kv))}
        shapes |= {f"{prefix}.self_attn.o_proj": (hidden, q), f"{prefix}.mlp.down_proj": (hidden, inter)}
        shapes |= {f"{prefix}.mlp.gate_proj": (inter, hidden), f"{prefix}.mlp.up_proj": (inter, hidden)}
        shapes |= {f"{prefix}.input_layernorm": (hidden,), f"{prefix}.post_attention_layernorm": (hidden,)}
    generator = torch.Generator().manual_seed(2)
    return {f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()}


# --- task theorem ------------------------------------------------------------------------------------------------------


def largest_difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def test_fused_qkv_equals_the_separate_projections(lab: ModuleType) -> None:
    sizes = {"hidden_size": 64, "num_heads": 8, "num_kv_heads": 2, "head_dim": 16, "intermediate_size": 96}
    params, weights = fused(sizes, torch.float64), projections(sizes, torch.float64)
    lab.load_weights(params, weights.items(), lab.ModelShape(**sizes))
    x = torch.randn(5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    slices = F.linear(x, params[f"{ATTENTION}.qkv_proj.weight"]).split([128, 32, 32], dim=-1)
    for name, part in zip("qkv", slices, strict=True):
        apart = F.linear(x, weights[f"{ATTENTION}.{name}_proj.weight"])
        assert largest_difference(part, apart) < 1e-12, f"the fused product's {name} slice is the {name} projection"


def test_fused_gate_up_equals_the_separate_projections(lab: ModuleType) -> None:
    sizes = {"hidden_size": 64, "num_heads": 8, "num_kv_heads": 2, "head_dim": 16, "intermediate_size": 96}
    params, weights = fused(sizes, torch.float64), projections(sizes, torch.float64)
    lab.load_weights(params, weights.items(), lab.ModelShape(**sizes))
    x = torch.randn(5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    gate, up = F.linear(x, params[f"{MLP}.gate_up_proj.weight"]).chunk(2, dim=-1)
    assert largest_difference(gate, F.linear(x, weights[f"{MLP}.gate_proj.weight"])) < 1e-12
    assert largest_difference(up, F.linear(x, weights[f"{MLP}.up_proj.weight"])) < 1e-12
    together = F.silu(gate) * up
    apart = F.silu(F.linear(x, weights[f"{MLP}.gate_proj.weight"])) * F.linear(x, weights[f"{MLP}.up_proj.weight"])
    assert largest_difference(together, apart) < 1e-12, "and so the feed-forward layer computes what it always did"

"""Tests of lab 03: name translation, slices, shape checks, a strict load, and the equality that makes fusing legal."""

from __future__ import annotations

import json
from collections.abc import ItemsView, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, Verbosity, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from labkit.course.assertions import expect, expect_refused, expect_tensor, unchanged
from mini_vllm import LLM, SamplingParams, register_model
from mini_vllm.models.llama import LlamaConfig, LlamaForCausalLM

ATTENTION = "model.layers.3.self_attn"
MLP = "model.layers.3.mlp"

SEARCH = (Phase.generate, Phase.shrink)
"""Draw the same examples on every run. The test's own message shows the example that fails, so hypothesis need not."""

LLAMA_3_8B = {"hidden_size": 4096, "num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "intermediate_size": 14336}
SMALL = {"hidden_size": 6, "num_heads": 4, "num_kv_heads": 2, "head_dim": 3, "intermediate_size": 10}
"""Grouped-query attention: q has 12 rows, k and v have 6 each, so qkv_proj has 24. gate_up_proj has 20."""

MAPPED = "a checkpoint tensor is mapped memory that other ranks read too: copy from it, and change only the copy"
CALLERS = "the caller still uses its dict and its list: remove nothing from them and add nothing to them"


class InputsChecked:
    """The implementation under test. Each load must leave the checkpoint's tensors and the dict of parameters unchanged."""

    def __init__(self, lab: ModuleType) -> None:
        self.lab = lab

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lab, name)

    def load_shard(self, param: Tensor, loaded: Tensor, *others: Any) -> None:
        with unchanged(MAPPED, loaded=loaded):
            self.lab.load_shard(param, loaded, *others)

    def load_weights(self, params: dict[str, Tensor], weights: Iterable[tuple[str, Tensor]], *others: Any) -> Any:
        pairs = list(weights)
        given = weights if isinstance(weights, list | ItemsView) else iter(pairs)
        callers = {"params": params.keys(), "weights": weights if isinstance(weights, list) else ()}
        with unchanged(CALLERS, **callers), unchanged(MAPPED, **dict(pairs)):
            return self.lab.load_weights(params, given, *others)


@pytest.fixture(scope="module")
def lab(lab: ModuleType) -> InputsChecked:
    return InputsChecked(lab)


def numbered(num_rows: int, num_columns: int, first: int = 0) -> Tensor:
    """A tensor whose row r holds first + r + column/100, so that no two rows are equal."""
    return first + torch.arange(num_rows).unsqueeze(1) + torch.arange(num_columns) / 100


def projections(shape: dict[str, int], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random checkpoint tensors for the fused projections of one layer."""
    generator = torch.Generator().manual_seed(1)
    q, kv, inter = shape["num_heads"] * shape["head_dim"], shape["num_kv_heads"] * shape["head_dim"], shape["intermediate_size"]
    heights = {f"{ATTENTION}.q_proj": q, f"{ATTENTION}.k_proj": kv, f"{ATTENTION}.v_proj": kv}
    heights |= {f"{MLP}.gate_proj": inter, f"{MLP}.up_proj": inter}
    return {
        f"{name}.weight": torch.randn(height, shape["hidden_size"], generator=generator, dtype=dtype)
        for name, height in heights.items()
    }


def fused(shape: dict[str, int], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The fused parameters of the same layer on one rank, filled with nan."""
    qkv = (shape["num_heads"] + 2 * shape["num_kv_heads"]) * shape["head_dim"]
    heights = {f"{ATTENTION}.qkv_proj.weight": qkv, f"{MLP}.gate_up_proj.weight": 2 * shape["intermediate_size"]}
    return {name: torch.full((height, shape["hidden_size"]), torch.nan, dtype=dtype) for name, height in heights.items()}


# --- task names --------------------------------------------------------------------------------------------------------


def test_the_five_fused_names(lab: ModuleType) -> None:
    for module, part, fused_module, shard_id in [
        (ATTENTION, "q_proj", "qkv_proj", "q"),
        (ATTENTION, "k_proj", "qkv_proj", "k"),
        (ATTENTION, "v_proj", "qkv_proj", "v"),
        (MLP, "gate_proj", "gate_up_proj", 0),
        (MLP, "up_proj", "gate_up_proj", 1),
    ]:
        expect(
            lab.translate(f"{module}.{part}.weight"),
            (f"{module}.{fused_module}.weight", shard_id),
            f"{part} is shard {shard_id!r} of {fused_module}; any other name or shard means the wrong rows, or no parameter",
        )
    expect(
        set(lab.STACKED_PARAMS_MAPPING),
        {
            ("qkv_proj", "q_proj", "q"),
            ("qkv_proj", "k_proj", "k"),
            ("qkv_proj", "v_proj", "v"),
            ("gate_up_proj", "gate_proj", 0),
            ("gate_up_proj", "up_proj", 1),
        },
        "the mapping has one row (fused module, checkpoint module, shard id) for each fused tensor",
    )


def test_biases_are_translated_too(lab: ModuleType) -> None:
    untranslated = (
        "Qwen2 has biases on q, k and v; a bias whose name is not translated has no parameter, so the load fails or skips it"
    )
    expect(lab.translate(f"{ATTENTION}.v_proj.bias"), (f"{ATTENTION}.qkv_proj.bias", "v"), untranslated)
    expect(lab.translate(f"{MLP}.gate_proj.bias"), (f"{MLP}.gate_up_proj.bias", 0), untranslated)


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", f"{ATTENTION}.o_proj.weight", f"{MLP}.down_proj.weight", "lm_head.weight", "weight"]
)
def test_other_names_stay_as_they_are(lab: ModuleType, name: str) -> None:
    expect(lab.translate(name), (name, None), "no mapping row has this module, so the parameter has the same name as the tensor")


@pytest.mark.parametrize(
    "name",
    [
        f"{MLP}.backup_proj.weight",
        f"{MLP}.up_proj_norm.weight",
        f"{ATTENTION}.qq_proj.weight",
        "model.up_proj_layers.0.norm.weight",
        f"{MLP}.gate_up_proj.weight",
        f"{MLP}.up_proj.norm.weight",
    ],
)
def test_a_name_that_merely_contains_a_row_is_left_alone(lab: ModuleType, name: str) -> None:
    expect(
        lab.translate(name),
        (name, None),
        "compare the whole name of the owning module, the second to last part; a substring matches other modules too",
    )


def test_only_the_module_itself_is_renamed(lab: ModuleType) -> None:
    expect(
        lab.translate("model.k_proj_tower.q_proj.0.q_proj.weight"),
        ("model.k_proj_tower.q_proj.0.qkv_proj.weight", "q"),
        "only the second to last part of the name is replaced; if another part changes too, no parameter has that name",
    )


# --- task slices -------------------------------------------------------------------------------------------------------


def expect_rows(
    lab: ModuleType, shard_id: str | int, shape: dict[str, int], rank: int, size: int, to: str, source: str, meaning: str
) -> None:
    """Compares a shard's rows with spans written like "4096:5120"."""
    got = " from ".join(f"{rows.start}:{rows.stop}" for rows in lab.shard_slices(shard_id, lab.ModelShape(**shape), rank, size))
    expect(f"shard {shard_id!r}: rows {got}", f"shard {shard_id!r}: rows {to} from {source}", meaning)


def test_slices_of_llama_3_8b(lab: ModuleType) -> None:
    for shard_id, to, source, meaning in [
        (
            "q",
            "0:4096",
            "0:4096",
            "q comes first: 32 query heads of 128 rows; in other rows, every head uses the wrong query weights",
        ),
        ("k", "4096:5120", "0:1024", "k begins after 32 query heads; it has the 1024 rows of 8 kv heads, not 4096 rows like q"),
        (
            "v",
            "5120:6144",
            "0:1024",
            "v begins after q and k, and k has fewer rows than q; in other rows, attention uses the wrong weights for values",
        ),
        (0, "0:14336", "0:14336", "gate comes first: silu is applied to the first half"),
        (
            1,
            "14336:28672",
            "0:14336",
            "up comes after gate; if they are swapped, silu is applied to the wrong half and no error is raised",
        ),
    ]:
        expect_rows(lab, shard_id, LLAMA_3_8B, 0, 1, to, source, meaning)
    whole = (slice(0, 4096), slice(0, 4096))
    expect(
        lab.shard_slices("q", lab.ModelShape(**LLAMA_3_8B)),
        whole,
        "without tp_rank and tp_size there is one rank, which takes all rows",
    )


def test_slices_of_llama_3_8b_at_tp_2(lab: ModuleType) -> None:
    for shard_id, to, source, meaning in [
        (
            "q",
            "0:2048",
            "2048:4096",
            "rank 1 has query heads 16 to 31; if it loads the heads of rank 0, no rank computes heads 16 to 31",
        ),
        (
            "k",
            "2048:2560",
            "512:1024",
            "offsets are per rank: k comes after the 16 query heads of this rank, and has the 4 kv heads of this rank",
        ),
        ("v", "2560:3072", "512:1024", "the parameter of a rank is (3072, 4096), half of 6144 rows: v fills the last 512"),
        (0, "0:7168", "7168:14336", "rank 1's half of gate"),
        (1, "7168:14336", "7168:14336", "on rank 1, its half of up comes after its half of gate, at row 7168"),
    ]:
        expect_rows(lab, shard_id, LLAMA_3_8B, 1, 2, to, source, meaning)


def test_kv_heads_are_replicated_when_ranks_outnumber_them(lab: ModuleType) -> None:
    # 16 ranks, 8 kv heads: 2 query heads and one whole kv head each; ranks 6 and 7 hold the same kv head, number 3.
    for rank in (6, 7):
        for shard_id, to, source, meaning in [
            ("q", "0:256", f"{rank * 256}:{rank * 256 + 256}", "query heads are not replicated: each of 16 ranks has 2 of 32"),
            (
                "k",
                "256:384",
                "384:512",
                "ranks 6 and 7 both hold kv head 3, which their query heads use: 16 / 8 = 2 consecutive ranks share a kv head",
            ),
            (
                "v",
                "384:512",
                "384:512",
                "a rank holds one whole kv head, so its parameter has 512 rows; 8 // 16 = 0 kv heads would be no rows",
            ),
        ]:
            expect_rows(lab, shard_id, LLAMA_3_8B, rank, 16, to, source, f"rank {rank} of 16: {meaning}")


def test_multi_query_attention_has_one_kv_head_for_every_rank(lab: ModuleType) -> None:
    sizes = {"hidden_size": 8, "num_heads": 4, "num_kv_heads": 1, "head_dim": 2, "intermediate_size": 12}
    for rank in range(4):
        expect_rows(lab, "k", sizes, rank, 4, "2:4", "0:2", f"rank {rank} of 4: there is one kv head, and every rank holds it")
        expect_rows(lab, "v", sizes, rank, 4, "4:6", "0:2", f"rank {rank} of 4: there is one kv head, and every rank holds it")


@settings(max_examples=100, deadline=None, derandomize=True, database=None, verbosity=Verbosity.quiet, phases=SEARCH)
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
    # Make the drawn sizes divisible by the ranks: the query heads, and the kv heads or their replicas.
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
        here = f"{shape}, rank {rank} of {tp_size}"
        for shards in (("q", "k", "v"), (0, 1)):
            spans = [lab.shard_slices(shard, shape, rank, tp_size) for shard in shards]
            end = 0
            for shard, (destination, source) in zip(shards, spans, strict=True):
                begins = f"shard {shard!r} begins at row"
                expect(
                    f"{begins} {destination.start}",
                    f"{begins} {end}",
                    f"a gap is never filled, and an overlap is written twice: {here}",
                )
                leave, arrive = source.stop - source.start, destination.stop - destination.start
                expect(
                    f"{arrive} rows", f"{leave} rows", f"destination and source of {shard!r} have the same number of rows: {here}"
                )
                end = destination.stop
                used[shard][source] += 1
    copies = max(1, tp_size // kv_heads)
    for shard, count in used.items():
        wanted = copies if shard in ("k", "v") else 1
        expect(
            {f"row {row} of {shard!r} is read by {n} ranks" for row, n in enumerate(count.tolist()) if n != wanted},
            set(),
            f"{tp_size} ranks together read each row of {shard!r} {wanted} times; a row that no rank reads is lost: {shape}",
        )


def test_heads_that_do_not_divide_are_refused(lab: ModuleType) -> None:
    shape = lab.ModelShape(hidden_size=6, num_heads=9, num_kv_heads=3, head_dim=2, intermediate_size=12)
    uneven = "if the division is rounded down, no rank loads the last {}, and the model is served without it"
    with expect_refused(9, 2, meaning=uneven.format("query head")):
        lab.shard_slices("q", shape, 0, 2)
    with expect_refused(12, 9, meaning=uneven.format("3 rows of up_proj")):
        lab.shard_slices(1, shape, 0, 9)
    three = lab.ModelShape(hidden_size=6, num_heads=12, num_kv_heads=3, head_dim=2, intermediate_size=12)
    with expect_refused(3, 2, meaning=uneven.format("kv head")):
        lab.shard_slices("k", three, 0, 2)
    with expect_refused(
        4,
        3,
        meaning="4 ranks cannot hold the same number of copies of 3 kv heads: one head would have two copies, the others one",
    ):
        lab.shard_slices("v", three, 0, 4)


# --- task loud ---------------------------------------------------------------------------------------------------------


def test_a_shard_lands_in_its_slice_and_nowhere_else(lab: ModuleType) -> None:
    shape, param = lab.ModelShape(**SMALL), torch.full((24, 6), -1.0)
    loaded = numbered(6, 6, first=100)
    lab.load_shard(param, loaded.clone(), "k", shape)
    expect_tensor(param[12:18], loaded, "k fills rows 12 to 18, after 4 query heads of 3 rows, with the values of the checkpoint")
    expect_tensor(param[:12], torch.full((12, 6), -1.0), "rows 0 to 12 belong to q: loading k must not write to them")
    expect_tensor(param[18:], torch.full((6, 6), -1.0), "rows 18 to 24 belong to v: loading k must not write to them")


def test_a_rank_takes_its_own_rows(lab: ModuleType) -> None:
    shape, param = lab.ModelShape(**SMALL), torch.zeros(12, 6)
    lab.load_shard(param, numbered(12, 6, first=100), "q", shape, 1, 2)
    lab.load_shard(param, numbered(6, 6, first=200), "v", shape, 1, 2)
    first_column = torch.tensor([106.0, 107, 108, 109, 110, 111, 0, 0, 0, 203, 204, 205])
    expect_tensor(
        param[:, 0],
        first_column,
        "rank 1 of 2: rows 6 to 12 of q (106 ...), the rows of k (still 0), then rows 3 to 6 of v (203 ...)",
    )
    bias = torch.zeros(10)
    lab.load_shard(bias, torch.arange(10.0), 1, shape, 1, 2)
    halves = torch.tensor([0.0, 0, 0, 0, 0, 5, 6, 7, 8, 9])
    expect_tensor(
        bias, halves, "a bias has no columns: on rank 1, its half of up (5 to 9) comes after the rows of gate (still 0)"
    )


@pytest.mark.parametrize(("kv_rows", "what"), [(12, "too many"), (3, "too few")])
@pytest.mark.parametrize("tp_size", [1, 2])
def test_shape_mismatch_is_loud(lab: ModuleType, kv_rows: int, what: str, tp_size: int) -> None:
    # A multi-head checkpoint has 12 rows: one key head for each query head. The config has 2 kv heads.
    shape, param = lab.ModelShape(**SMALL), torch.full((24 // tp_size, 6), -1.0)
    meaning = (
        f"{kv_rows} rows are {what} for 2 kv heads of 3 rows; if they are loaded, the model generates wrong text without an error"
    )
    for shard_id in ("k", "v"):
        with expect_refused(f"{kv_rows}, 6", "6, 6", meaning=f"shard {shard_id!r}: {meaning}"):
            lab.load_shard(param, numbered(kv_rows, 6), shard_id, shape, 0, tp_size)
    expect_tensor(
        param,
        torch.full_like(param, -1.0),
        f"{what} rows: raise the error before anything is copied, or the parameter is half overwritten",
    )


def test_wrong_input_size_is_loud(lab: ModuleType) -> None:
    shape = lab.ModelShape(**SMALL)
    for param, loaded, shard_id, numbers, meaning in [
        (
            (24, 6),
            (12, 5),
            "q",
            ("12, 5", "12, 6"),
            "5 columns, but the hidden size is 6: the checkpoint belongs to another model",
        ),
        (
            (24, 6),
            (6, 12),
            "q",
            ("6, 12", "12, 6"),
            "the tensor is transposed; refuse it, and do not transpose it to make it fit",
        ),
        ((20, 6), (11, 6), 0, ("11, 6", "10, 6"), "11 rows of gate, but the intermediate size is 10"),
        ((30, 6), (12, 6), "q", ("30, 6", "24, 6"), "a parameter of 30 rows has 6 rows that no shard fills"),
    ]:
        with expect_refused(*numbers, meaning=meaning):
            lab.load_shard(torch.zeros(param), torch.zeros(loaded), shard_id, shape)


def test_the_parameter_keeps_its_dtype_and_its_memory(lab: ModuleType) -> None:
    shape = lab.ModelShape(**SMALL)
    for shard_id, rows in (("q", 24), (None, 12)):
        param = torch.zeros(rows, 6, dtype=torch.float64)
        memory, loaded = param.data_ptr(), numbered(12, 6).to(torch.bfloat16)
        lab.load_shard(param, loaded.clone(), shard_id, shape)
        expect_tensor(
            param[:12], loaded.double(), f"shard {shard_id!r}: the values of the checkpoint, in the dtype of the parameter"
        )
        place = "the same memory" if param.data_ptr() == memory else "other memory"
        expect(
            place,
            "the same memory",
            "copy into the memory of the parameter: a CUDA graph keeps its address and never reads a new tensor",
        )
    own, stored = torch.zeros(12, 6), numbered(12, 6)
    lab.load_shard(own, stored, None, shape)
    stored.zero_()
    expect_tensor(
        own, numbered(12, 6), "copy the values: a parameter that shares the checkpoint's memory changes when that memory changes"
    )


def test_unfused_tensors_are_cut_where_the_parameter_is_smaller(lab: ModuleType) -> None:
    shape, o_proj = lab.ModelShape(**SMALL), numbered(6, 12)
    param = torch.zeros(6, 6)
    lab.load_shard(param, o_proj.clone(), None, shape, 1, 2)
    expect_tensor(
        param, o_proj[:, 6:], "o_proj is cut along columns: its inputs are the heads, and rank 1 of 2 has the second half of them"
    )
    lm_head = numbered(12, 6)
    lab.load_shard(param, lm_head.clone(), None, shape, 1, 2)
    expect_tensor(param, lm_head[6:], "lm_head is cut along its rows: rank 1 of 2 has the second half of the vocabulary")
    norm = torch.zeros(6)
    lab.load_shard(norm, torch.arange(6.0), None, shape, 1, 2)
    expect_tensor(norm, torch.arange(6.0), "a norm is not cut: every rank loads all of it")
    for loaded, size, meaning in [
        (
            (6, 18),
            2,
            "the tensor has three times the columns of the parameter, but there are two ranks: a third would be lost",
        ),
        ((6, 12), 1, "the tensor has twice the columns of the parameter, but there is one rank: half of them would be lost"),
        ((1, 6), 1, "one row for a parameter of six rows: copy_ would broadcast it to all six"),
        ((6,), 1, "a vector for a matrix: copy_ would broadcast it to all six rows"),
    ]:
        with expect_refused(str(loaded).strip("()"), "6, 6", meaning=meaning):
            lab.load_shard(param, torch.zeros(loaded), None, shape, 0, size)


# --- task load ---------------------------------------------------------------------------------------------------------

NORM = "model.norm.weight"
QKV, GATE_UP = f"{ATTENTION}.qkv_proj.weight", f"{MLP}.gate_up_proj.weight"


def test_a_whole_layer_is_loaded_and_named(lab: ModuleType) -> None:
    shape, params, weights = lab.ModelShape(**SMALL), fused(SMALL) | {NORM: torch.full((6,), torch.nan)}, projections(SMALL)
    stream = iter([*reversed(weights.items()), (NORM, torch.ones(6))])  # a loader yields each tensor once, in any order
    loaded = lab.load_weights(params, stream, shape)
    expect(
        loaded,
        set(params),
        "return the names of all parameters that were filled: vLLM compares them with the parameters of the model",
    )
    q, k, v, gate, up = weights.values()
    expect_tensor(
        params[QKV], torch.cat((q, k, v)), "q, then k, then v, in any order of arrival; nan marks a row that was not written"
    )
    expect_tensor(
        params[GATE_UP], torch.cat((gate, up)), "gate, then up, in any order of arrival; nan marks a row that was not written"
    )
    expect_tensor(params[NORM], torch.ones(6), "a tensor that is not fused is copied into the parameter with the same name")


def test_every_rank_of_two_loads_its_half(lab: ModuleType) -> None:
    shape, weights = lab.ModelShape(**SMALL), projections(SMALL)
    q, k, v, gate, up = (tensor.chunk(2) for tensor in weights.values())
    for rank in range(2):
        params = {QKV: torch.full((12, 6), torch.nan), GATE_UP: torch.full((10, 6), torch.nan)}
        lab.load_weights(params, weights.items(), shape, rank, 2)
        expect_tensor(params[QKV], torch.cat((q[rank], k[rank], v[rank])), f"rank {rank} of 2 has its half of the heads")
        expect_tensor(params[GATE_UP], torch.cat((gate[rank], up[rank])), f"rank {rank} of 2 has its half of gate and of up")


@pytest.mark.parametrize("absent", [f"{ATTENTION}.k_proj.weight", f"{MLP}.up_proj.weight", NORM])
def test_a_missing_tensor_is_named(lab: ModuleType, absent: str) -> None:
    params, weights = fused(SMALL) | {NORM: torch.zeros(6)}, projections(SMALL) | {NORM: torch.ones(6)}
    parameter, shard_id = lab.translate(absent)
    del weights[absent]
    unseen = f"{absent} is missing, so its rows would hold uninitialized memory; vLLM records loaded parameters, not shards"
    with expect_refused(parameter, *([] if shard_id is None else [shard_id]), meaning=unseen):
        lab.load_weights(params, weights.items(), lab.ModelShape(**SMALL))


def test_an_unknown_tensor_is_named(lab: ModuleType) -> None:
    weights = projections(SMALL) | {f"{ATTENTION}.q_norm.weight": torch.ones(3)}
    with expect_refused(
        f"{ATTENTION}.q_norm.weight",
        meaning="the checkpoint has a norm that the model does not have; if it is skipped, the model computes something else",
    ):
        lab.load_weights(fused(SMALL), weights.items(), lab.ModelShape(**SMALL))


def test_a_tensor_that_comes_twice_is_refused(lab: ModuleType) -> None:
    weights = list(projections(SMALL).items())
    chance = "v_proj comes twice; without an error, the order of the files decides which values are served"
    with expect_refused(f"{ATTENTION}.v_proj.weight", meaning=chance):
        lab.load_weights(fused(SMALL), [*weights, weights[2]], lab.ModelShape(**SMALL))


def test_twice_and_unknown_are_told_apart(lab: ModuleType) -> None:
    weights, said = [*projections(SMALL).items(), (NORM, torch.ones(6))], []
    for params, stream in ((fused(SMALL) | {NORM: torch.zeros(6)}, [*weights, weights[-1]]), (fused(SMALL), weights)):
        try:
            lab.load_weights(params, stream, lab.ModelShape(**SMALL))
        except ValueError as error:
            said.append(str(error))
    expect(
        f"{len(said)} errors, {len(set(said))} of them different",
        "2 errors, 2 of them different",
        f"{NORM} first comes twice, then is unknown: the two faults have different fixes, so the messages must differ",
    )


def test_all_that_is_wrong_is_said_at_once(lab: ModuleType) -> None:
    weights = [(name, tensor) for name, tensor in projections(SMALL).items() if "up_proj" not in name]
    weights += [weights[0], (f"{ATTENTION}.q_norm.weight", torch.ones(3))]
    for name in (f"{ATTENTION}.q_proj.weight", f"{ATTENTION}.q_norm.weight", GATE_UP):
        with expect_refused(
            name,
            meaning="one tensor twice, one unknown, one missing: report all three in one error, not one for each load",
        ):
            lab.load_weights(fused(SMALL), weights, lab.ModelShape(**SMALL))


def test_a_second_load_is_like_the_first(lab: ModuleType) -> None:
    weights, shape = projections(SMALL), lab.ModelShape(**SMALL)
    lab.load_weights(fused(SMALL), weights.items(), shape)
    again = fused(SMALL)
    lab.load_weights(again, weights.items(), shape)
    expect_tensor(
        again[GATE_UP][10:],
        weights[f"{MLP}.up_proj.weight"],
        "a second load in the same process fills the parameters as the first did",
    )


def test_a_llama_loaded_through_the_mapping_answers_as_with_the_engines_own_loader(lab: ModuleType, tmp_path: Path) -> None:
    config = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4}
    config |= {"intermediate_size": 40, "vocab_size": 64, "max_position_embeddings": 32}
    shape = lab.ModelShape(hidden_size=24, num_heads=6, num_kv_heads=2, head_dim=4, intermediate_size=40)

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
    expect(
        answers[1],
        answers[0],
        "one checkpoint must generate the same tokens through your loader and through the loader of the engine",
    )


def random_llama_checkpoint(config: dict[str, int]) -> dict[str, Tensor]:
    """Random tensors of a small Llama, with the names of Hugging Face."""
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

ROW_FOR_ROW = "the {} part of the fused output equals the separate {} projection to 1e-12, unless rows were moved or rounded"


def test_fused_qkv_equals_the_separate_projections(lab: ModuleType) -> None:
    sizes = {"hidden_size": 64, "num_heads": 8, "num_kv_heads": 2, "head_dim": 16, "intermediate_size": 96}
    params, weights = fused(sizes, torch.float64), projections(sizes, torch.float64)
    lab.load_weights(params, weights.items(), lab.ModelShape(**sizes))
    x = torch.randn(5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    slices = F.linear(x, params[QKV]).split([128, 32, 32], dim=-1)
    for name, part in zip("qkv", slices, strict=True):
        apart = F.linear(x, weights[f"{ATTENTION}.{name}_proj.weight"])
        expect_tensor(part, apart, ROW_FOR_ROW.format(name, name), within=1e-12)


def test_fused_gate_up_equals_the_separate_projections(lab: ModuleType) -> None:
    sizes = {"hidden_size": 64, "num_heads": 8, "num_kv_heads": 2, "head_dim": 16, "intermediate_size": 96}
    params, weights = fused(sizes, torch.float64), projections(sizes, torch.float64)
    lab.load_weights(params, weights.items(), lab.ModelShape(**sizes))
    x = torch.randn(5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    gate, up = F.linear(x, params[GATE_UP]).chunk(2, dim=-1)
    for name, part in (("gate", gate), ("up", up)):
        expect_tensor(part, F.linear(x, weights[f"{MLP}.{name}_proj.weight"]), ROW_FOR_ROW.format(name, name), within=1e-12)
    apart = F.silu(F.linear(x, weights[f"{MLP}.gate_proj.weight"])) * F.linear(x, weights[f"{MLP}.up_proj.weight"])
    expect_tensor(
        F.silu(gate) * up, apart, "silu(gate) * up is the same for the fused product and the separate projections", within=1e-12
    )

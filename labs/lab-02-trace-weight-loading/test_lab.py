"""Lab 02, the spec: predictions are held against the real vLLM's load, live where it is installed, else as the tool recorded it.

Which of the two it was is noted for every test (the property ``against`` of its report), and printed.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable
from dataclasses import astuple
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.trace import Trace
from labkit.trace.known import KNOWN, implied_shapes
from labkit.trace.recordings import RECORDINGS, TINY

CAPTURED = Path(__file__).parent / "captured"
LIVE = importlib.util.find_spec("vllm") is not None

LLAMA_3_8B: dict[str, Any] = json.loads((KNOWN / "llama-3-8b" / "config.json").read_text())
SMOLLM2: dict[str, Any] = json.loads((KNOWN / "smollm2" / "config.json").read_text())

LAYER = "model.layers.0"
PREDICTED = ("tensor", "shape", "mapping", "parameter", "parameter_shape", "destination", "source", "tp_rank", "tp_size")
"""What config.json alone decides of a record; the tool notes files and element types besides."""
Reference = Callable[..., Trace]


@pytest.fixture(scope="session")
def traces() -> dict[tuple[str, str], Trace]:
    """Traces that one test has asked for already, for the next."""
    return {}


@pytest.fixture
def reference(traces: dict[tuple[str, str], Trace], record_property: Callable[[str, object], None]) -> Reference:
    """What vLLM did: ``reference("tiny-tp2")`` is the trace of that load. Asked for only after the learner's answer is there."""

    def trace(name: str, device: str = "cpu") -> Trace:
        if (name, device) not in traces:
            traces[name, device] = RECORDINGS[name].run(device) if LIVE else Trace.read(CAPTURED / f"{name}.json")
        found = traces[name, device]
        against = f"vLLM {found.vllm} (torch {found.torch}, parameters on {found.device})"
        against = f"the real {against}, live" if LIVE else f"captured/{name}.json, recorded earlier by {against}"
        record_property("against", against)
        print(f"held against {against}")
        return found

    return trace


def predict(lab: ModuleType, recording: str) -> dict[tuple[int, str], dict[str, Any]]:
    """The learner's record for every tensor of a load, by rank and name."""
    load = RECORDINGS[recording]
    return {
        (rank, name): lab.trace_row(name, load.config, load.tp_size, rank)
        for rank in range(load.tp_size)
        for name in implied_shapes(load.config)
    }


def assert_predicted(predicted: dict[tuple[int, str], dict[str, Any]], trace: Trace) -> None:
    """Every record of the trace was predicted, and none besides; the first that differs is shown field by field."""
    assert len(predicted) == len(trace.records)
    for record in trace.records:
        actual, said = record.as_dict(), predicted[record.tp_rank, record.tensor]
        differs = [
            f"{key}: you say {said.get(key)}, vLLM does {actual[key]}" for key in PREDICTED if said.get(key) != actual[key]
        ]
        assert not differs, f"{record.tensor}, TP {record.tp_size} rank {record.tp_rank}: " + "; ".join(differs)


def needs_cuda() -> None:
    """Skips where vLLM or a CUDA device is missing, and says which."""
    if not LIVE:
        pytest.skip("needs vLLM's CUDA build, and vLLM is not installed here")
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch finds none here")


# --- task row -----------------------------------------------------------------------------------------------------------


def test_q_k_and_v_of_llama_3_8b(lab: ModuleType) -> None:
    """32 query heads and 8 kv heads of 128 rows: q fills rows 0 to 4096, k the next 1024, v the last 1024 of 6144."""
    rows = {part: lab.trace_row(f"{LAYER}.self_attn.{part}_proj.weight", LLAMA_3_8B) for part in "qkv"}
    assert {row["parameter"] for row in rows.values()} == {f"{LAYER}.self_attn.qkv_proj.weight"}
    assert {tuple(row["parameter_shape"]) for row in rows.values()} == {(6144, 4096)}
    assert [row["destination"][0] for row in rows.values()] == [[0, 4096], [4096, 5120], [5120, 6144]]
    assert rows["k"]["mapping"] == {"from": ".k_proj", "to": ".qkv_proj", "shard": "k"}
    assert rows["k"] | {"mapping": None} == {
        "tensor": f"{LAYER}.self_attn.k_proj.weight",
        "shape": [1024, 4096],
        "mapping": None,
        "parameter": f"{LAYER}.self_attn.qkv_proj.weight",
        "parameter_shape": [6144, 4096],
        "destination": [[4096, 5120], [0, 4096]],
        "source": [[0, 1024], [0, 4096]],
        "tp_rank": 0,
        "tp_size": 1,
    }


def test_head_dim_and_kv_heads_may_be_left_out(lab: ModuleType) -> None:
    """Llama-2-7B's config says neither: 4096 / 32 = 128 rows a head, and as many kv heads as query heads."""
    config = LLAMA_3_8B | {"num_key_value_heads": None, "intermediate_size": 11008, "vocab_size": 32000}
    row = lab.trace_row(f"{LAYER}.self_attn.v_proj.weight", config)
    assert (row["shape"], row["parameter_shape"]) == ([4096, 4096], [12288, 4096])
    assert row["destination"] == [[8192, 12288], [0, 4096]]
    del config["num_key_value_heads"]
    assert lab.trace_row(f"{LAYER}.self_attn.v_proj.weight", config) == row
    half = config | {"hidden_size": 2048, "head_dim": None}
    assert lab.trace_row(f"{LAYER}.self_attn.v_proj.weight", half)["parameter_shape"] == [6144, 2048]


def test_every_tensor_of_llama_3_8b(lab: ModuleType, reference: Reference) -> None:
    predicted = predict(lab, "llama-3-8b-tp1")
    assert len(predicted) == 291
    assert_predicted(predicted, reference("llama-3-8b-tp1"))


def test_every_tensor_of_smollm2(lab: ModuleType, reference: Reference) -> None:
    """Nine query heads, three kv heads, and a tied head: 272 tensors, none of them an lm_head."""
    predicted = predict(lab, "smollm2-tp1")
    assert len(predicted) == 272
    assert_predicted(predicted, reference("smollm2-tp1"))


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "model.layers.30.mlp.up_proj.weight", f"{LAYER}.mlp.fc1.weight", f"{LAYER}.self_attn.q_proj.scale"]
)
def test_a_tensor_that_the_checkpoint_does_not_have_is_refused(lab: ModuleType, name: str) -> None:
    """SmolLM2 is tied and has the layers 0 to 29."""
    with pytest.raises(ValueError, match=name):
        lab.trace_row(name, SMOLLM2)


# --- task ranks ---------------------------------------------------------------------------------------------------------


def test_rank_1_of_2_by_hand(lab: ModuleType) -> None:
    """Half of everything: of qkv 3072 rows, of gate_up 14336; o_proj and down_proj lose columns, not rows."""

    def spans(name: str) -> tuple[list[int], list[int]]:
        row = lab.trace_row(f"{LAYER}.{name}.weight", LLAMA_3_8B, tp_size=2, tp_rank=1)
        axis = 1 if name.endswith(("o_proj", "down_proj")) else 0
        assert row["destination"][1 - axis] == row["source"][1 - axis] == [0, row["shape"][1 - axis]]
        return row["destination"][axis], row["source"][axis]

    assert spans("self_attn.q_proj") == ([0, 2048], [2048, 4096])
    assert spans("self_attn.k_proj") == ([2048, 2560], [512, 1024])
    assert spans("self_attn.v_proj") == ([2560, 3072], [512, 1024])
    assert spans("self_attn.o_proj") == ([0, 2048], [2048, 4096])
    assert spans("mlp.gate_proj") == ([0, 7168], [7168, 14336])
    assert spans("mlp.up_proj") == ([7168, 14336], [7168, 14336])
    assert spans("mlp.down_proj") == ([0, 7168], [7168, 14336])


def test_both_ranks_of_llama_3_8b_at_tp_2(lab: ModuleType, reference: Reference) -> None:
    assert_predicted(predict(lab, "llama-3-8b-tp2"), reference("llama-3-8b-tp2"))


@pytest.mark.parametrize(
    ("recording", "qkv_rows"),
    [
        ("llama-3-8b-one-layer-tp4", 1536),
        ("llama-3-8b-one-layer-tp8", 768),
        ("llama-3-8b-one-layer-tp16", 512),
        ("smollm2-tp3", 320),
    ],
)
def test_more_ranks(lab: ModuleType, reference: Reference, recording: str, qkv_rows: int) -> None:
    """At TP 16 a rank has 2 query heads and one kv head that it shares with a neighbour: 256 + 128 + 128 rows, not 384."""
    predicted = predict(lab, recording)
    assert predicted[0, f"{LAYER}.self_attn.k_proj.weight"]["parameter_shape"][0] == qkv_rows
    assert_predicted(predicted, reference(recording))


def test_the_vocabulary_is_padded_to_a_multiple_of_64(lab: ModuleType, reference: Reference) -> None:
    """131 rows become 192, 96 for each rank: rank 1 reads the 35 that are left and keeps 61 rows of padding."""
    row = lab.trace_row("model.embed_tokens.weight", TINY, tp_size=2, tp_rank=1)
    assert (row["parameter_shape"], row["destination"][0], row["source"][0]) == ([96, 64], [0, 35], [96, 131])
    assert_predicted(predict(lab, "tiny-tp2"), reference("tiny-tp2"))


@settings(max_examples=60, deadline=None)
@given(
    kv_heads=st.sampled_from([1, 2, 4, 8]),
    group=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([4, 6, 16]),
    tp=st.sampled_from([1, 2, 4, 8]),
    vocabulary=st.integers(1, 300),
)
def test_the_ranks_read_everything_and_fill_everything(
    lab: ModuleType, kv_heads: int, group: int, head_dim: int, tp: int, vocabulary: int
) -> None:
    """Whatever the sizes: the ranks together read every element of a tensor, and q, k and v tile the fused parameter."""
    heads = kv_heads * group * (tp if kv_heads * group % tp else 1)
    config = TINY | {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": 8 * tp,
        "vocab_size": vocabulary,
        "num_hidden_layers": 1,
    }
    read = {name: np.zeros(shape, bool) for name, shape in implied_shapes(config).items()}
    for rank in range(tp):
        filled: dict[str, np.ndarray[Any, Any]] = {}
        for name in read:
            row = lab.trace_row(name, config, tp, rank)
            read[name][part(row["source"])] = True
            written = filled.setdefault(row["parameter"], np.zeros(row["parameter_shape"], int))
            written[part(row["destination"])] += 1
        for name, written in filled.items():
            if "embed_tokens" not in name and "lm_head" not in name:
                assert (written == 1).all(), f"{name} on rank {rank} of {tp}: rows not written exactly once"
    for name, seen in read.items():
        assert seen.all(), f"{name}: {(~seen).sum()} elements are read by none of the {tp} ranks"


@pytest.mark.gpu
def test_predictions_hold_with_parameters_on_cuda(lab: ModuleType, reference: Reference) -> None:
    predicted = predict(lab, "tiny-tp2")
    needs_cuda()
    trace = reference("tiny-tp2", device="cuda")
    assert trace.device.startswith("cuda")
    assert_predicted(predicted, trace)


# --- task fingerprint ---------------------------------------------------------------------------------------------------


def config_of(hidden: int, heads: int, kv_heads: int, head_dim: int, **more: object) -> dict[str, Any]:
    """A Llama's config with these sizes; the others are those of Llama-3-8B."""
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim}
    return LLAMA_3_8B | sizes | more


TIED = {"tie_word_embeddings": True}
KNOWN_MODELS = {
    "Llama-3-8B": config_of(4096, 32, 8, 128),
    "SmolLM2-135M": SMOLLM2,
    "Llama-3.2-1B": config_of(2048, 32, 8, 64, num_hidden_layers=16, intermediate_size=8192, **TIED),
    "Llama-3.2-3B": config_of(3072, 24, 8, 128, num_hidden_layers=28, intermediate_size=8192, **TIED),
    "TinyLlama-1.1B": config_of(2048, 32, 4, 64, num_hidden_layers=22, intermediate_size=5632, vocab_size=32000),
    "Llama-2-7B": config_of(4096, 32, 32, 128, intermediate_size=11008, vocab_size=32000),
    "Llama-3-70B": config_of(8192, 64, 8, 128, num_hidden_layers=80, intermediate_size=28672),
}


@pytest.mark.parametrize("config", KNOWN_MODELS.values(), ids=KNOWN_MODELS)
def test_real_models_are_known_by_their_shapes(lab: ModuleType, config: dict[str, Any]) -> None:
    found = lab.fingerprint(implied_shapes(config))
    assert found.num_layers == config["num_hidden_layers"]
    assert found.hidden_size == config["hidden_size"]
    assert found.intermediate_size == config["intermediate_size"]
    assert found.vocab_size == config["vocab_size"]
    assert found.tied == config["tie_word_embeddings"]
    assert astuple(found.splits[0]) == (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"])


def test_every_split_that_fits_is_named_likeliest_first(lab: ModuleType) -> None:
    """q has 48 rows and k 24: heads of 2, 4, 6, 8, 12 or 24 rows divide both; nearest to 64 comes first."""
    found = lab.fingerprint(implied_shapes(config_of(48, 6, 3, 8)))
    assert [astuple(split) for split in found.splits] == [(2, 1, 24), (4, 2, 12), (6, 3, 8), (8, 4, 6), (12, 6, 4), (24, 12, 2)]
    # 4096 and 1024 rows under a hidden size of 4096: 128 by convention, and of 256 and 64, equally near, the larger.
    found = lab.fingerprint(implied_shapes(LLAMA_3_8B))
    assert [split.head_dim for split in found.splits] == [128, 256, 64, 512, 32, 1024, 16, 8, 4, 2]


def test_two_configs_with_the_same_shapes_get_the_same_answer(lab: ModuleType) -> None:
    """32 + 8 heads of 128 rows, or 64 + 16 of 64: every tensor has the same shape, so nobody can tell, and the answer says so."""
    wide, narrow = config_of(4096, 32, 8, 128), config_of(4096, 64, 16, 64, rope_theta=10000.0, rms_norm_eps=1e-6)
    found = lab.fingerprint(implied_shapes(wide))
    assert implied_shapes(wide) == implied_shapes(narrow)
    assert found == lab.fingerprint(implied_shapes(narrow))
    assert {(32, 8, 128), (64, 16, 64)} <= {astuple(split) for split in found.splits}
    assert any("head_dim" in sentence for sentence in found.unknown)


def test_what_shapes_cannot_tell_is_said(lab: ModuleType) -> None:
    found = lab.fingerprint(implied_shapes(LLAMA_3_8B))
    for words in (["rope_theta"], ["rms_norm_eps"], ["k_proj", "v_proj"], ["head_dim"], ["tie_word_embeddings"]):
        assert any(all(word in sentence for word in words) for sentence in found.unknown), f"`unknown` does not name {words}"
    alone = lab.fingerprint(implied_shapes(config_of(8, 1, 1, 2, tie_word_embeddings=True)))
    assert [astuple(split) for split in alone.splits] == [(1, 1, 2)]
    assert not any("head_dim" in sentence for sentence in alone.unknown), "only one split fits: the head size is known"
    assert not any("tie_word_embeddings" in sentence for sentence in alone.unknown), "without an lm_head it must be tied"


# --- task diagnose ------------------------------------------------------------------------------------------------------

QKV = "model.layers.1.self_attn.qkv_proj.weight"


def both_ranks(fault: str, name: str, *spans: tuple[int, int]) -> set[tuple[Any, ...]]:
    return {(fault, name, spans, 0), (fault, name, spans, 1)}


SILENT_FAULTS = {
    # A rank has 2 of 4 query heads and 1 of 2 kv heads, 32 rows each: q 0:64, k 64:96, v 96:128 of its qkv_proj.
    "fault-mha-into-gqa": {
        ("cut off", "model.layers.1.self_attn.k_proj.weight", ((64, 128), (0, 64)), None),
        ("cut off", "model.layers.1.self_attn.v_proj.weight", ((64, 128), (0, 64)), None),
    },
    "fault-o-proj-too-wide": {("cut off", "model.layers.1.self_attn.o_proj.weight", ((0, 64), (128, 160)), None)},
    "fault-gate-proj-too-tall": {("cut off", "model.layers.1.mlp.gate_proj.weight", ((96, 128), (0, 64)), None)},
    "fault-k-proj-missing": both_ranks("missing", QKV, (64, 96), (0, 64)),
    "fault-qkv-missing": both_ranks("missing", QKV, (0, 128), (0, 64)),
    "fault-o-proj-missing": both_ranks("missing", "model.layers.1.self_attn.o_proj.weight", (0, 64), (0, 64)),
    "fault-gate-proj-missing": both_ranks("missing", "model.layers.1.mlp.gate_up_proj.weight", (0, 48), (0, 64)),
    "fault-embed-missing": both_ranks("missing", "model.embed_tokens.weight", (0, 96), (0, 64)),
    "fault-lm-head-missing": both_ranks("missing", "lm_head.weight", (0, 96), (0, 64)),
    "fault-stored-twice": both_ranks("twice", QKV, (0, 128), (0, 64)),
    "fault-bias-unread": {("cut off", "model.layers.1.self_attn.q_proj.bias", ((0, 128),), None)},
}
"""What each faulty checkpoint does to the tiny Llama at TP 2, worked out by hand; vLLM loads all of them without a word."""


def findings(lab: ModuleType, rows: Iterable[dict[str, Any]], checkpoint: Any, parameters: Any) -> set[tuple[Any, ...]]:
    found = [astuple(finding) for finding in lab.diagnose(list(rows), checkpoint, parameters)]
    assert len(found) == len(set(found)), "the same finding comes twice"
    return set(found)


def findings_of(lab: ModuleType, trace: Trace, *ranks: int) -> set[tuple[Any, ...]]:
    rows = (record.as_dict() for record in trace.records if not ranks or record.tp_rank in ranks)
    return findings(lab, rows, trace.checkpoint_shapes, trace.parameter_shapes)


def part(spans: Iterable[Iterable[int]]) -> tuple[slice, ...]:
    return tuple(slice(*span) for span in spans)


def row_of(
    tensor: str, source: list[list[int]], parameter: str, destination: list[list[int]], rank: int = 0, size: int = 1
) -> Any:
    """A record with the fields that a diagnosis needs."""
    return {
        "tensor": tensor,
        "source": source,
        "parameter": parameter,
        "destination": destination,
        "tp_rank": rank,
        "tp_size": size,
    }


def test_missing_twice_and_cut_off_by_hand(lab: ModuleType) -> None:
    """Rows 2:4 of p are written by a and by b, rows 6:8 by nobody; of b's five rows the last is not read."""
    rows = [row_of("a", [[0, 4]], "p", [[0, 4]]), row_of("b", [[0, 4]], "p", [[2, 6]])]
    assert findings(lab, rows, {"a": (4,), "b": (5,)}, {"p": (8,)}) == {
        ("twice", "p", ((2, 4),), 0),
        ("missing", "p", ((6, 8),), 0),
        ("cut off", "b", ((4, 5),), None),
    }
    assert findings(lab, [], {"a": (4,)}, {"p": (8, 3)}) == {
        ("missing", "p", ((0, 8), (0, 3)), 0),
        ("cut off", "a", ((0, 4),), None),
    }


@pytest.mark.parametrize("recording", ["tiny-tp2", "llama-3-8b-tp1", "llama-3-8b-one-layer-tp16", "smollm2-tp1"])
def test_a_sound_load_has_no_findings(lab: ModuleType, reference: Reference, recording: str) -> None:
    """Padding rows of the vocabulary, and kv heads that two ranks read, are no faults."""
    lab.diagnose([], {}, {})
    trace = reference(recording)
    assert findings_of(lab, trace) == set()


@pytest.mark.parametrize("fault", SILENT_FAULTS)
def test_what_vllm_loads_in_silence_is_found(lab: ModuleType, reference: Reference, fault: str) -> None:
    lab.diagnose([], {}, {})
    assert findings_of(lab, reference(fault)) == SILENT_FAULTS[fault]


def test_one_rank_alone_is_judged_for_what_it_wrote(lab: ModuleType, reference: Reference) -> None:
    """What rank 0 did not read may be rank 1's; what nobody wrote on rank 0 is missing there, whatever rank 1 did."""
    lab.diagnose([], {}, {})
    assert findings_of(lab, reference("tiny-tp2"), 1) == set()
    assert findings_of(lab, reference("fault-mha-into-gqa"), 0) == set()
    assert findings_of(lab, reference("fault-k-proj-missing"), 1) == {("missing", QKV, ((64, 96), (0, 64)), 1)}


def test_what_is_left_unread_by_design_is_no_finding(lab: ModuleType, reference: Reference) -> None:
    """rotary_emb.inv_freq is computed. A head stored beside a tied embedding is read: vLLM compares the two afterwards."""
    lab.diagnose([], {}, {})
    trace = reference("tiny-old-habits")
    assert findings_of(lab, trace) == set()
    without_head = [record.as_dict() for record in trace.records if record.tensor != "lm_head.weight"]
    assert findings(lab, without_head, trace.checkpoint_shapes, trace.parameter_shapes) == {
        ("missing", "lm_head.weight", ((0, 131), (0, 64)), 0),
        ("cut off", "lm_head.weight", ((0, 131), (0, 64)), None),
    }


SPAN = st.tuples(st.integers(0, 6), st.integers(0, 6)).map(sorted)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(SPAN, SPAN, SPAN, SPAN), max_size=5))
def test_any_load_is_judged_as_counting_every_element_would(lab: ModuleType, copies: list[tuple[list[int], ...]]) -> None:
    """Rectangles at random: the findings cover exactly the elements never written, written twice or more, and never read."""
    rows = [row_of("t", [a, b], "p", [c, d]) for a, b, c, d in copies]
    found = lab.diagnose(rows, {"t": (6, 6)}, {"p": (6, 6)})
    written, read = np.zeros((6, 6), int), np.zeros((6, 6), int)
    for row in rows:
        written[part(row["destination"])] += 1
        read[part(row["source"])] += 1
    for fault, elements in {"missing": written == 0, "twice": written > 1, "cut off": read == 0}.items():
        painted = np.zeros((6, 6), int)
        for finding in found:
            if finding.fault == fault:
                painted[part(finding.part)] += 1
        assert (painted == elements).all(), f"{fault}: the findings cover\n{painted}\nand counting gives\n{elements.astype(int)}"


@pytest.mark.gpu
@pytest.mark.parametrize("fault", ["fault-mha-into-gqa", "fault-k-proj-missing"])
def test_silent_faults_are_found_with_parameters_on_cuda(lab: ModuleType, reference: Reference, fault: str) -> None:
    lab.diagnose([], {}, {})
    needs_cuda()
    trace = reference(fault, device="cuda")
    assert trace.device.startswith("cuda")
    assert findings_of(lab, trace) == SILENT_FAULTS[fault]

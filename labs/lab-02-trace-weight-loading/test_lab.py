"""Tests of lab 02: predictions are compared with a load by the real vLLM. Where vLLM is installed, the load runs during the test;
elsewhere the test reads a trace that was recorded earlier.

Each test prints which of the two it used, and records it as the property ``against`` of its report.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, Verbosity, given, settings
from hypothesis import strategies as st
from recordings import RECORDINGS, TINY

from labkit.checkpoints.known_models import KNOWN, implied_shapes
from labkit.course.assertions import expect, expect_refused, unchanged
from labkit.load.trace import Trace

CAPTURED = Path(__file__).parent / "captured"
LIVE = importlib.util.find_spec("vllm") is not None

LLAMA_3_8B: dict[str, Any] = json.loads((KNOWN / "llama-3-8b" / "config.json").read_text())
SMOLLM2: dict[str, Any] = json.loads((KNOWN / "smollm2" / "config.json").read_text())

LAYER = "model.layers.0"
PREDICTED = ("tensor", "shape", "mapping", "parameter", "parameter_shape", "destination", "source", "tp_rank", "tp_size")
"""Keys of a record that follow from config.json. The tool records files and dtypes too."""
Reference = Callable[..., Trace]

REUSED = "the caller uses its config, shapes and records again: change a copy of them, not the input"


class InputsChecked:
    """The implementation under test. Each call must leave its inputs unchanged."""

    def __init__(self, lab: ModuleType) -> None:
        self.lab = lab

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lab, name)

    def trace_row(self, name: str, config: Mapping[str, Any], *ranks: int, **by_name: int) -> Any:
        with unchanged(REUSED, config=config):
            return self.lab.trace_row(name, config, *ranks, **by_name)

    def fingerprint(self, shapes: Mapping[str, Any]) -> Any:
        with unchanged(REUSED, shapes=shapes):
            return self.lab.fingerprint(shapes)

    def diagnose(self, rows: Sequence[Any], checkpoint_shapes: Mapping[str, Any], parameter_shapes: Mapping[str, Any]) -> Any:
        with unchanged(REUSED, rows=rows, checkpoint_shapes=checkpoint_shapes, parameter_shapes=parameter_shapes):
            return self.lab.diagnose(rows, checkpoint_shapes, parameter_shapes)


@pytest.fixture(scope="module")
def lab(lab: ModuleType) -> InputsChecked:
    return InputsChecked(lab)


@pytest.fixture(scope="session")
def traces() -> dict[tuple[str, str], Trace]:
    """Traces that earlier tests have read, for later tests."""
    return {}


@pytest.fixture
def reference(traces: dict[tuple[str, str], Trace], record_property: Callable[[str, object], None]) -> Reference:
    """``reference("tiny-tp2")`` returns the trace of vLLM's load. A test calls it last, so that a starter fails fast."""

    def trace(name: str, device: str = "cpu") -> Trace:
        if (name, device) not in traces:
            traces[name, device] = RECORDINGS[name].run(device) if LIVE else Trace.read(CAPTURED / f"{name}.json")
        found = traces[name, device]
        against = f"vLLM {found.vllm} (torch {found.torch}, parameters on {found.device})"
        against = f"the real {against}, live" if LIVE else f"captured/{name}.json, recorded earlier by {against}"
        record_property("against", against)
        print(f"compared with {against}")
        return found

    return trace


def predict(lab: ModuleType, recording: str) -> dict[tuple[int, str], dict[str, Any]]:
    """The learner's records for every tensor of a load, by rank and name."""
    load = RECORDINGS[recording]
    return {
        (rank, name): lab.trace_row(name, load.config, load.tp_size, rank)
        for rank in range(load.tp_size)
        for name in implied_shapes(load.config)
    }


def assert_predicted(predicted: dict[tuple[int, str], dict[str, Any]], trace: Trace) -> None:
    """Compares the predictions with every record of the trace. A failure shows the fields that differ in the first of them."""
    expect(len(predicted), len(trace.records), "number of records: one for each checkpoint tensor on each rank")
    for record in trace.records:
        actual, said = record.as_dict(), predicted[record.tp_rank, record.tensor]
        expect_record(
            said, {key: actual[key] for key in PREDICTED}, f"vLLM's record on rank {record.tp_rank} of {record.tp_size}"
        )


def expect_record(said: dict[str, Any], actual: dict[str, Any], meaning: str) -> None:
    """Compares two records. A failure shows only the fields that differ."""
    differs = [key for key in actual if said.get(key) != actual[key]]
    here = f"{actual['tensor']}: {meaning}"
    if {"parameter", "mapping"} & set(differs):
        here += "; under another name the tensor is loaded into another parameter, or into none"
    elif differs:
        here += "; with other rows or columns the model computes with the wrong weights, and vLLM raises no error"
    expect(", ".join(f"{key} {said.get(key)}" for key in differs), ", ".join(f"{key} {actual[key]}" for key in differs), here)


def expect_whole(numbers: Iterable[object], what: str) -> None:
    """Fails for a float such as 4096.0, which equals 4096."""
    broken = {str(number) for number in numbers if "." in str(number)}
    expect(broken, set(), f"{what} are whole numbers: a slice and a config.json cannot have 4096.0; divide with //, not with /")


def needs_cuda() -> None:
    """Skips the test where vLLM or a CUDA device is missing, with the reason."""
    if not LIVE:
        pytest.skip("needs vLLM's CUDA build, but vLLM is not installed here")
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, but torch finds none")


# --- task row -----------------------------------------------------------------------------------------------------------


def test_q_k_and_v_of_llama_3_8b(lab: ModuleType) -> None:
    """32 query heads and 8 kv heads of 128 rows: q fills rows 0 to 4096, k the next 1024, v the last 1024 of 6144."""
    for part, rows, start in (("q", 4096, 0), ("k", 1024, 4096), ("v", 1024, 5120)):
        name = f"{LAYER}.self_attn.{part}_proj.weight"
        by_hand = {
            "tensor": name,
            "shape": [rows, 4096],
            "mapping": {"from": f".{part}_proj", "to": ".qkv_proj", "shard": part},
            "parameter": f"{LAYER}.self_attn.qkv_proj.weight",
            "parameter_shape": [6144, 4096],
            "destination": [[start, start + rows], [0, 4096]],
            "source": [[0, rows], [0, 4096]],
            "tp_rank": 0,
            "tp_size": 1,
        }
        meaning = "qkv_proj has 32 query heads, then 8 key heads, then 8 value heads, each of 128 rows: 6144 rows"
        row = lab.trace_row(name, LLAMA_3_8B)
        expect_record(row, by_hand, meaning)
        expect(set(row), set(by_hand), "a record has these nine keys and no others")


def test_head_dim_and_kv_heads_may_be_left_out(lab: ModuleType) -> None:
    """The config of Llama-2-7B has neither key: 4096 / 32 = 128 rows per head, and as many kv heads as query heads."""
    name = f"{LAYER}.self_attn.v_proj.weight"
    sizes = LLAMA_3_8B | {"intermediate_size": 11008, "vocab_size": 32000}
    by_hand = {"tensor": name, "shape": [4096, 4096], "parameter_shape": [12288, 4096], "destination": [[8192, 12288], [0, 4096]]}
    for left_out in (None, "num_key_value_heads", "head_dim"):
        config = sizes | {"num_key_value_heads": None, "head_dim": None}
        config.pop(left_out, None)
        meaning = f"as many kv heads as query heads, and 4096 / 32 rows per head: a key is null, and {left_out} is absent"
        row = lab.trace_row(name, config)
        expect_record(row, by_hand, meaning)
        expect_whole([*row["shape"], *row["parameter_shape"]], "rows and columns")
    given = {"tensor": name, "shape": [512, 4096], "destination": [[2560, 3072], [0, 4096]]}
    expect_record(
        lab.trace_row(name, sizes | {"head_dim": 64}),
        given,
        "config.json says head_dim 64: 8 kv heads of 64 rows, not of 4096 / 32",
    )
    half = {"tensor": name, "parameter_shape": [6144, 2048]}
    config = sizes | {"hidden_size": 2048, "num_key_value_heads": None, "head_dim": None}
    expect_record(lab.trace_row(name, config), half, "q, k and v each have 32 heads of 2048 / 32 = 64 rows")


def test_every_tensor_of_llama_3_8b(lab: ModuleType, reference: Reference) -> None:
    predicted = predict(lab, "llama-3-8b-tp1")
    expect(len(predicted), 291, "tensors in the checkpoint: nine for each of 32 layers, the embedding, the last norm and lm_head")
    assert_predicted(predicted, reference("llama-3-8b-tp1"))


def test_every_tensor_of_smollm2(lab: ModuleType, reference: Reference) -> None:
    """SmolLM2 has nine query heads, three kv heads and tied embeddings: 272 tensors, without an lm_head."""
    predicted = predict(lab, "smollm2-tp1")
    expect(
        len(predicted),
        272,
        "tensors in the checkpoint: nine for each of 30 layers, the embedding and the last norm, but no lm_head",
    )
    assert_predicted(predicted, reference("smollm2-tp1"))


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "model.layers.30.mlp.up_proj.weight", f"{LAYER}.mlp.fc1.weight", f"{LAYER}.self_attn.q_proj.scale"]
)
def test_a_tensor_that_the_checkpoint_does_not_have_is_refused(lab: ModuleType, name: str) -> None:
    """SmolLM2 has tied embeddings and layers 0 to 29."""
    meaning = "SmolLM2 has no such tensor; a prediction for it would hide that a checkpoint belongs to another model"
    with expect_refused(name, meaning=meaning):
        lab.trace_row(name, SMOLLM2)


# --- task ranks ---------------------------------------------------------------------------------------------------------


def test_rank_1_of_2_by_hand(lab: ModuleType) -> None:
    """A rank has 3072 rows of qkv_proj, 14336 rows of gate_up_proj, and half of the columns of o_proj and down_proj."""
    for module, destination, source in [
        ("self_attn.q_proj", [[0, 2048], [0, 4096]], [[2048, 4096], [0, 4096]]),
        ("self_attn.k_proj", [[2048, 2560], [0, 4096]], [[512, 1024], [0, 4096]]),
        ("self_attn.v_proj", [[2560, 3072], [0, 4096]], [[512, 1024], [0, 4096]]),
        ("self_attn.o_proj", [[0, 4096], [0, 2048]], [[0, 4096], [2048, 4096]]),
        ("mlp.gate_proj", [[0, 7168], [0, 4096]], [[7168, 14336], [0, 4096]]),
        ("mlp.up_proj", [[7168, 14336], [0, 4096]], [[7168, 14336], [0, 4096]]),
        ("mlp.down_proj", [[0, 4096], [0, 7168]], [[0, 4096], [7168, 14336]]),
        ("input_layernorm", [[0, 4096]], [[0, 4096]]),
    ]:
        name = f"{LAYER}.{module}.weight"
        meaning = "rank 1 of 2 has the second half: columns of o_proj and down_proj, rows of the others, but all of a norm"
        by_hand = {"tensor": name, "destination": destination, "source": source}
        expect_record(lab.trace_row(name, LLAMA_3_8B, tp_size=2, tp_rank=1), by_hand, meaning)


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
    """At TP 16 a rank has 2 query heads, and one kv head that the next rank has too: 256 + 128 + 128 rows, not 384."""
    predicted = predict(lab, recording)
    rows = predicted[0, f"{LAYER}.self_attn.k_proj.weight"]["parameter_shape"][0]
    expect(
        rows,
        qkv_rows,
        f"rows of qkv_proj on one rank of {recording}: its query heads, and at least one key head and one value head",
    )
    assert_predicted(predicted, reference(recording))


def test_the_vocabulary_is_padded_to_a_multiple_of_64(lab: ModuleType, reference: Reference) -> None:
    """131 rows are padded to 192, 96 for each rank: rank 1 reads the last 35 rows and has 61 rows of padding."""
    row = lab.trace_row("model.embed_tokens.weight", TINY, tp_size=2, tp_rank=1)
    by_hand = {"parameter_shape": [96, 64], "destination": [[0, 35], [0, 64]], "source": [[96, 131], [0, 64]]}
    meaning = "131 rows are padded to 192, a multiple of 64: 96 for each rank, of which rank 1 reads the last 35 that exist"
    expect_record(row, {"tensor": "model.embed_tokens.weight"} | by_hand, meaning)
    assert_predicted(predict(lab, "tiny-tp2"), reference("tiny-tp2"))


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    verbosity=Verbosity.quiet,  # the message below shows the example
    phases=(Phase.generate, Phase.shrink),
)
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
    """The ranks together read every element of a tensor, and q, k and v fill the fused parameter without overlap."""
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
                sizes = f"{heads} query heads and {kv_heads} kv heads of {head_dim} rows"
                expect(
                    int((written != 1).sum()),
                    0,
                    f"elements of {name} that are not written exactly once on rank {rank} of {tp}: {sizes}",
                )
    for name, seen in read.items():
        expect(
            int((~seen).sum()), 0, f"elements of {name} that no rank of {tp} reads, with vocabulary {vocabulary}: they are lost"
        )


@pytest.mark.gpu
def test_predictions_hold_with_parameters_on_cuda(lab: ModuleType, reference: Reference) -> None:
    predicted = predict(lab, "tiny-tp2")
    needs_cuda()
    trace = reference("tiny-tp2", device="cuda")
    expect(trace.device[:4], "cuda", "the device of the parameters")
    assert_predicted(predicted, trace)


# --- task fingerprint ---------------------------------------------------------------------------------------------------


def config_of(hidden: int, heads: int, kv_heads: int, head_dim: int, **more: object) -> dict[str, Any]:
    """The config of a Llama with these sizes, and the other sizes of Llama-3-8B."""
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
    for name, size, meaning in [
        ("num_layers", config["num_hidden_layers"], "the number of different indices after model.layers"),
        ("hidden_size", config["hidden_size"], "the columns of embed_tokens"),
        ("intermediate_size", config["intermediate_size"], "the rows of gate_proj"),
        ("vocab_size", config["vocab_size"], "the rows of embed_tokens"),
        ("tied", config["tie_word_embeddings"], "tied means that there is no lm_head: the embedding is used in its place"),
    ]:
        expect(f"{name} {getattr(found, name)}", f"{name} {size}", meaning)
    likeliest = (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"])
    expect(
        astuple(found.splits[0]),
        likeliest,
        "(query heads, kv heads, rows per head): the likeliest split of this model is the one in its config.json",
    )


def test_every_split_that_fits_is_named_likeliest_first(lab: ModuleType) -> None:
    """q has 48 rows and k has 24: heads of 2, 4, 6, 8, 12 or 24 rows divide both. The size nearest to 64 comes first."""
    found = lab.fingerprint(implied_shapes(config_of(48, 6, 3, 8)))
    six = [(2, 1, 24), (4, 2, 12), (6, 3, 8), (8, 4, 6), (12, 6, 4), (24, 12, 2)]
    even = (
        "(query heads, kv heads, rows per head) for 48 rows of q and 24 of k: every split with an even head size fits the shapes"
    )
    expect([astuple(split) for split in found.splits], six, even)
    expect_whole([number for split in found.splits for number in astuple(split)], "heads and rows per head")
    # 4096 and 1024 rows with a hidden size of 4096: the usual size is 128. 256 and 64 are equally near, so 256 comes first.
    found = lab.fingerprint(implied_shapes(LLAMA_3_8B))
    sizes = [128, 256, 64, 512, 32, 1024, 16, 8, 4, 2]
    expect(
        [split.head_dim for split in found.splits],
        sizes,
        "head sizes, the nearest to 128 by ratio first; of two equally near, the larger first",
    )
    at_2048 = [64, 128, 32, 256, 16, 8, 4, 2]
    found = lab.fingerprint(implied_shapes(config_of(2048, 32, 4, 64)))
    expect(
        [split.head_dim for split in found.splits],
        at_2048,
        "head sizes, the nearest to 64 by ratio first, for a hidden size of up to 2048, inclusive",
    )
    above = lab.fingerprint(implied_shapes(config_of(2049, 32, 4, 64)))
    expect(above.splits[0].head_dim, 128, "above a hidden size of 2048, the usual head size is 128")
    for hidden, usual in ((2048, 64), (4096, 128)):
        rows = usual * (usual + 2) // 2
        close = lab.fingerprint(implied_shapes(config_of(hidden, rows // usual, rows // usual, usual)))
        two = [usual, usual + 2]
        expect(
            [split.head_dim for split in close.splits[:2]],
            two,
            f"{rows} rows: heads of {usual} rows are the usual size, so they come first",
        )
    unlike = implied_shapes(config_of(12, 3, 2, 4))
    expect(
        lab.fingerprint(unlike).splits,
        (),
        "12 rows of q are no multiple of the 8 rows of k, so no number of query heads shares a kv head: no split fits",
    )


def expect_doubt(found: Any, words: list[str]) -> None:
    """Fails unless `unknown` has a sentence with all of these words."""
    doubt = f"a sentence of `unknown` that names {' and '.join(words)}"
    named = any(all(re.search(rf"\b{word}\b", sentence) for word in words) for sentence in found.unknown)
    expect(
        doubt if named else list(found.unknown),
        doubt,
        "shapes do not show it, and a model with the wrong value generates nonsense",
    )


def test_two_configs_with_the_same_shapes_get_the_same_answer(lab: ModuleType) -> None:
    """32 and 8 heads of 128 rows, or 64 and 16 of 64 rows: all shapes are equal, so the answer must list both."""
    wide, narrow = config_of(4096, 32, 8, 128), config_of(4096, 64, 16, 64, rope_theta=10000.0, rms_norm_eps=1e-6)
    found = lab.fingerprint(implied_shapes(wide))
    expect(implied_shapes(wide) == implied_shapes(narrow), True, "the two configs have equal shapes")
    expect(lab.fingerprint(implied_shapes(narrow)), found, "equal shapes must get equal answers")
    both = {(32, 8, 128), (64, 16, 64)}
    expect(both & {astuple(split) for split in found.splits}, both, "both splits fit the shapes, so both are listed")
    expect_doubt(found, ["head_dim"])


def test_what_shapes_cannot_tell_is_said(lab: ModuleType) -> None:
    found = lab.fingerprint(implied_shapes(LLAMA_3_8B))
    for words in (["rope_theta"], ["rms_norm_eps"], ["k_proj", "v_proj"], ["head_dim"], ["tie_word_embeddings"]):
        expect_doubt(found, words)
    expect_doubt(lab.fingerprint(implied_shapes(config_of(8, 1, 1, 4))), ["head_dim"])  # one head of 4 rows, or two of 2
    alone = lab.fingerprint(implied_shapes(config_of(8, 1, 1, 2, tie_word_embeddings=True)))
    expect([astuple(split) for split in alone.splits], [(1, 1, 2)], "2 rows of q and 2 rows of k can be split in one way only")
    for word, known in (
        ("head_dim", "only one split fits, so head_dim is known"),
        ("tie_word_embeddings", "without an lm_head, the model is tied"),
    ):
        expect(
            [sentence for sentence in alone.unknown if word in sentence],
            [],
            f"sentences of `unknown` about {word}: there must be none, because {known}",
        )


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
"""Findings for each faulty checkpoint of the tiny Llama at TP 2, worked out by hand. vLLM loads all of them without an error."""


SILENT = "{}: vLLM loads and serves this without an error; to explain the wrong output, name the tensor and the rows"


def findings(lab: ModuleType, rows: Iterable[dict[str, Any]], checkpoint: Any, parameters: Any) -> set[tuple[Any, ...]]:
    found = [astuple(finding) for finding in lab.diagnose(list(rows), checkpoint, parameters)]
    expect(len(found), len(set(found)), "number of different findings: one of them is reported twice")
    return set(found)


def findings_of(lab: ModuleType, trace: Trace, *ranks: int) -> set[tuple[Any, ...]]:
    rows = (record.as_dict() for record in trace.records if not ranks or record.tp_rank in ranks)
    return findings(lab, rows, trace.checkpoint_shapes, trace.parameter_shapes)


def part(spans: Iterable[Iterable[int]]) -> tuple[slice, ...]:
    return tuple(slice(*span) for span in spans)


def row_of(
    tensor: str, source: list[list[int]], parameter: str, destination: list[list[int]], rank: int = 0, size: int = 1
) -> Any:
    """A record with only the fields that a diagnosis needs."""
    return {
        "tensor": tensor,
        "source": source,
        "parameter": parameter,
        "destination": destination,
        "tp_rank": rank,
        "tp_size": size,
    }


def test_missing_twice_and_cut_off_by_hand(lab: ModuleType) -> None:
    """Rows 2:4 of p are written by a and by b. Rows 6:8 are never written. The last of b's five rows is never read."""
    rows = [row_of("a", [[0, 4]], "p", [[0, 4]]), row_of("b", [[0, 4]], "p", [[2, 6]])]
    by_hand = {("twice", "p", ((2, 4),), 0), ("missing", "p", ((6, 8),), 0), ("cut off", "b", ((4, 5),), None)}
    expect(
        findings(lab, rows, {"a": (4,), "b": (5,)}, {"p": (8,)}),
        by_hand,
        "p[2:4] is written twice, p[6:8] is never written, and b[4:5] is never read",
    )
    nothing = {("missing", "p", ((0, 8), (0, 3)), 0), ("cut off", "a", ((0, 4),), None)}
    expect(
        findings(lab, [], {"a": (4,)}, {"p": (8, 3)}),
        nothing,
        "without records, all of p is missing on rank 0 of 1, and all of a is cut off",
    )


def test_neighbouring_parts_are_one_finding(lab: ModuleType) -> None:
    """Rows 0:2 of p are written twice and rows 2:4 three times. The last quarter of the square s is never written or read."""
    rows = [row_of("a", [[0, 4]], "p", [[0, 4]]) for _ in range(2)] + [row_of("a", [[2, 4]], "p", [[2, 4]])]
    expect(
        findings(lab, rows, {"a": (4,)}, {"p": (4,)}),
        {("twice", "p", ((0, 4),), 0)},
        "p[0:4] is written more than once: neighbouring parts with the same fault are one finding",
    )
    three_quarters = [[0, 3], [0, 2]], [[3, 4], [0, 2]], [[0, 2], [2, 3]], [[0, 2], [3, 4]]
    rows = [row_of("s", written, "s", written) for written in three_quarters]
    quarter = {("missing", "s", ((2, 4), (2, 4)), 0), ("cut off", "s", ((2, 4), (2, 4)), None)}
    expect(
        findings(lab, rows, {"s": (4, 4)}, {"s": (4, 4)}),
        quarter,
        "the missing quarter is one finding, not one for each of its four cells",
    )


def test_a_rank_of_padding_alone_has_nothing_to_load(lab: ModuleType) -> None:
    """10 rows of a vocabulary are padded to 64, 32 for each of two ranks: rank 1 has only padding."""
    name = "model.embed_tokens.weight"
    rows = [row_of(name, [[0, 10]], name, [[0, 10]], 0, 2), row_of(name, [[10, 10]], name, [[0, 0]], 1, 2)]
    expect(
        findings(lab, rows, {name: (10,)}, {name: (32,)}),
        set(),
        "this load has no fault: rank 0 has all 10 rows of the vocabulary, and the 32 rows of rank 1 are padding",
    )


@pytest.mark.parametrize("recording", ["tiny-tp2", "llama-3-8b-tp1", "llama-3-8b-one-layer-tp16", "smollm2-tp1"])
def test_a_sound_load_has_no_findings(lab: ModuleType, reference: Reference, recording: str) -> None:
    """Padding of the vocabulary is no fault, and a kv head that two ranks read is no fault."""
    lab.diagnose([], {}, {})
    trace = reference(recording)
    expect(
        findings_of(lab, trace),
        set(),
        "this load has no fault: padding is never written, and two ranks may read the same kv head",
    )


@pytest.mark.parametrize("fault", SILENT_FAULTS)
def test_what_vllm_loads_in_silence_is_found(lab: ModuleType, reference: Reference, fault: str) -> None:
    lab.diagnose([], {}, {})
    expect(findings_of(lab, reference(fault)), SILENT_FAULTS[fault], SILENT.format(fault))


def test_one_rank_alone_is_judged_for_what_it_wrote(lab: ModuleType, reference: Reference) -> None:
    """Rank 1 may read what rank 0 did not read. Rows that were not written on rank 0 are missing there, whatever rank 1 wrote."""
    lab.diagnose([], {}, {})
    others = "another rank may read what rank {} did not: with records of one rank of two, nothing is reported as cut off"
    expect(findings_of(lab, reference("tiny-tp2"), 1), set(), others.format(1))
    expect(findings_of(lab, reference("fault-mha-into-gqa"), 0), set(), others.format(0))
    missing = {("missing", QKV, ((64, 96), (0, 64)), 1)}
    expect(
        findings_of(lab, reference("fault-k-proj-missing"), 1), missing, "rows that rank 1 did not write are missing on rank 1"
    )


def test_what_is_left_unread_by_design_is_no_finding(lab: ModuleType, reference: Reference) -> None:
    """vLLM computes rotary_emb.inv_freq. It reads an lm_head that is stored beside a tied embedding, and compares the two."""
    lab.diagnose([], {}, {})
    trace = reference("tiny-old-habits")
    expect(
        findings_of(lab, trace),
        set(),
        "vLLM computes inv_freq, and it reads an lm_head beside a tied embedding: neither is a fault",
    )
    without_head = [record.as_dict() for record in trace.records if record.tensor != "lm_head.weight"]
    first = {f"{LAYER}.self_attn.rotary_emb.inv_freq": (4,), "a": (4,)}
    rest = {("missing", "p", ((0, 8),), 0), ("cut off", "a", ((0, 4),), None)}
    expect(findings(lab, [], first, {"p": (8,)}), rest, "tensors that come after inv_freq in the checkpoint must be checked too")
    lost = {("missing", "lm_head.weight", ((0, 131), (0, 64)), 0), ("cut off", "lm_head.weight", ((0, 131), (0, 64)), None)}
    found = findings(lab, without_head, trace.checkpoint_shapes, trace.parameter_shapes)
    expect(found, lost, "without its record, lm_head is missing and cut off: the 131 rows that exist, without the padding")


SPAN = st.tuples(st.integers(0, 6), st.integers(0, 6)).map(sorted)


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    verbosity=Verbosity.quiet,  # the message below shows the example
    phases=(Phase.generate, Phase.shrink),
)
@given(st.lists(st.tuples(SPAN, SPAN, SPAN, SPAN), max_size=5))
def test_any_load_is_judged_as_counting_every_element_would(lab: ModuleType, copies: list[tuple[list[int], ...]]) -> None:
    """Random rectangles: the findings cover exactly the elements never written, written more than once, or never read."""
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
        meaning = f"{fault}: number of findings that cover each element, for the copies (source, then destination) {copies}"
        expect(painted.tolist(), elements.astype(int).tolist(), meaning)


@pytest.mark.gpu
@pytest.mark.parametrize("fault", ["fault-mha-into-gqa", "fault-k-proj-missing"])
def test_silent_faults_are_found_with_parameters_on_cuda(lab: ModuleType, reference: Reference, fault: str) -> None:
    lab.diagnose([], {}, {})
    needs_cuda()
    trace = reference(fault, device="cuda")
    expect(trace.device[:4], "cuda", "the device of the parameters")
    expect(findings_of(lab, trace), SILENT_FAULTS[fault], SILENT.format(fault))

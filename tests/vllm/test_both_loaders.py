"""Lab 02's table of bad checkpoints, case by case: the real vLLM loads each, and so does mini_vllm's strict loader.

The table in the lab's README is what is tested. Its first column names the cases that FAULTS below makes, and its other
columns are what has to happen, in vLLM's own words: neither can change without the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from labkit.labs import find_lab, load_implementation
from labkit.trace import TraceError, trace_load
from labkit.trace.known import implied_shapes
from labkit.trace.recordings import TINY, write_checkpoint
from mini_vllm.loading.checkpoint import Checkpoint, CheckpointError, read_json
from mini_vllm.loading.loader import Kind, LoadError
from mini_vllm.models.llama import LlamaForCausalLM
from mini_vllm.parallel import TPGroup, tp_group

pytest.importorskip("vllm", reason="needs the real vLLM, which is not installed in this environment")

from vllm.config import LoadConfig
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

Tensors = dict[str, Tensor]
LAB = find_lab("02")
ATTENTION, MLP = "model.layers.1.self_attn", "model.layers.1.mlp"
QKV, GATE_UP = f"{ATTENTION}.qkv_proj.weight", f"{MLP}.gate_up_proj.weight"
NORM = "model.layers.1.input_layernorm.weight"
INDEX = "model.safetensors.index.json"
KINDS = set(get_args(Kind))


@dataclass(frozen=True)
class Case:
    """One bad checkpoint of the tiny Llama, whose q_proj is (128, 64), k_proj (64, 64), gate_proj (96, 64).

    Attributes:
        change: makes its tensors bad, in place.
        faults: what the strict loader has to report, all of it: kinds and names.
        config: what config.json says besides.
        files: makes its files bad, in place.
        unreadable: what our checkpoint says when it is opened, if that is as far as it comes.
    """

    change: Callable[[Tensors], Any] = lambda tensors: None
    faults: list[tuple[Kind, str]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    files: Callable[[Path], Any] = lambda folder: None
    unreadable: str = ""


def reshape(*shape: int, names: list[str]) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({name: torch.randn(shape) for name in names})


def drop(*names: str) -> Callable[[Tensors], Any]:
    return lambda tensors: [tensors.pop(name) for name in names]


def drop_layer(tensors: Tensors) -> None:
    for name in [name for name in tensors if name.startswith("model.layers.1.")]:
        del tensors[name]


def swap_k_and_v(tensors: Tensors) -> None:
    k, v = f"{ATTENTION}.k_proj.weight", f"{ATTENTION}.v_proj.weight"
    tensors[k], tensors[v] = tensors[v], tensors[k]


def permute_q_and_k(tensors: Tensors) -> None:
    """Pairs of a head side by side, as llama.cpp stores them, and no longer half a head apart."""
    for name in ("q", "k"):
        weight = tensors[f"{ATTENTION}.{name}_proj.weight"]
        tensors[f"{ATTENTION}.{name}_proj.weight"] = weight.view(-1, 2, 16, 64).transpose(1, 2).reshape(weight.shape).contiguous()


def one_layer_more(tensors: Tensors) -> None:
    for name in [name for name in tensors if name.startswith("model.layers.1.")]:
        tensors[name.replace("layers.1", "layers.2")] = tensors[name].clone()


def without_prefix(tensors: Tensors) -> None:
    for name in [name for name in tensors if name.startswith("model.")]:
        tensors[name.removeprefix("model.")] = tensors.pop(name)


def two_files(folder: Path) -> None:
    """lm_head in the second file and all else in the first, as the index says; layer 1's k_proj in the second once more."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    again = {name: tensors[name].flip(0).contiguous() for name in ("lm_head.weight", attention("k_proj"))}
    save_file(again, folder / "model-00002-of-00002.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model-00001-of-00002.safetensors")
    index = dict.fromkeys(tensors, "model-00001-of-00002.safetensors")
    index["lm_head.weight"] = "model-00002-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))


def in_layer_1(kind: Kind, parameters: bool = False) -> list[tuple[Kind, str]]:
    """A fault of that kind for every checkpoint tensor of layer 1, or for every parameter."""
    names = ["self_attn.o_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"]
    fused = ["self_attn.qkv_proj", "mlp.gate_up_proj"]
    parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"]
    return [(kind, f"model.layers.1.{name}.weight") for name in names + (fused if parameters else parts)]


def everywhere(kind: Kind, parameters: bool = False) -> list[tuple[Kind, str]]:
    layers = [(kind, name.replace("layers.1", f"layers.{i}")) for i in (0, 1) for _, name in in_layer_1(kind, parameters)]
    return [*layers, (kind, "model.embed_tokens.weight"), (kind, "model.norm.weight")]


def attention(name: str) -> str:
    return f"{ATTENTION}.{name}.weight"


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


Q, K, V, OUT = (attention(f"{name}_proj") for name in "qkvo")

FAULTS: dict[str, Case] = {
    "k_proj and v_proj of a multi-head model under a grouped-query config": Case(
        reshape(128, 64, names=[K, V]), [("truncated", K), ("truncated", V)]
    ),
    "o_proj too wide": Case(reshape(64, 160, names=[OUT]), [("truncated", OUT)]),
    "down_proj too wide": Case(reshape(64, 128, names=[f"{MLP}.down_proj.weight"]), [("truncated", f"{MLP}.down_proj.weight")]),
    "gate_proj too tall": Case(reshape(128, 64, names=[f"{MLP}.gate_proj.weight"]), [("truncated", f"{MLP}.gate_proj.weight")]),
    "k_proj missing": Case(drop(K), [("partly covered", QKV)]),
    "gate_proj missing": Case(drop(f"{MLP}.gate_proj.weight"), [("partly covered", GATE_UP)]),
    "q_proj, k_proj and v_proj missing": Case(drop(Q, K, V), [("missing", QKV)]),
    "o_proj missing": Case(drop(OUT), [("missing", OUT)]),
    "embed_tokens missing": Case(drop("model.embed_tokens.weight"), [("missing", "model.embed_tokens.weight")]),
    "lm_head missing": Case(drop("lm_head.weight"), [("missing", "lm_head.weight")]),
    "qkv_proj stored beside q_proj, k_proj and v_proj": Case(reshape(256, 64, names=[QKV]), [("duplicated", QKV)]),
    "k_proj in two files of a sharded checkpoint, of which the index names one": Case(
        files=two_files, faults=[("duplicated", K)]
    ),
    "a .bias that the config does not mention": Case(
        reshape(128, names=[f"{ATTENTION}.q_proj.bias"]), [("unexpected", f"{ATTENTION}.q_proj.bias")]
    ),
    "rotary_emb.inv_freq": Case(reshape(16, names=[f"{ATTENTION}.rotary_emb.inv_freq"])),
    "the lm_head of a tied model": Case(config={"tie_word_embeddings": True}),
    "k_proj and v_proj swapped": Case(swap_k_and_v),
    "q_proj and k_proj with their rows permuted, as llama.cpp stores them": Case(permute_q_and_k),
    "k_proj too short": Case(reshape(32, 64, names=[K]), [("mis-shaped", K)]),
    "q_proj with fewer inputs": Case(reshape(128, 48, names=[Q]), [("mis-shaped", Q)]),
    "embed_tokens with a smaller vocabulary": Case(
        reshape(100, 64, names=["model.embed_tokens.weight"]), [("mis-shaped", "model.embed_tokens.weight")]
    ),
    "q_proj with more inputs": Case(reshape(128, 80, names=[Q]), [("truncated", Q)]),
    "lm_head with a larger vocabulary": Case(reshape(200, 64, names=["lm_head.weight"]), [("truncated", "lm_head.weight")]),
    "a norm of another shape": Case(reshape(32, names=[NORM]), [("mis-shaped", NORM)]),
    "a name without a home": Case(reshape(4, 4, names=[f"{MLP}.fc1.weight"]), [("unexpected", f"{MLP}.fc1.weight")]),
    "a layer too many": Case(
        one_layer_more, [(kind, name.replace("layers.1", "layers.2")) for kind, name in in_layer_1("unexpected")]
    ),
    "no model. prefix": Case(
        without_prefix,
        [(kind, name.removeprefix("model.")) for kind, name in everywhere("unexpected")] + everywhere("missing", True),
    ),
    "a norm missing": Case(drop(NORM), [("missing", NORM)]),
    "a whole layer missing": Case(drop_layer, in_layer_1("missing", parameters=True)),
    "a file that the index names is missing": Case(
        files=lambda folder: (folder / INDEX).write_text('{"weight_map": {"lm_head.weight": "model-00007.safetensors"}}'),
        unreadable=r"model-00007\.safetensors is missing \(model\.safetensors\.index\.json names model-00007\.safetensors\)",
    ),
    "a file cut short": Case(
        files=cut_short, unreadable=r"no whole safetensors file: it has \d+ bytes, and its header promises \d+"
    ),
}


@dataclass(frozen=True)
class Row:
    """One row of the lab's table.

    Attributes:
        cases: what its first cell names, separated by semicolons.
        vllm: what vLLM says, with ``...`` for any text; None where it says nothing.
        findings: what ``diagnose`` finds in the trace of a load that vLLM let pass.
        kinds: the kinds of fault that the strict loader reports.
        unreadable: whether it says that the checkpoint cannot even be opened.
    """

    cases: list[str]
    vllm: str | None
    findings: set[str]
    kinds: set[str]
    unreadable: bool

    @classmethod
    def read(cls, line: str) -> Row:
        """The row that a line of the README is."""
        checkpoint, vllm, finds, strict = (cell.strip() for cell in line.strip().strip("|").split(" | "))
        words, marked = re.match(r"`([^`]+)`", vllm), set(re.findall(r"`([^`]+)`", strict))
        assert bool(words) != ("silent" in vllm), f"either vLLM is silent, or the cell begins with what it says: {vllm}"
        assert bool(marked) != strict.startswith("nothing"), f"either it sees nothing, or the cell says what: {strict}"
        cases = checkpoint.replace("`", "").split("; ")
        found = {finding for finding in ("missing", "twice", "cut off") if f"`diagnose`: {finding}" in finds}
        return cls(cases, words and words[1], found, marked & KINDS, "CheckpointError" in marked)


def table() -> list[Row]:
    """The rows of "What vLLM 0.32.0 says of a bad checkpoint"."""
    section = (LAB.folder / "README.md").read_text(encoding="utf-8").split("### What vLLM 0.32.0 says of a bad checkpoint")[1]
    lines = [line for line in section.split("\n###")[0].splitlines() if line.startswith("| ")]
    return [Row.read(line) for line in lines[1:]]


def bad_checkpoint(folder: Path, case: Case) -> Path:
    write_checkpoint(folder, TINY | case.config, implied_shapes(TINY))
    tensors = load_file(folder / "model.safetensors")
    case.change(tensors)
    save_file(tensors, folder / "model.safetensors")
    case.files(folder)
    return folder


def vllm_loads(folder: Path, tp_size: int) -> tuple[str | None, set[str]]:
    """What the real vLLM says, None for nothing, and what lab 02's ``diagnose`` finds in its load on all ranks."""
    loader = DefaultModelLoader(LoadConfig(use_tqdm_on_load=False))
    try:
        for _ in loader._get_weights_iterator(DefaultModelLoader.Source(str(folder), None)):
            pass
        trace = trace_load(folder, tp_size, range(tp_size), "cpu")
    except TraceError as error:
        if not error.__cause__:
            raise
        return said_by(error.__cause__), set()
    except Exception as error:
        return said_by(error), set()
    diagnose = load_implementation(LAB.folder / "solution.py").diagnose
    rows = [record.as_dict() for record in trace.records]
    return None, {finding.fault for finding in diagnose(rows, trace.checkpoint_shapes, trace.parameter_shapes)}


def said_by(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def pattern(words: str, same_numbers: bool) -> str:
    text = re.escape(words).replace(r"\.\.\.", ".*")
    return text if same_numbers else re.sub(r"\d+", r"\\d+", text)


@pytest.mark.parametrize("tp_size", [1, 2])
@pytest.mark.parametrize("name", FAULTS)
def test_both_loaders_do_what_the_table_says(name: str, tp_size: int, tmp_path: Path) -> None:
    """Alone, and as two ranks; the words that the table quotes have the numbers of one."""
    case, folder = FAULTS[name], bad_checkpoint(tmp_path, FAULTS[name])
    (row,) = [row for row in table() if name in row.cases]

    said, findings = vllm_loads(folder, tp_size)
    assert findings == row.findings
    if row.vllm is None or said is None:
        assert said == row.vllm
    else:
        assert re.fullmatch(pattern(row.vllm, tp_size == 1), said, re.DOTALL), said

    for rank in range(tp_size):
        with tp_group(TPGroup(rank, tp_size)):
            kinds, unreadable = check_ours(folder, case)
        assert (kinds, unreadable) == (row.kinds, row.unreadable)


def check_ours(folder: Path, case: Case) -> tuple[set[str], bool]:
    """Loads it, sees that all that is wrong is reported and nothing else, and returns what the table has of that."""
    config = read_json(folder / "config.json")
    if case.unreadable:
        with pytest.raises(CheckpointError, match=case.unreadable):
            Checkpoint(folder)
        return set(), True
    if not case.faults:
        LlamaForCausalLM.from_checkpoint(config, Checkpoint(folder))
        return set(), False
    with pytest.raises(LoadError) as refused:
        LlamaForCausalLM.from_checkpoint(config, Checkpoint(folder))
    faults = refused.value.faults
    assert sorted((fault.kind, fault.name) for fault in faults) == sorted(case.faults)
    assert all(fault.name in fault.message for fault in faults)
    return {fault.kind for fault in faults}, False


def test_the_table_has_every_case_once() -> None:
    named = [name for row in table() for name in row.cases]
    assert sorted(named) == sorted(FAULTS)


def test_a_good_checkpoint_is_loaded_by_both(tmp_path: Path) -> None:
    assert vllm_loads(bad_checkpoint(tmp_path, Case()), 2) == (None, set())
    assert check_ours(tmp_path, Case()) == (set(), False)

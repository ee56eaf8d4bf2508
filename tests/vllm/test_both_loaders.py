"""Lab 02's table of bad checkpoints, fault by fault: the real vLLM loads each, and so does mini_vllm's strict loader.

The table in the lab's README is what is tested: scripts/record_faults.py wrote it, and has to come to the same now. What it must
say is worked out by hand below, from the shapes of the tiny Llama: the script alone could be wrong every time in the same way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="needs the real vLLM, which is not installed in this environment")

from labkit.checkpoints.faults import FAULTS, inject_fault
from labkit.load.trace.coverage import find_faults
from labkit.system.labs import ROOT, find_lab, load_implementation
from mini_vllm.loading.checkpoint import Checkpoint, read_json
from mini_vllm.loading.loader import Kind, LoadError
from mini_vllm.models.llama import LlamaForCausalLM

LAB = find_lab("02")
script = load_implementation(ROOT / "scripts" / "record_faults.py")
README = dict(script.rows_in((LAB.folder / "README.md").read_text(encoding="utf-8")))

ATTENTION, MLP = "model.layers.1.self_attn", "model.layers.1.mlp"
Q, K, V, OUT = (f"{ATTENTION}.{name}_proj.weight" for name in "qkvo")
GATE, DOWN = f"{MLP}.gate_proj.weight", f"{MLP}.down_proj.weight"
QKV, GATE_UP = f"{ATTENTION}.qkv_proj.weight", f"{MLP}.gate_up_proj.weight"
EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.layers.1.input_layernorm.weight"


def in_layer_1(kind: Kind, parameters: bool = False) -> list[tuple[Kind, str]]:
    """A fault of that kind for every checkpoint tensor of layer 1, or for every parameter."""
    names = ["self_attn.o_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"]
    fused = ["self_attn.qkv_proj", "mlp.gate_up_proj"]
    parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"]
    return [(kind, f"model.layers.1.{name}.weight") for name in names + (fused if parameters else parts)]


def everywhere(kind: Kind, parameters: bool = False) -> list[tuple[Kind, str]]:
    layers = [(kind, name.replace("layers.1", f"layers.{i}")) for i in (0, 1) for _, name in in_layer_1(kind, parameters)]
    return [*layers, (kind, EMBED), (kind, "model.norm.weight")]


@dataclass(frozen=True)
class Case:
    """What has to come of one fault.

    Attributes:
        strict: what the strict loader has to report, all of it: kinds and names.
        found: what ``verify`` has to find in a load that vLLM lets pass: the fault and the name.
        vllm: what vLLM's words begin with; empty where it has to be silent.
        unreadable: what our checkpoint says when it is opened, if that is as far as it comes.
        differs: whether mini_vllm serves it, and not as the source: by more than rounding.
    """

    strict: list[tuple[Kind, str]] = field(default_factory=list)
    found: set[tuple[str, str]] = field(default_factory=set)
    vllm: str = ""
    unreadable: str = ""
    differs: bool = False


NO_HOME, UNSET = "ValueError: There is no module or parameter named ", "ValueError: Following weights were not initialized "
CASES: dict[str, Case] = {
    "missing-k": Case([("partly covered", QKV)], {("missing", QKV)}),
    "missing-qkv": Case([("missing", QKV)], {("missing", QKV)}),
    "missing-o": Case([("missing", OUT)], {("missing", OUT)}),
    "missing-gate": Case([("partly covered", GATE_UP)], {("missing", GATE_UP)}),
    "missing-embed": Case([("missing", EMBED)], {("missing", EMBED)}),
    "missing-lm-head": Case([("missing", HEAD)], {("missing", HEAD)}),
    "missing-norm": Case([("missing", NORM)], vllm=UNSET),
    "missing-layer": Case(in_layer_1("missing", parameters=True), vllm=UNSET),
    "mha-into-gqa": Case([("truncated", K), ("truncated", V)], {("cut off", K), ("cut off", V)}),
    "wide-o": Case([("truncated", OUT)], {("cut off", OUT)}),
    "wide-down": Case([("truncated", DOWN)], {("cut off", DOWN)}),
    "tall-gate": Case([("truncated", GATE)], {("cut off", GATE)}),
    "short-k": Case([("mis-shaped", K)], vllm="RuntimeError: start ("),
    "narrow-q": Case([("mis-shaped", Q)], vllm="AssertionError"),
    "wide-q": Case([("truncated", Q)], vllm="AssertionError"),
    "small-embed": Case([("mis-shaped", EMBED)], vllm="AssertionError"),
    "large-lm-head": Case([("truncated", HEAD)], vllm="AssertionError"),
    "short-norm": Case([("mis-shaped", NORM)], vllm="AssertionError: Attempted to load weight (torch.Size([32])) into"),
    "swapped-kv": Case(differs=True),
    "swapped-gate-up": Case(differs=True),
    "permuted-qk": Case(differs=True),
    "fused-beside-parts": Case([("duplicated", QKV)], {("twice", QKV)}),
    "in-two-files": Case([("duplicated", K)], {("twice", QKV)}),
    "unread-bias": Case([("unexpected", f"{ATTENTION}.q_proj.bias")], {("cut off", f"{ATTENTION}.q_proj.bias")}),
    "inv-freq": Case(),
    "stored-tied-head": Case(differs=True),
    "float16-down": Case(differs=True),
    "unmapped-name": Case([("unexpected", f"{MLP}.fc1.weight")], vllm=NO_HOME),
    "extra-layer": Case([(kind, name.replace("layers.1", "layers.2")) for kind, name in in_layer_1("unexpected")], vllm=NO_HOME),
    "no-prefix": Case(
        [(kind, name.removeprefix("model.")) for kind, name in everywhere("unexpected")] + everywhere("missing", True),
        vllm=NO_HOME,
    ),
    "missing-file": Case(
        vllm="FileNotFoundError: Weight files referenced in index but missing: {'model-00002-of-00002.safetensors'}",
        unreadable=r"model-00002-of-00002\.safetensors is missing \(model\.safetensors\.index\.json names model-00002",
    ),
    "cut-short": Case(
        vllm="SafetensorError: Error while deserializing header: ",
        unreadable=r"no whole safetensors file: it has \S+ bytes, and its header promises \S+;",
    ),
}

BY_DESIGN = {"inv-freq"}
"""What is silent and found by nothing, because it does no harm: the same log-probabilities to the bit."""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = script.good_checkpoint(tmp_path_factory.mktemp("tiny") / "good")
    return folder


def numbers(row: str) -> list[float]:
    """How far apart the log-probabilities are, by a row of the table."""
    return [float(number) for number in re.findall(r"\*\*differ\*\* by ([\d.]+)", row)]


def without(pattern: str, row: str) -> str:
    return re.sub(pattern, "#", row)


@pytest.mark.parametrize("tp_size", [1, 2])
@pytest.mark.parametrize("name", FAULTS)
def test_both_loaders_do_what_the_table_says(name: str, tp_size: int, good: Path, tmp_path: Path) -> None:
    """Alone, and as two ranks; the numbers that the table quotes are those of one."""
    case, outcome = CASES[name], script.outcome(good, name, tmp_path / "faulty", tp_size)
    now = script.row(name, outcome)
    assert numbers(now) == pytest.approx(numbers(README[name]), rel=0.1), "another machine's kernels round otherwise"
    pattern = r"(?<=differ\*\* by )[\d.]+" if tp_size == 1 else r"\d+(\.\d+)?"
    assert without(pattern, now) == without(pattern, README[name])

    assert outcome.vllm.startswith(case.vllm)
    assert bool(outcome.vllm) == bool(case.vllm), "silent, or not"
    assert {(finding.fault, finding.name) for finding in outcome.findings} == case.found
    assert sorted(outcome.strict) == sorted(case.strict)
    assert bool(outcome.unreadable) == bool(case.unreadable)
    assert re.search(case.unreadable, outcome.unreadable)
    assert outcome.differs == case.differs


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.vllm])
def test_what_vllm_loads_in_silence_is_found(name: str, good: Path, tmp_path: Path) -> None:
    """By the trace's coverage, in which lab 02's ``diagnose`` agrees part by part, or by values; on both ranks of two."""
    inject_fault(good, name, tmp_path / "faulty")
    said, trace = script.vllm_loads(tmp_path / "faulty", 2)
    assert not said
    found = {(finding.fault, finding.name, finding.part, finding.tp_rank) for finding in find_faults(trace)}
    diagnose = load_implementation(LAB.folder / "solution.py").diagnose
    rows = [record.as_dict() for record in trace.records]
    diagnosed = diagnose(rows, trace.checkpoint_shapes, trace.parameter_shapes)
    assert {(finding.fault, finding.name, finding.part, finding.tp_rank) for finding in diagnosed} == found
    if name in BY_DESIGN:
        assert not found
        assert script.loaded(tmp_path / "faulty", good, 1).logits == 0
    else:
        assert found or numbers(README[name]), "nothing finds it"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.strict])
def test_what_the_strict_loader_reports_names_the_tensor(name: str, good: Path, tmp_path: Path) -> None:
    inject_fault(good, name, tmp_path / "faulty")
    with pytest.raises(LoadError) as refused:
        LlamaForCausalLM.from_checkpoint(read_json(tmp_path / "faulty" / "config.json"), Checkpoint(tmp_path / "faulty"))
    assert all(fault.name in fault.message for fault in refused.value.faults)


def test_the_table_has_every_fault_once_and_in_order() -> None:
    assert list(README) == list(FAULTS)
    assert CASES.keys() == FAULTS.keys()
    text = (LAB.folder / "README.md").read_text(encoding="utf-8")
    assert script.with_table(text, list(README.values())) == text


def test_a_good_checkpoint_is_found_by_none(good: Path) -> None:
    for tp_size in (1, 2):
        assert script.loaded(good, good, tp_size) == script.Outcome("", (), (), "", 0, False, (0, 8))

"""Traces of the real vLLM: numbers computed by hand, values, refused loads, real ranks, no leftover state or files.

Needs the pinned vLLM; without it every test here is skipped, and says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from captured import CAPTURED, captured
from recordings import RECORDINGS, TINY, Recording, write_checkpoint
from safetensors.torch import save_file

from labkit.checkpoints.headers import Shape
from labkit.checkpoints.known_models import implied_shapes
from labkit.load.trace import EXAMPLE_TENSORS, Record, Trace, select, trace_load
from labkit.system.errors import UserError
from labkit.system.labs import load_implementation

vllm = pytest.importorskip("vllm", reason="needs the real vLLM, which is not installed in this environment")

ROOT = Path(__file__).parents[3]
LAYER = "model.layers.0"


def part(trace: Trace, name: str) -> Record:
    (record,) = [record for record in trace.records if record.tensor == f"{LAYER}.{name}.weight"]
    return record


def without_file(record: Record) -> Record:
    return replace(record, dtype=None, file=None, bytes=None, parameter_dtype="any")


def test_the_cuda_build_without_a_gpu_is_a_sentence() -> None:
    """vLLM finds no platform then; here it is told so before it looks."""
    platform = "import vllm.platforms as p; p._current_platform = p.interface.UnspecifiedPlatform()"
    code = f"{platform}\nimport sys; sys.argv[1:] = ['trace', 'llama-3-8b']\nfrom labkit.cli.main import main; main()"
    ran = subprocess.run([sys.executable, "-P", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "lab: this is the CUDA build of vLLM 0.32.0, which builds models only on a GPU, and it finds no GPU here" in ran.stdout
    assert "a bug of this project" not in ran.stdout


# --- Llama-3-8B, by hand --------------------------------------------------------------------------------------------------------


def test_rank_1_of_2_of_llama_3_8b() -> None:
    trace = trace_load("llama-3-8b", tp_size=2, ranks=[1])
    assert (len(trace.checkpoint_shapes), len(trace.records), len(trace.parameter_shapes)) == (291, 291, 195)
    assert (trace.vllm, trace.device, trace.model) == (vllm.__version__, "meta", "llama-3-8b")
    rows = {
        name: (part(trace, name).destination[0], part(trace, name).source[0])
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    }
    assert rows == {
        "self_attn.q_proj": ((0, 2048), (2048, 4096)),
        "self_attn.k_proj": ((2048, 2560), (512, 1024)),
        "self_attn.v_proj": ((2560, 3072), (512, 1024)),
        "mlp.gate_proj": ((0, 7168), (7168, 14336)),
        "mlp.up_proj": ((7168, 14336), (7168, 14336)),
    }
    assert part(trace, "self_attn.o_proj").source == ((0, 4096), (2048, 4096))
    assert part(trace, "mlp.down_proj").source == ((0, 4096), (7168, 14336))
    assert trace.parameter_shapes["model.embed_tokens.weight"] == (64128, 4096)
    assert [str(record.mapping) for record in select(trace, EXAMPLE_TENSORS).records] == [
        ".q_proj -> .qkv_proj, shard q",
        ".k_proj -> .qkv_proj, shard k",
        ".v_proj -> .qkv_proj, shard v",
        ".gate_proj -> .gate_up_proj, shard 0",
        "None",
    ]


@pytest.mark.parametrize(("tp_size", "rows"), [(1, 6144), (2, 3072), (4, 1536), (8, 768), (16, 512)])
def test_rows_of_qkv_per_rank(tp_size: int, rows: int) -> None:
    """Sixteen ranks have 8 kv heads to share, so each holds a copy: 256 + 128 + 128 rows, not 384."""
    trace = trace_load("llama-3-8b", tp_size, ranks=[tp_size - 1])
    assert trace.parameter_shapes[f"{LAYER}.self_attn.qkv_proj.weight"] == (rows, 4096)


# --- the recordings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECORDINGS)
def test_the_recordings_are_what_the_tool_records_now(name: str) -> None:
    recorded = captured(name)
    # What is made of a loaded parameter before it serves is the machine's choice, and no part of the load.
    now = replace(RECORDINGS[name].run("cpu"), repacked=recorded.repacked)
    assert now == replace(recorded, torch=torch.__version__)
    assert recorded.torch.split("+")[0] == torch.__version__.split("+")[0]


def test_the_readmes_tables_are_printed_from_the_recordings() -> None:
    script = load_implementation(ROOT / "scripts" / "record_captured.py")
    readme = (CAPTURED.parent / "README.md").read_text()
    assert readme.count("<!-- captured: ") == 2
    assert script.with_tables(readme) == readme
    assert script.with_tables(readme.replace("rows 2048:2560", "rows 2048:2561")) == readme
    assert script.PICTURE.read_text() == script.picture()


# --- real values ----------------------------------------------------------------------------------------------------------------


def test_a_sharded_checkpoint_is_traced_as_one_file_is(tmp_path: Path) -> None:
    """The same tensors in one file, and in two behind an index, beside a file that the index does not name."""
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    for directory in (whole, sharded):
        directory.mkdir()
    write_checkpoint(whole, TINY, implied_shapes(TINY))
    write_checkpoint(sharded, TINY, None)
    values = {name: torch.randn(shape) for name, shape in implied_shapes(TINY).items()}
    names = list(values)
    files = {"model-00001-of-00002.safetensors": names[:8], "model-00002-of-00002.safetensors": names[8:]}
    for file, held in files.items():
        save_file({name: values[name] for name in held}, sharded / file)
    save_file({"model.layers.9.mlp.up_proj.weight": torch.zeros(1)}, sharded / "consolidated.safetensors")
    index = {"weight_map": {name: file for file, held in files.items() for name in held}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))

    one, two = trace_load(whole, 2, [0, 1], "cpu"), trace_load(sharded, 2, [0, 1], "cpu")
    assert one.device == two.device == "cpu"
    assert {without_file(record) for record in one.records} == {without_file(record) for record in two.records}
    assert len(one.records) == 42
    for record in two.records:
        with (sharded / str(record.file)).open("rb") as file:
            file.seek(record.bytes[0])  # type: ignore[index]
            assert file.read(record.bytes[1] - record.bytes[0]) == values[record.tensor].numpy().tobytes()  # type: ignore[index]
    # From config.json alone the same copies are made.
    shapes = Recording("shapes", TINY, tp_size=2).run()
    assert shapes.device == "meta"
    assert {without_file(record) for record in shapes.records} == {without_file(record) for record in one.records}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_take_the_checkpoints_element_type(tmp_path: Path, dtype: torch.dtype) -> None:
    """The values are checked to the bit, so a parameter of another type would fail; norms stored wider are rounded alike."""
    values = {name: torch.randn(shape, dtype=dtype) for name, shape in implied_shapes(TINY).items()}
    values["model.norm.weight"] = torch.randn(64, dtype=torch.float32)
    write_checkpoint(tmp_path, TINY | {"torch_dtype": "float32"}, None)
    save_file(values, tmp_path / "model.safetensors")
    assert len(trace_load(tmp_path, device="cpu").records) == 21


def test_a_loader_that_changes_values_after_copying_them_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real class with a fault put in: it loads, then adds one to a single weight."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.llama import LlamaForCausalLM

    class Tampering(LlamaForCausalLM):  # type: ignore[misc]
        def load_weights(self, weights: Any) -> set[str]:
            loaded: set[str] = super().load_weights(weights)
            self.model.layers[1].mlp.down_proj.weight.data[5, 7:8].add_(1)
            return loaded

    monkeypatch.setitem(ModelRegistry.models, "LlamaForCausalLM", ModelRegistry.models["LlamaForCausalLM"])
    ModelRegistry.register_model("LlamaForCausalLM", Tampering)
    with pytest.raises(
        UserError, match=r"model\.layers\.1\.mlp\.down_proj\.weight does not hold model\.layers\.1\.mlp\.down_proj"
    ):
        RECORDINGS["tiny-tp2"].run("cpu")


def test_a_tied_head_that_is_stored_anyway_gets_a_parameter_of_its_own(tmp_path: Path) -> None:
    """vLLM looks into the files, unties the two, loads both, and only the engine ties them again if they are equal."""
    write_checkpoint(tmp_path, TINY | {"tie_word_embeddings": True}, implied_shapes(TINY))
    stored = trace_load(tmp_path, device="cpu")
    assert next(r for r in stored.records if r.tensor == "lm_head.weight").parameter == "lm_head.weight"
    absent = Recording("tied", TINY | {"tie_word_embeddings": True}).run()
    assert "lm_head.weight" not in absent.parameter_shapes


# --- refusals -------------------------------------------------------------------------------------------------------------------

Change = Callable[[dict[str, Shape]], None]


def refusal(tmp_path: Path, change: Change, config: Mapping[str, Any] = TINY) -> str:
    shapes = implied_shapes(TINY)
    change(shapes)
    write_checkpoint(tmp_path, config, shapes)
    with pytest.raises(UserError) as refused:
        trace_load(tmp_path, 2, [1], "cpu")
    return str(refused.value)


def test_vllms_own_message_is_passed_on(tmp_path: Path) -> None:
    k_proj = "model.layers.1.self_attn.k_proj.weight"
    assert refusal(tmp_path, lambda shapes: shapes.update({k_proj: (32, 64)})) == (
        f"vLLM {vllm.__version__} refused the load as rank 1 of 2: RuntimeError: start (32) + length (32) exceeds dimension size "
        f"(32); the last tensor it read was {k_proj} (32, 64), for model.layers.1.self_attn.qkv_proj.weight (128, 64)"
    )


def test_an_unmatched_tensor_is_named_without_the_list_of_all_parameters(tmp_path: Path) -> None:
    said = refusal(tmp_path, lambda shapes: shapes.update({"model.layers.1.mlp.fc1.weight": (4, 4)}))
    assert "ValueError: There is no module or parameter named 'layers.1.mlp.fc1' in LlamaModel" in said
    assert "available parameters" not in said


@pytest.mark.parametrize(
    ("tensor", "shape", "parameter"),
    [
        ("model.layers.1.self_attn.q_proj.weight", (128, 48), "model.layers.1.self_attn.qkv_proj.weight (128, 64)"),
        ("model.embed_tokens.weight", (200, 64), "model.embed_tokens.weight (96, 64)"),
    ],
)
def test_where_vllm_says_nothing_the_tensor_and_both_shapes_are_named(
    tmp_path: Path, tensor: str, shape: Shape, parameter: str
) -> None:
    said = refusal(tmp_path, lambda shapes: shapes.update({tensor: shape}))
    assert f"AssertionError without a message; the last tensor it read was {tensor} {shape}, for {parameter}" in said


def test_a_missing_norm_is_refused_as_the_engine_refuses_it(tmp_path: Path) -> None:
    said = refusal(tmp_path, lambda shapes: shapes.pop("model.norm.weight"))
    assert "ValueError: Following weights were not initialized from checkpoint: {'model.norm.weight'}" in said
    assert said.endswith("check that no file is missing and load_weights returns every loaded name")


def test_a_config_that_vllm_refuses(tmp_path: Path) -> None:
    said = refusal(tmp_path, lambda shapes: None, TINY | {"hidden_act": "relu"})
    assert "refused the config" in said
    assert "Only silu is supported" in said
    said = refusal(tmp_path, lambda shapes: None, TINY | {"quantization_config": {"quant_method": "zip"}})
    assert "ValidationError: Value error, Unknown quantization method: zip. Must be one of" in said
    assert "errors.pydantic.dev" not in said


def test_shapes_cannot_be_put_on_a_device() -> None:
    with pytest.raises(UserError, match="llama-3-8b has no weights to put on cpu"):
        trace_load("llama-3-8b", device="cpu")


# --- side effects, and real ranks -----------------------------------------------------------------------------------------------


def test_a_trace_prints_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """In a process of its own, with an empty home and an empty folder for temporary files, twice in a row."""
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    code = (
        "import os, logging, torch.distributed\n"
        "from labkit.load.trace import trace_load\n"
        "from scripts.recordings import RECORDINGS\n"
        "RECORDINGS['tiny-tp2'].run('cpu')\n"
        "assert not torch.distributed.is_initialized()\n"
        "trace_load('llama-3-8b', 2)\n"
        "assert logging.getLogger('vllm').level == logging.NOTSET\n"
    )
    environment = os.environ | {"HOME": str(home), "TMPDIR": str(scratch), "XDG_CACHE_HOME": str(home), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    # torch makes the empty folder for what it might compile while it is imported.
    assert [path for path in (*home.rglob("*"), *scratch.rglob("*")) if not path.name.startswith("torchinductor")] == []


def test_a_load_that_was_refused_does_not_spoil_the_next(tmp_path: Path) -> None:
    refusal(tmp_path, lambda shapes: shapes.pop("model.norm.weight"))
    assert len(trace_load("smollm2").records) == 272


TWO_RANKS = """
import sys, torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import get_tp_group, init_distributed_environment, initialize_model_parallel
from labkit.load.trace import real_load, real_model
from labkit.checkpoints.known_models import resolve
from pathlib import Path

with set_current_vllm_config(VllmConfig()):
    init_distributed_environment(backend="gloo")
    initialize_model_parallel(2, 1)
rank = get_tp_group().rank_in_group
model = resolve(sys.argv[1])
cpu = torch.device("cpu")
llama, _ = real_model.build(model, torch.float32, cpu)
copies = real_load.record_load(llama, model, torch.float32, cpu, "a real rank").copies
lines = [f"{c.tensor} {c.parameter} {c.destination} {c.source}\\n" for c in copies]
Path(sys.argv[1], f"rank{rank}.txt").write_text("".join(lines))
"""


def test_one_process_as_two_ranks_makes_the_copies_of_two_real_ranks(tmp_path: Path) -> None:
    """Two gloo processes under torchrun, tensor parallel for real, on the same checkpoint."""
    write_checkpoint(tmp_path, TINY, implied_shapes(TINY))
    (tmp_path / "two_ranks.py").write_text(TWO_RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
    # vLLM's launcher would name the ranks' shared memory (VLLM_DIST_IDENT); torchrun does not.
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_DIST_IDENT": tmp_path.name}
    ended = subprocess.run(
        [*command, tmp_path / "two_ranks.py", tmp_path], env=os.environ | settings, timeout=200, capture_output=True, check=False
    )
    assert ended.returncode == 0, ended.stderr.decode()[-3000:]

    played = trace_load(tmp_path, 2, [0, 1], "cpu")
    for rank in (0, 1):
        copies = [f"{r.tensor} {r.parameter} {r.destination} {r.source}" for r in played.records if r.tp_rank == rank]
        assert copies == (tmp_path / f"rank{rank}.txt").read_text().splitlines()


@pytest.mark.gpu
def test_parameters_on_cuda_hold_what_the_records_say() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch finds none here")
    on_cuda = RECORDINGS["tiny-tp2"].run("cuda")
    assert on_cuda.device.startswith("cuda:0 (")
    assert on_cuda.records == captured("tiny-tp2").records

"""``./lab explain``: reproduces load errors reported to vLLM with tiny shapes and the real vLLM, and fixes them.

The numbers are those of the threads in vllm-project/vllm, unless another repository is named.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from forked import forked
from hypothesis import given
from hypothesis import strategies as st
from recordings import TINY, write_checkpoint
from typer.testing import CliRunner

from labkit.checkpoints.headers import Shape
from labkit.checkpoints.known_models import implied_shapes, resolve
from labkit.cli import main as cli
from labkit.load.explain import find_error, find_fix
from labkit.load.explain.fix import fix_lines
from labkit.load.explain.mapper_rows import CONVENTIONS, propose_rows
from labkit.load.library_output import silence_logs
from labkit.system.errors import UserError
from labkit.system.labs import load_implementation

ROOT = Path(__file__).parents[3]
LLAMA = implied_shapes(TINY)

# --- errors in a log ------------------------------------------------------------------------------------------------------------

MESSAGES = {
    "ValueError: There is no module or parameter named 'lm_head' in Gemma2ForCausalLM": "unmatched name",
    "KeyError: 'layers.0.self_attn.qkv_proj.weight'": "key",
    "KeyError: 'blocks.0.attn.qkv.weight'": "key",
    "ValueError: Following weights were not initialized from checkpoint: {'model.norm.weight'}": "not initialized",
    "WARNING Some weights are not initialized from checkpoints: {'lm_head.weight'}": "not initialized",
    "AssertionError: Attempted to load weight (torch.Size([32])) into parameter (torch.Size([64]))": "shape",
    "RuntimeError: start (0) + length (64) exceeds dimension size (32).": "too short",
    "AssertionError": "empty assertion",
    "ValueError: Model architectures ['LamaForCausalLM'] are not supported for now.": "unsupported",
    "FileNotFoundError: Weight files referenced in index but missing: {'model-00002-of-00002.safetensors'}": "file missing",
    "safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata": "broken file",
    "ValueError: Attempted to load nested weight 'lm_head.weight.data' into a single parameter 'lm_head.weight'": "nested",
    "AttributeError: Layer model.layers.0.mlp.experts has no parameter 'w2_scale' for checkpoint weight 'x.y'": "no parameter",
}


@pytest.mark.parametrize("message", MESSAGES)
def test_an_error_is_found_in_a_log(message: str) -> None:
    """Between the frames of a traceback and what the engine says after it, with the logger's colours and its own beginning."""
    log = (
        "\x1b[0;36m(EngineCore pid=7)\x1b[0;0m ERROR 11-24 10:00:00 [core.py:1] Traceback (most recent call last):\n"
        f"\x1b[0;36m(EngineCore pid=7)\x1b[0;0m ERROR 11-24 10:00:00 [core.py:1] {message}\n"
        "RuntimeError: Engine core initialization failed. See root cause above.\n"
    )
    said = find_error(log)
    assert (said.kind, said.line) == (MESSAGES[message], message)
    assert said.meaning.endswith(".")


def test_names_and_numbers_are_in_the_explanation() -> None:
    assert "begins with lm_head, and Gemma2ForCausalLM has no module" in find_error(next(iter(MESSAGES))).meaning
    narrow = find_error("start (0) + length (64) exceeds dimension size (32)")
    assert "reads 64 rows from row 0 of a tensor that has 32" in narrow.meaning


def test_the_list_of_all_parameters_is_left_out() -> None:
    shown = "ValueError: There is no module or parameter named 'a' in B."
    assert find_error(f"{shown} The available parameters belonging to B are: {{'c'}}").line == shown


@given(st.text())
def test_a_log_without_a_known_error_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="no known load error of vLLM"):
        find_error(text.replace("Error", ""))


# --- rows, by hand --------------------------------------------------------------------------------------------------------------


def test_heads_are_matched_with_heads_and_tails_with_tails_of_the_same_shape() -> None:
    """q and o have both the room; only the convention tells wq from wo, and the columns tell w2 from w1."""
    unmatched = {
        "layers.3.attention.wq.weight": (8, 4),
        "layers.3.feed_forward.w2.weight": (4, 6),
        "layers.3.feed_forward.w1.weight": (6, 4),
    }
    fillers: dict[str, Shape] = {
        "model.layers.3.self_attn.q_proj.weight": (16, 4),
        "model.layers.3.mlp.down_proj.weight": (4, 6),
        "model.layers.3.mlp.gate_proj.weight": (12, 4),
        "model.layers.3.mlp.up_proj.weight": (12, 4),
    }
    (rows, *_) = propose_rows(unmatched, fillers, [])
    assert rows.substr == {
        ".feed_forward.w1.": ".mlp.gate_proj.",
        ".feed_forward.w2.": ".mlp.down_proj.",
        ".attention.wq.": ".self_attn.q_proj.",
    }
    assert rows.prefix == {"layers.": "model.layers."}
    assert not rows.drops


def test_no_row_renames_a_loaded_tensor() -> None:
    """A rule for every name that begins with model. would empty the model."""
    (rows,) = propose_rows({"model.extra.weight": (2, 2)}, {}, ["model.norm.weight", "model.layers.0.mlp.up_proj.weight"])
    assert rows.arguments() == {"orig_to_new_prefix": {"model.extra.weight": None}}
    (rows,) = propose_rows({"model.layers.0.mlp.fc1.weight": (2, 2)}, {}, ["model.layers.0.mlp.up_proj.weight"])
    assert rows.arguments() == {"orig_to_new_substr": {".mlp.fc1.": None}}


# --- reported errors ------------------------------------------------------------------------------------------------------------

Tensors = Mapping[str, Shape]


def consolidated(shapes: Tensors) -> dict[str, Shape]:
    """Mistral's own file: every name by the other convention."""
    told = {new: old for old, new in CONVENTIONS.items() if new != "norm" and old != "wte"}
    names = {}
    for name, shape in shapes.items():
        other = name.removeprefix("model.")
        for new, old in told.items():
            other = other.replace(new, old)
        names[other] = shape
    return names


def fused_on_disk(shapes: Tensors) -> dict[str, Shape]:
    names: dict[str, Shape] = {}
    for name, shape in shapes.items():
        other = name.replace("model.layers", "blocks").replace("self_attn", "attn")
        if "q_proj" in name:
            rows = shape[0] + 2 * shapes[name.replace("q_proj", "k_proj")][0]
            names[other.replace("q_proj", "qkv")] = (rows, shape[1])
        elif "k_proj" not in name and "v_proj" not in name:
            names[other] = shape
    return names


Case = tuple[str, Callable[[Tensors], Tensors], str, dict[str, dict[str, str | None]] | None]

CASES: dict[str, Case] = {
    "14212, a tied head saved to disk": (
        "Gemma2ForCausalLM",
        lambda shapes: {**shapes, "lm_head.weight": (131, 128)},
        "There is no module or parameter named 'lm_head' in Gemma2ForCausalLM",
        {"orig_to_new_prefix": {"lm_head.": None}},
    ),
    "unslothai/unsloth 2274, a multimodal prefix": (
        "Gemma3ForCausalLM",
        lambda shapes: {f"language_model.{name}": shape for name, shape in shapes.items()},
        "There is no module or parameter named 'language_model' in Gemma3ForCausalLM",
        {"orig_to_new_prefix": {"language_model.": ""}},
    ),
    "19139, names of the tool that saved it": (
        "Gemma3ForCausalLM",
        lambda shapes: {f"module.{name}": shape for name, shape in shapes.items()},
        "There is no module or parameter named 'module' in Gemma3ForCausalLM",
        {"orig_to_new_prefix": {"module.": ""}},
    ),
    "21176, the checkpoint of a model that hears": (
        "LlamaForCausalLM",
        lambda shapes: {**shapes, "mm_whisper_embeddings.tok_embeddings.weight": (131, 64)},
        "There is no module or parameter named 'mm_whisper_embeddings' in LlamaForCausalLM",
        {"orig_to_new_prefix": {"mm_whisper_embeddings.": None}},
    ),
    "28517, caught by the wrapper": (
        "Starcoder2ForCausalLM",
        lambda shapes: {**shapes, "mlp_AR.linear_1.weight": (8, 8)},
        "There is no module or parameter named 'mlp_AR' in TransformersForCausalLM",
        {"orig_to_new_prefix": {"mlp_AR.": None}},
    ),
    "31108, another prefix than the class assumes": (
        "MambaForCausalLM",
        lambda shapes: {name.replace("backbone.", "model."): shape for name, shape in shapes.items()},
        "There is no module or parameter named 'model' in MambaForCausalLM",
        {"orig_to_new_prefix": {"model.": "backbone."}},
    ),
    "vllm-project/llm-compressor 959, an unmatched scale": (
        "LlamaForCausalLM",
        lambda shapes: {**shapes, "model.layers.0.mlp.down_proj.weight_scale": (1,)},
        "There is no module or parameter named 'layers.0.mlp.down_proj.weight_scale' in LlamaModel",
        {"orig_to_new_suffix": {".weight_scale": None}},
    ),
    "4989, the consolidated file, into a class that has no rows for it": (
        "LlamaForCausalLM",
        consolidated,
        "There is no module or parameter named 'tok_embeddings' in LlamaForCausalLM",
        {
            "orig_to_new_substr": {f".{old}.": f".{new}." for old, new in CONVENTIONS.items() if "." in old or "_norm" in old},
            "orig_to_new_prefix": {
                "layers.": "model.layers.",
                "norm.": "model.norm.",
                "output.": "lm_head.",
                "tok_embeddings.": "model.embed_tokens.",
            },
        },
    ),
    "27138, fused on disk": (
        "LlamaForCausalLM",
        fused_on_disk,
        "There is no module or parameter named 'blocks' in LlamaForCausalLM",
        {
            "orig_to_new_substr": {".attn.qkv.": ".self_attn.qkv_proj.", ".attn.": ".self_attn."},
            "orig_to_new_prefix": {"blocks.": "model.layers."},
        },
    ),
    "15536, a norm missing on disk": (
        "LlamaForCausalLM",
        lambda shapes: {name: shape for name, shape in shapes.items() if name != "model.norm.weight"},
        "Following weights were not initialized from checkpoint: {'model.norm.weight'}",
        None,
    ),
}
"""The thread -> the architecture, what is done to its tensors, what vLLM says, and the rows that fix it; None where none can."""


def headers(directory: Path, architecture: str, change: Callable[[Tensors], Tensors]) -> Path:
    """A file of headers beside config.json: no weights."""
    if architecture == "LlamaForCausalLM":
        write_checkpoint(directory, TINY, None)
        shapes = LLAMA
    else:
        script = load_implementation(ROOT / "scripts" / "record_verified.py")
        script.make(architecture, directory)
        shapes = dict(resolve(directory).shapes)
        (directory / "model.safetensors").unlink()
    file = directory / "headers.json"
    file.write_text(json.dumps({name: {"dtype": "BF16", "shape": shape} for name, shape in change(shapes).items()}))
    return file


@pytest.fixture(scope="module")
def warm() -> None:
    pytest.importorskip("vllm", reason="needs the real vLLM, which is not installed in this environment")
    pytest.importorskip("transformers", reason="needs transformers, which is not installed in this environment")
    with silence_logs():
        from labkit.load.explain import single_loads  # noqa: F401


def explained(file: Path) -> dict[str, Any]:
    def run() -> dict[str, Any]:
        found = find_fix(resolve(file))
        rows = found.fix.rows.arguments() if found.fix else None
        return {"faults": found.unchanged.remaining, "rows": rows, "text": "\n".join(fix_lines(found))}

    return forked(run)  # type: ignore[no-any-return]


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("thread", CASES)
def test_a_reported_error_is_reproduced_and_fixed(thread: str, tmp_path: Path) -> None:
    architecture, change, said, rows = CASES[thread]
    found = explained(headers(tmp_path, architecture, change))
    assert said in found["faults"][0]
    assert find_error(found["faults"][0]).kind in ("unmatched name", "not initialized")
    assert found["rows"] == rows
    assert ("WHOLE" in found["text"]) == (rows is not None)
    assert ("None leaves a tensor out" in found["text"]) == ("None" in str(list((rows or {}).values())))


@pytest.mark.usefixtures("warm")
def test_a_shape_that_does_not_fit_is_named_with_its_shape(tmp_path: Path) -> None:
    """vLLM's own message is empty here."""
    file = headers(tmp_path, "LlamaForCausalLM", lambda shapes: {**shapes, "model.layers.1.self_attn.q_proj.weight": (128, 48)})
    found = explained(file)
    assert "AssertionError without a message" in found["faults"][0]
    assert "    model.layers.1.self_attn.q_proj.weight (128, 48): AssertionError without a message" in found["text"]
    assert "no mapping row fixes this" in found["text"]


@pytest.mark.usefixtures("warm")
def test_a_checkpoint_without_a_fault_needs_no_fix(tmp_path: Path) -> None:
    found = explained(headers(tmp_path, "LlamaForCausalLM", lambda shapes: shapes))
    assert found["rows"] == {}
    assert "loads whole without a fix" in found["text"]


@pytest.mark.usefixtures("warm")
def test_ignored_tensors_are_named(tmp_path: Path) -> None:
    """40358: biases of experts; this vLLM skips every bias that it has no place for, and says nothing."""
    bias = "model.layers.0.mlp.experts.0.up_proj.bias"
    found = explained(headers(tmp_path, "Qwen3MoeForCausalLM", lambda shapes: {**shapes, bias: (64,)}))
    assert f"1 ignored without a message: {bias}" in found["text"]
    assert found["rows"] is None


# --- the command line -----------------------------------------------------------------------------------------------------------


def test_without_a_model_the_error_is_explained(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("KeyError: 'blocks.0.attn.qkv.weight'\n")
    ended = CliRunner().invoke(cli.app, ["explain", str(log)])
    assert ended.exit_code == 0
    piped = CliRunner().invoke(cli.app, ["explain"], input=log.read_text())
    assert piped.exit_code == 0


def test_an_empty_log_and_broken_headers_are_sentences(tmp_path: Path) -> None:
    assert isinstance(CliRunner().invoke(cli.app, ["explain"], input="").exception, UserError)
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    for text in ("[]", "{}", '{"a": 1}', "no JSON"):
        (tmp_path / "headers.json").write_text(text)
        with pytest.raises(Exception, match=r"headers\.json (holds no headers|names no tensor)"):
            resolve(tmp_path / "headers.json")

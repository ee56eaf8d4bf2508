"""Fingerprints: every known model by its shapes and published size, what differs in words, and what shapes cannot tell."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import astuple
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from labkit.checkpoints.fingerprint import Sizes, cannot_tell, fingerprint, report_lines
from labkit.checkpoints.headers import Shape
from labkit.checkpoints.known_models import KNOWN, implied_shapes, known_names
from labkit.system.console import console, print_lines
from labkit.system.errors import UserError
from labkit.system.labs import find_lab, load_implementation

ROOT = Path(__file__).parents[3]

PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "tinyllama-1.1b": 1_100_048_384,
    "smollm2": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
}
"""Numbers of parameters as the hub shows them, a tied head counted once: what the shapes have to come to."""

TWINS = ({"llama-3-8b", "llama-3.1-8b"}, {"llama-3-70b", "llama-3.1-70b"})


def config_of(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((KNOWN / name / "config.json").read_text())
    return config


def write_headers(folder: Path, shapes: Mapping[str, Shape], files: int = 1, dtype: str = "BF16") -> Path:
    """Files of holes: headers with these shapes, and as many zero bytes as they promise, which take no disk."""
    folder.mkdir(exist_ok=True)
    names = list(shapes)
    for number in range(files):
        offset, header = 0, {}
        for name in names[number::files]:
            end = offset + 2 * prod(shapes[name])
            header[name] = {"dtype": dtype, "shape": shapes[name], "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header).encode()
        with (folder / f"model-{number + 1:05}-of-{files:05}.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + offset)
    return folder


def test_every_known_model_has_a_published_size() -> None:
    assert sorted(PUBLISHED) == known_names()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_known_model_is_known_by_its_shapes(name: str, tmp_path: Path) -> None:
    shapes = implied_shapes(config_of(name))
    assert sum(map(prod, shapes.values())) == PUBLISHED[name]
    found = fingerprint(write_headers(tmp_path / "m", shapes, files=3))
    assert set(found.names) == next((twins for twins in TWINS if name in twins), {name})
    assert (found.nearest, found.differences, found.disagreements) == ("", (), ())


def test_twins_are_told_apart_by_nothing_that_is_stored(tmp_path: Path) -> None:
    found = fingerprint(write_headers(tmp_path / "m", implied_shapes(config_of("llama-3-8b"))))
    assert "which of the 2: they differ in rope_scaling, max_position_embeddings" in list(cannot_tell(found))


def changed(name: str, **changes: Any) -> dict[str, Shape]:
    return implied_shapes(config_of(name) | changes)


@pytest.mark.parametrize(
    ("shapes", "nearest", "differences"),
    [
        (changed("mistral-7b-v0.1", vocab_size=32064), "mistral-7b-v0.1", ["vocab_size 32064 instead of 32000"]),
        (changed("llama-2-7b", tie_word_embeddings=True), "llama-2-7b", ["head_stored no instead of yes"]),
        (changed("llama-2-7b", num_hidden_layers=31), "llama-2-7b", ["num_hidden_layers 31 instead of 32"]),
        (
            changed("qwen3-8b") | {"model.layers.1.self_attn.k_proj.weight": (4096, 4096)},
            "qwen3-8b",
            ["(4096, 4096) instead of (1024, 4096) in layer 1: self_attn.k_proj.weight"],
        ),
        (
            {name: shape for name, shape in changed("qwen2.5-7b").items() if "layers.3." not in name},
            "qwen2.5-7b",
            ["missing in layer 3: input_layernorm.weight, mlp.down_proj.weight, mlp.gate_proj.weight and 9 more"],
        ),
        (changed("tinyllama-1.1b") | {"model.extra": (1,)}, "tinyllama-1.1b", ["unexpected: model.extra"]),
    ],
)
def test_the_nearest_is_named_and_what_differs(
    shapes: dict[str, Shape], nearest: str, differences: list[str], tmp_path: Path
) -> None:
    found = fingerprint(write_headers(tmp_path / "m", shapes))
    assert (found.names, found.nearest, list(found.differences)) == ((), nearest, differences)


def test_a_tied_model_that_was_saved_with_a_copy_of_its_head_is_still_known(tmp_path: Path) -> None:
    """As Qwen3-0.6B is on the hub, whose files hold 751,632,384 numbers where the model has 596,049,920."""
    shapes = changed("qwen3-0.6b", tie_word_embeddings=False)
    assert sum(map(prod, shapes.values())) == 751_632_384
    found = fingerprint(write_headers(tmp_path / "m", shapes))
    assert found.names == ("qwen3-0.6b",)
    assert "whether the lm_head is a copy of the embedding" in list(cannot_tell(found))


def test_what_a_terminal_would_take_for_a_command_is_shown_and_not_sent(tmp_path: Path) -> None:
    text = printed(write_headers(tmp_path / "m", {"\x1b[2Jtransformer.h": (2, 2)}))
    assert "\x1b" not in text
    assert "\\x1b[2Jtransformer.h" in text


def test_files_and_their_config_that_disagree(tmp_path: Path) -> None:
    folder = write_headers(tmp_path / "m", changed("smollm2", num_hidden_layers=29))
    (folder / "config.json").write_text((KNOWN / "smollm2" / "config.json").read_text())
    (said,) = fingerprint(folder).disagreements
    assert said == "missing in layer 29: input_layernorm.weight, mlp.down_proj.weight, mlp.gate_proj.weight and 6 more"
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    assert "cannot be read as the config of a LlamaForCausalLM (KeyError: 'hidden_size')" in fingerprint(folder).disagreements[0]
    (folder / "config.json").write_text((KNOWN / "smollm2" / "config.json").read_text())
    tied_copy = changed("smollm2") | {"lm_head.weight": (49152, 576), "model.layers.0.self_attn.rotary_emb.inv_freq": (32,)}
    assert fingerprint(write_headers(folder, tied_copy)).disagreements == ()


@pytest.mark.parametrize("name", ["llama-3-8b", "smollm2", "llama-3.2-1b", "qwen2.5-7b"])
def test_the_heads_are_split_as_lab_02_splits_them(name: str) -> None:
    shapes = implied_shapes(config_of(name))
    theirs = load_implementation(find_lab("02").implementation("solution")).fingerprint(shapes)
    ours = Sizes.of(shapes)
    assert ours
    assert ours.splits() == [astuple(split) for split in theirs.splits]


def test_norms_of_q_and_k_show_the_head_size() -> None:
    sizes = Sizes.of(implied_shapes(config_of("qwen3-4b")))
    assert sizes
    assert sizes.splits() == [(32, 8, 128)]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["layers.0.attention.wq.weight", "layers.0.attention.wk.weight"], "Mistral's and Meta's own files"),
        (["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"], "a LoRA adapter"),
        (["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.qweight"], "quantized weights"),
        (["model.embed_tokens.weight", "model.layers.0.self_attn.qkv_proj.weight"], "stored as one tensor"),
        (["model.layers.0.block_sparse_moe.experts.0.w1.weight"], "a mixture of experts"),
        (["transformer.h.0.attn.c_attn.weight", "transformer.wte.weight"], "names of another family"),
        (["language_model.model.layers.0.self_attn.q_proj.weight"], "a text model under a prefix"),
    ],
)
def test_what_is_no_plain_llama_is_described(names: list[str], said: str, tmp_path: Path) -> None:
    folder = write_headers(tmp_path / "m", dict.fromkeys(names, (8, 4)))
    text = printed(folder)
    assert "No plain checkpoint of the Llama family" in text
    assert f"{said}" in text
    assert f"{'.'.join(names[0].split('.')[:2])} (" in text
    assert "Its largest tensors:" in text


def printed(path: Path) -> str:
    with console.capture() as captured:
        print_lines(*report_lines(fingerprint(path), path))
    return captured.get()


def test_the_answer_fits_80_columns_and_says_what_it_cannot_know(tmp_path: Path) -> None:
    text = printed(write_headers(tmp_path / "m", implied_shapes(config_of("llama-3-8b")), files=4))
    first, *lines = text.splitlines()
    assert first.endswith("291 tensors (291 BF16) in 4 files, 16.06 GB")
    assert max(map(len, lines)) <= 80
    assert "Every name and shape is that of llama-3-8b or llama-3.1-8b." in lines
    assert "  the heads: 32 + 8 of 128, 16 + 4 of 256, 64 + 16 of 64, 10 ways in all" in lines
    for words in ("rope", "epsilon", "k and v swapped", "permuted", "lm_head is a copy"):
        assert words in text.split("Shapes cannot tell:")[1]


def test_a_single_file_and_the_command(tmp_path: Path) -> None:
    """As a command, in a pipe; it imports neither torch nor numpy."""
    file = write_headers(tmp_path / "m", implied_shapes(config_of("smollm2"))) / "model-00001-of-00001.safetensors"
    code = (
        "import sys; sys.argv = ['lab', 'fingerprint', sys.argv[1]]\n"
        "from labkit.cli.main import main\n"
        "try: main()\n"
        "finally: print('heavy:', {'torch', 'numpy', 'vllm'} & set(sys.modules))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, file], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Every name and shape is that of smollm2." in ended.stdout
    assert ended.stdout.endswith("heavy: set()\n")


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*nowhere; give a directory with safetensors"):
        fingerprint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="there is no safetensors file in"):
        fingerprint(tmp_path)


def test_what_nobody_made_by_accident_ends_in_words(tmp_path: Path) -> None:
    names = [
        "model.embed_tokens",
        *(f"model.layers.0.{name}" for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj")),
    ]
    weights = {f"{name}.weight": np.zeros((8, 8), np.float32) for name in names}
    empty = weights | {"model.layers.0.self_attn.k_proj.weight": np.zeros((0, 8), np.float32)}
    save_file(empty, tmp_path / "model.safetensors")
    assert fingerprint(tmp_path).sizes is None
    save_file(weights | {f"model.layers.{'9' * 5000}.a": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 10**12}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = fingerprint(tmp_path)
    assert found.sizes is not None
    assert found.sizes.num_hidden_layers == 1
    assert found.disagreements == ("config.json says 1,000,000,000,000 layers, more than any model has",)
    with pytest.raises(UserError, match="File name too long"):
        fingerprint(tmp_path / ("a" * 300))

"""``./lab break``: each fault changes what it says and nothing else, and the source is never touched."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recordings import TINY, write_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from labkit.checkpoints.faults import FAULTS, inject_fault
from labkit.checkpoints.headers import read_checkpoint
from labkit.checkpoints.known_models import implied_shapes
from labkit.system.errors import UserError

Lab = Callable[..., tuple[int, str]]
QWEN2 = TINY | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True}
"""Tied, with a bias on q_proj, k_proj and v_proj."""
LAST = "model.layers.1"
ATTENTION, MLP = f"{LAST}.self_attn", f"{LAST}.mlp"

MAY_TOUCH = {
    r"k_proj": "missing-k short-k in-two-files",
    r"[qkv]_proj": "missing-qkv",
    r"o_proj": "missing-o wide-o",
    r"gate_proj": "missing-gate tall-gate",
    r"model\.embed_tokens": "missing-embed small-embed",
    r"lm_head": "missing-lm-head large-lm-head stored-tied-head",
    r"\.input_layernorm": "missing-norm short-norm",
    r".": "missing-layer extra-layer no-prefix",
    r"[kv]_proj": "mha-into-gqa swapped-kv",
    r"down_proj": "wide-down float16-down",
    r"q_proj\.weight": "narrow-q wide-q",
    r"(gate|up)_proj": "swapped-gate-up",
    r"[qk]_proj": "permuted-qk",
    r"qkv_proj": "fused-beside-parts",
    r"q_proj\.bias": "unread-bias",
    r"rotary_emb\.inv_freq": "inv-freq",
    r"fc1": "unmapped-name",
    r"$^": "missing-file cut-short",
}
"""What of a checkpoint a fault may touch, and which may: in the last layer, unless it stands outside the layers."""

NOT_OF: dict[str, set[str]] = {"qwen2": {"missing-lm-head", "large-lm-head", "unread-bias"}, "llama": set()}
"""What a tied model with biases cannot have."""

BY_VALUE = ("swapped-kv", "swapped-gate-up", "permuted-qk")


def write(folder: Path, config: dict[str, Any], dtype: torch.dtype = torch.float32) -> Path:
    """A checkpoint with values drawn small enough to be a model's, one more file, a README and a pickle beside it."""
    folder.mkdir()
    write_checkpoint(folder, config, implied_shapes(config))
    tensors = {name: (tensor / 10).to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "README.md").write_text("the source's own")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    return folder


@pytest.fixture(params=["llama", "qwen2"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(tmp_path / "source", TINY if request.param == "llama" else QWEN2)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write(tmp_path / "source", TINY)


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file with its digest and the time it was written."""
    files = sorted(folder.rglob("*"))
    return {path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}


def differing(one: dict[str, Tensor], two: dict[str, Tensor]) -> set[str]:
    def same(name: str) -> bool:
        if name not in one or name not in two:
            return False
        a, b = one[name], two[name]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)

    return {name for name in one.keys() | two.keys() if not same(name)}


def in_reach(name: str, config: dict[str, Any]) -> bool:
    """Whether a tensor belongs to the last layer, to one more, or to no layer at all."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    return not layer or int(layer[1]) >= config["num_hidden_layers"] - 1


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_changes_what_it_says_and_nothing_else(name: str, source: Path, tmp_path: Path) -> None:
    before, config = contents(source), json.loads((source / "config.json").read_text())
    if name in NOT_OF[config["model_type"]]:
        with pytest.raises(UserError, match=f"^{name} cannot be made of this checkpoint: "):
            inject_fault(source, name, tmp_path / "faulty")
        assert [path.name for path in tmp_path.iterdir()] == ["source"]
        return
    inject_fault(source, name, tmp_path / "faulty")
    assert contents(source) == before, "the source is never changed"
    faulty = tmp_path / "faulty"
    assert {path.name for path in faulty.iterdir()} >= {"config.json", "tokenizer_config.json", "README.md"}
    assert not list(faulty.glob("*.bin")), "the pickle holds the weights as they were"
    readme = (faulty / "README.md").read_text()
    assert f"--fault {name}" in readme
    assert str(source) in readme

    changed = json.loads((faulty / "config.json").read_text())
    expected = config | ({"tie_word_embeddings": True} if name == "stored-tied-head" else {})
    assert changed == expected
    if name == "cut-short":
        with pytest.raises(UserError, match="cut off"):
            read_checkpoint(faulty)
        return
    for file in faulty.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata()["fault"] == f"{name}: {FAULTS[name].title}"
            assert opened.metadata()["made from"] == str(source)
    old, new = tensors_of(source), tensors_of(faulty)
    touched = differing(old, new)
    (reach,) = [pattern for pattern, names in MAY_TOUCH.items() if name in names.split()]
    assert all(re.search(reach, each) for each in touched)
    assert name == "no-prefix" or all(in_reach(each, config) for each in touched)
    unchanged_tensors = {"missing-file", "stored-tied-head"} if config["model_type"] == "llama" else {"missing-file"}
    assert bool(touched) == (name not in unchanged_tensors)
    if name in BY_VALUE:
        assert {key: value.shape for key, value in old.items()} == {key: value.shape for key, value in new.items()}


def broken(source: Path, name: str, to: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors before and after."""
    inject_fault(source, name, to)
    return tensors_of(source), tensors_of(to)


def test_permuted_rows_go_where_llama_cpp_has_them(source: Path, tmp_path: Path) -> None:
    """Row i of a head's first half becomes row 2i, row i of its second half row 2i + 1: by hand, with heads of 32 rows."""
    old, new = broken(source, "permuted-qk", tmp_path / "faulty")
    names = [f"{ATTENTION}.{each}_proj.weight" for each in "qk"] + [
        name for name in old if re.search(r"1.*[qk]_proj\.bias", name)
    ]
    for name in names:
        for row in range(old[name].shape[0]):
            head, half, i = row // 32, row % 32 // 16, row % 16
            assert torch.equal(new[name][head * 32 + 2 * i + half], old[name][row])


def test_swaps_take_the_biases_along_and_twice_is_none(source: Path, tmp_path: Path) -> None:
    for name in ("swapped-kv", "swapped-gate-up"):
        old, _ = broken(source, name, tmp_path / name)
        _, again = broken(tmp_path / name, name, tmp_path / f"{name}-again")
        assert not differing(old, again)
    old, new = tensors_of(source), tensors_of(tmp_path / "swapped-kv")
    for kind in ("weight", "bias"):
        if f"{ATTENTION}.k_proj.{kind}" in old:
            assert torch.equal(new[f"{ATTENTION}.k_proj.{kind}"], old[f"{ATTENTION}.v_proj.{kind}"])


def test_mha_repeats_a_kv_head_for_every_query_head(source: Path, tmp_path: Path) -> None:
    """4 query heads on 2 kv heads of 32 rows: heads 0, 0, 1, 1."""
    old, new = broken(source, "mha-into-gqa", tmp_path / "faulty")
    for name in [f"{ATTENTION}.k_proj.weight", f"{ATTENTION}.v_proj.weight"]:
        one, two = old[name][:32], old[name][32:]
        assert torch.equal(new[name], torch.cat([one, one, two, two]))


def test_sizes_are_a_quarter_off_and_made_of_what_was_there(llama: Path, tmp_path: Path) -> None:
    shapes = {
        "wide-o": (f"{ATTENTION}.o_proj.weight", (64, 160)),
        "wide-down": (f"{MLP}.down_proj.weight", (64, 120)),
        "tall-gate": (f"{MLP}.gate_proj.weight", (120, 64)),
        "short-k": (f"{ATTENTION}.k_proj.weight", (32, 64)),
        "narrow-q": (f"{ATTENTION}.q_proj.weight", (128, 48)),
        "wide-q": (f"{ATTENTION}.q_proj.weight", (128, 80)),
        "small-embed": ("model.embed_tokens.weight", (98, 64)),
        "large-lm-head": ("lm_head.weight", (163, 64)),
        "short-norm": (f"{LAST}.input_layernorm.weight", (32,)),
    }
    for fault, (name, shape) in shapes.items():
        old, new = broken(llama, fault, tmp_path / fault)
        assert tuple(new[name].shape) == shape
        common = tuple(slice(min(a, b)) for a, b in zip(shape, old[name].shape, strict=True))
        assert torch.equal(new[name][common], old[name][common])


def test_inv_freq_is_what_rotary_embedding_computes(llama: Path, tmp_path: Path) -> None:
    _, new = broken(llama, "inv-freq", tmp_path / "faulty")
    base = TINY["rope_theta"]
    held = new[f"{ATTENTION}.rotary_emb.inv_freq"].tolist()
    assert held == pytest.approx([base ** (-2 * i / 32) for i in range(16)], rel=1e-5)


def test_float16_rounds_and_says_so_where_nothing_would_be(llama: Path, tmp_path: Path) -> None:
    """float16 has 11 significant bits: it cannot hold float32's 24, and holds bfloat16's 8 where exponents are moderate."""
    old, new = broken(llama, "float16-down", tmp_path / "faulty")
    name = f"{MLP}.down_proj.weight"
    assert new[name].dtype == torch.float16
    error = (new[name].float() - old[name]).abs() / old[name].abs()
    assert 2**-13 < error.max() <= 2**-11 or (old[name].abs().min() < 2**-14), "half of the last of 11 bits"
    held = torch.linspace(0.01, 0.02, old[name].numel()).reshape(old[name].shape).bfloat16()
    save_file(old | {name: held}, llama / "model.safetensors")
    with pytest.raises(UserError, match=r"float16 represents every value of .*down_proj\.weight exactly"):
        inject_fault(llama, "float16-down", tmp_path / "again")


def shard(folder: Path) -> None:
    """Splits model.safetensors into three files with an index: the layers one each, and the rest."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: 1 + ("layers.0." in name) + 2 * ("layers.1." in name) for name in tensors}
    files = {number: f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)}
    for number, file in files.items():
        save_file({name: tensor for name, tensor in tensors.items() if places[name] == number}, folder / file)
    index = {"weight_map": {name: files[number] for name, number in places.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_sharded_checkpoint_stays_sharded_and_its_index_tells_the_truth(llama: Path, tmp_path: Path) -> None:
    shard(llama)
    old, new = broken(llama, "swapped-kv", tmp_path / "faulty")
    assert differing(old, new) == {f"{ATTENTION}.k_proj.weight", f"{ATTENTION}.v_proj.weight"}
    places = json.loads((tmp_path / "faulty" / "model.safetensors.index.json").read_text())["weight_map"]
    assert places == json.loads((llama / "model.safetensors.index.json").read_text())["weight_map"]
    stored = read_checkpoint(tmp_path / "faulty")
    assert {name: tensor.file.name for name, tensor in stored.items()} == places


@pytest.mark.parametrize("shards", [1, 3])
def test_of_a_tensor_in_two_files_the_index_names_the_one_that_is_right(shards: int, llama: Path, tmp_path: Path) -> None:
    old = tensors_of(llama)
    if shards == 3:
        shard(llama)
    inject_fault(llama, "in-two-files", tmp_path / "faulty")
    name = f"{ATTENTION}.k_proj.weight"
    places = json.loads((tmp_path / "faulty" / "model.safetensors.index.json").read_text())["weight_map"]
    holders = {file.name: tensors[name] for file in tmp_path.glob("faulty/*.safetensors") if name in (tensors := load_file(file))}
    assert len(holders) == 2
    assert torch.equal(holders.pop(places[name]), old[name])
    assert not torch.equal(holders.popitem()[1], old[name])


# --- refusals -----------------------------------------------------------------------------------------------------------


def test_a_directory_that_holds_something_is_refused_and_an_empty_one_is_filled(llama: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    inject_fault(llama, "missing-k", taken)
    before = contents(taken)
    with pytest.raises(UserError, match=r"taken holds README\.md \(4 in all\); name a directory that does not exist yet"):
        inject_fault(llama, "missing-k", taken)
    assert contents(taken) == before


@pytest.mark.parametrize("inside", ["", "faulty"])
def test_the_source_is_no_place_for_a_copy(inside: str, llama: Path) -> None:
    before = contents(llama)
    with pytest.raises(UserError, match="where nothing is changed; name a directory outside it"):
        inject_fault(llama, "missing-k", llama / inside)
    assert contents(llama) == before


def rewritten(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps(TINY | changes))


REFUSED: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "unknown": ("missing-w", lambda folder: None, r"there is no fault 'missing-w'; nearest: .*missing-k"),
    "no config": ("missing-k", lambda folder: (folder / "config.json").unlink(), r"there is no config\.json in .*; give a"),
    "no weights": ("missing-k", lambda folder: (folder / "model.safetensors").unlink(), "there is no safetensors file in"),
    "half": ("missing-k", lambda folder: os.truncate(folder / "model.safetensors", 5000), "cut off or is no safetensors"),
    "not JSON": ("missing-k", lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
    "other family": ("missing-k", lambda folder: rewritten(folder, architectures=["GPT2LMHeadModel"]), "GPT2LMHeadModel; faults"),
    "quantized": ("missing-k", lambda folder: rewritten(folder, quantization_config={}), "is quantized"),
    "no list": ("missing-k", lambda folder: rewritten(folder, architectures=5), "architecture 5; faults"),
    "other heads": (
        "mha-into-gqa",
        lambda folder: rewritten(folder, num_key_value_heads=3),
        "config.json does not fit its tensors: shape",
    ),
    "no number": ("inv-freq", lambda folder: rewritten(folder, rope_theta="x"), "does not fit its tensors: could not"),
    "multi-head": ("mha-into-gqa", lambda folder: rewritten(folder, num_key_value_heads=4), "4 query heads and 4 kv heads; give"),
    "no layers": ("missing-k", lambda folder: rewritten(folder, num_hidden_layers=0), "num_hidden_layers 0; it must be"),
    "a layer less": (
        "missing-k",
        lambda folder: rewritten(folder, num_hidden_layers=3),
        r"has no model\.layers\.2\.self_attn\.q_",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_broken_is_refused_in_a_sentence(case: str, llama: Path, tmp_path: Path) -> None:
    fault, spoil, words = REFUSED[case]
    spoil(llama)
    with pytest.raises(UserError, match=words):
        inject_fault(llama, fault, tmp_path / "faulty")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# --- whole or not at all ------------------------------------------------------------------------------------------------


def test_a_run_that_fails_at_the_end_leaves_nothing(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", no_room)
    with pytest.raises(UserError, match=r"cannot write .*faulty: No space left on device; name a directory"):
        inject_fault(llama, "missing-k", tmp_path / "faulty")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_killed_run_leaves_nothing_that_looks_complete(llama: Path, tmp_path: Path) -> None:
    """Killed when the weights are written: there is no directory of that name, and nowhere a config.json."""
    killed = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from labkit.checkpoints.editable_checkpoint import EditableCheckpoint\n"
        "from labkit.checkpoints.faults import inject_fault\n"
        "write = EditableCheckpoint._write_weights\n"
        "EditableCheckpoint._write_weights = lambda *given: (write(*given), os.kill(os.getpid(), signal.SIGKILL))\n"
        f"inject_fault(Path({str(llama)!r}), 'missing-k', Path({str(tmp_path / 'faulty')!r}))\n"
    )
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "faulty").exists()
    left = [path for path in tmp_path.rglob("*") if llama not in (path, *path.parents)]
    assert any(path.name == "model.safetensors" for path in left), "it was killed in the middle of its work"
    assert not any(path.name == "config.json" for path in left)
    inject_fault(llama, "missing-k", tmp_path / "faulty")


def test_a_full_disk_is_a_sentence(llama: Path, tmp_path: Path, file_size_limit: Callable[[int], None]) -> None:
    file_size_limit(100_000)
    with pytest.raises(UserError, match=r"cannot write .*faulty"):
        inject_fault(llama, "missing-k", tmp_path / "faulty")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# --- the command line ---------------------------------------------------------------------------------------------------


def test_the_list_has_a_line_for_each_fault(lab: Lab) -> None:
    status, listed = lab("break", "--list")
    assert status == 0
    assert lab("break") == (0, listed)
    assert [line.split()[0] for line in listed.splitlines()] == list(FAULTS)
    assert all(len(line) <= 80 for line in listed.splitlines())
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in FAULTS)


def test_break_says_what_it_made(lab: Lab, llama: Path, tmp_path: Path) -> None:
    status, said = lab("break", llama, "--fault", "swapped-kv", "-o", tmp_path / "faulty")
    assert status == 0
    assert said.endswith(f"swapped-kv: k_proj and v_proj swapped\nwritten: {tmp_path / 'faulty'}\n")


def test_slips_of_the_pen_are_sentences(lab: Lab, llama: Path, tmp_path: Path) -> None:
    status, said = lab("break", llama, "--fault", "missing-k")
    assert (status, said) == (
        1,
        "lab: the checkpoint or the output directory is missing; run ./lab break CHECKPOINT --fault missing-k -o DIR\n",
    )
    status, said = lab("break", llama, "--fault", "nonsense", "-o", tmp_path / "faulty")
    assert status == 1
    assert "lab: there is no fault 'nonsense'; ./lab break --list shows all faults" in said


def test_nothing_heavy_is_imported_to_list_them() -> None:
    heavy = "import sys\nimport labkit.cli.main\nprint([name for name in ('torch', 'vllm', 'mini_vllm') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", heavy], check=True, capture_output=True, text=True).stdout == "[]\n"

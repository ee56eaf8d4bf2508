"""The strict loader and the files it reads: every fault in one error, and nothing copied."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM as Reference

from mini_vllm import LLM
from mini_vllm.layers.linear import ColumnParallelLinear
from mini_vllm.loading.checkpoint import Checkpoint, CheckpointError, read_json
from mini_vllm.loading.loader import LoadError, load_weights
from mini_vllm.loading.mapping import translate
from mini_vllm.models.llama import STACKED_PARAMS_MAPPING, LlamaConfig, LlamaForCausalLM
from mini_vllm.models.registry import PLUGINS, load_plugins

TinyLlama = Callable[..., tuple[Path, Reference]]
ATTENTION = "model.layers.1.self_attn"


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def load(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_checkpoint(read_json(folder / "config.json"), Checkpoint(folder))


def test_every_parameter_holds_the_checkpoint(tiny_llama: TinyLlama) -> None:
    folder, _ = tiny_llama(attention_bias=True)
    tensors, model = load_file(folder / "model.safetensors"), dict(load(folder).named_parameters())
    qkv = [tensors[f"{ATTENTION}.{name}_proj.weight"] for name in "qkv"]
    assert torch.equal(model[f"{ATTENTION}.qkv_proj.weight"], torch.cat(qkv))
    assert torch.equal(
        model[f"{ATTENTION}.qkv_proj.bias"], torch.cat([tensors[f"{ATTENTION}.{name}_proj.bias"] for name in "qkv"])
    )
    assert torch.equal(model["lm_head.weight"][:101], tensors["lm_head.weight"])
    assert model["lm_head.weight"][101:].shape == (27, 48), "a vocabulary of 101 is padded to 128"
    assert not bool(model["lm_head.weight"][101:].any()), "with zeros"
    assert len(model) == len(tensors) - 2 * (2 + 2 + 1), "three weights and three biases became one of each, and two weights one"


def test_all_faults_are_told_at_once_and_nothing_is_loaded(tiny_llama: TinyLlama) -> None:
    folder, _ = tiny_llama()

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]
        del tensors[f"{ATTENTION}.k_proj.weight"]
        tensors[f"{ATTENTION}.v_proj.weight"] = torch.zeros(48, 48)  # a multi-head checkpoint's
        tensors["model.layers.7.mlp.up_proj.weight"] = torch.zeros(80, 48)

    rewrite(folder, spoil)
    config = LlamaConfig.from_hf(read_json(folder / "config.json"))
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data.fill_(7.0)

    with pytest.raises(LoadError) as error:
        load_weights(model, Checkpoint(folder), STACKED_PARAMS_MAPPING)
    said = str(error.value)
    assert "4 faults" in said
    assert "model.norm.weight is in no tensor" in said
    assert f"{ATTENTION}.qkv_proj.weight has 80 rows, and [k], rows 48:64 of them are in no tensor" in said
    assert f"{ATTENTION}.v_proj.weight is (48, 48), and {ATTENTION}.qkv_proj.weight [v] takes (16, 48): 32 rows" in said
    assert (
        "model.layers.7.mlp.up_proj.weight goes to model.layers.7.mlp.gate_up_proj.weight [1], which the model does not have"
        in said
    )
    assert all(bool((parameter == 7.0).all()) for parameter in model.parameters()), "not a byte was copied"


def test_what_may_be_left_over(tiny_llama: TinyLlama) -> None:
    folder, _ = tiny_llama(tie_word_embeddings=True)
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": torch.ones(101, 48)}))
    rewrite(folder, lambda tensors: tensors.update({f"{ATTENTION}.rotary_emb.inv_freq": torch.ones(4)}))
    model = load(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight, "a tied head saved to disk all the same is not another head"
    assert not bool((model.lm_head.weight == 1).all())


def test_a_name_must_match_as_a_whole() -> None:
    assert translate("model.layers.0.mlp.up_proj.weight", STACKED_PARAMS_MAPPING) == ("model.layers.0.mlp.gate_up_proj.weight", 1)
    assert translate("model.layers.0.mlp.backup_proj.weight", STACKED_PARAMS_MAPPING)[1] is None
    assert translate("weight", STACKED_PARAMS_MAPPING) == ("weight", None)


def test_a_file_that_is_cut_short(tiny_llama: TinyLlama) -> None:
    folder, _ = tiny_llama()
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(CheckpointError, match=rf"has {len(whole) - 1000} bytes, and its header promises {len(whole)}; fetch"):
        LLM(folder)
    path.write_bytes(whole[:100])
    with pytest.raises(CheckpointError, match="its header alone would take"):
        LLM(folder)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no whole safetensors file"):
        LLM(folder)


def test_a_file_that_is_missing(tiny_llama: TinyLlama) -> None:
    folder, _ = tiny_llama(shard_size="40KB")
    gone = sorted(folder.glob("model-*.safetensors"))[2]
    gone.unlink()
    with pytest.raises(CheckpointError, match=rf"{gone.name} is missing \(model.safetensors.index.json names {gone.name}\)"):
        LLM(folder)
    for file in folder.glob("model*"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        LLM(folder)


@pytest.mark.parametrize("file", ["../elsewhere.safetensors", "..", "", "/etc/hostname", 7])
def test_an_index_that_leads_out_of_the_folder(tiny_llama: TinyLlama, file: object) -> None:
    folder, _ = tiny_llama(shard_size="40KB")
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["lm_head.weight"] = file
    index.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="no weight_map of tensor names to file names in this folder"):
        LLM(folder)


def test_an_index_that_names_a_tensor_the_file_does_not_hold(tiny_llama: TinyLlama) -> None:
    folder, _ = tiny_llama(shard_size="40KB")
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["model.extra.weight"] = data["weight_map"]["lm_head.weight"]
    index.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"places model\.extra\.weight in model-.*, which does not hold it"):
        LLM(folder)


def test_a_tensor_in_two_files_is_no_matter_of_luck(tiny_llama: TinyLlama) -> None:
    folder, _ = tiny_llama(shard_size="40KB")
    names = Checkpoint(folder)
    first, second = names.file("model.norm.weight"), names.file(f"{ATTENTION}.k_proj.weight")
    assert first != second
    tensors = load_file(folder / first)
    save_file(tensors | {f"{ATTENTION}.k_proj.weight": torch.zeros(16, 48)}, folder / first)
    with pytest.raises(LoadError) as error:
        LLM(folder)
    (fault,) = error.value.faults
    assert (fault.kind, fault.name) == ("duplicated", f"{ATTENTION}.k_proj.weight")
    assert f"k_proj.weight is in {first} too, and not only in {second}" in fault.message


def test_a_tensor_that_the_index_leaves_out_is_read_all_the_same(tiny_llama: TinyLlama) -> None:
    """As vLLM reads every tensor of every file that the index names; so none is overlooked, and none is left without a word."""
    folder, _ = tiny_llama(shard_size="40KB")
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    del data["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(data))
    load(folder)
    file = Checkpoint(folder).file("model.norm.weight")
    save_file(load_file(folder / file) | {"model.extra.weight": torch.zeros(1)}, folder / file)
    with pytest.raises(LoadError, match=r"unexpected: model\.extra\.weight"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architectures": ["NoSuchForCausalLM"]}, r"names 'NoSuchForCausalLM', and the engine knows .*LlamaForCausalLM"),
        ({"architectures": None}, "names no architecture"),
        ({"architectures": "LlamaForCausalLM"}, "has architectures 'LlamaForCausalLM'; a list of names is needed"),
        ({"hidden_size": None}, "has no hidden_size"),
        ({"num_key_value_heads": 4}, "6 query heads cannot share 4 kv heads"),
        ({"rope_parameters": {"rope_type": "stretchy"}}, "rope scaling 'stretchy'"),
        ({"intermediate_size": 81}, "does not fit the model, 6 faults"),
    ],
)
def test_a_config_that_cannot_be_served(tiny_llama: TinyLlama, changes: dict[str, Any], sentence: str) -> None:
    folder, _ = tiny_llama()
    config = read_json(folder / "config.json") | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(CheckpointError, match=sentence):
        LLM(folder)


def test_a_plugin_that_fails_is_named(tiny_llama: TinyLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = tiny_llama()
    info = tmp_path / "bad_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{PLUGINS}]\nbad = bad_plugin:register\n")
    (tmp_path / "bad_plugin.py").write_text("def register():\n    raise KeyError('hidden_size')\n")
    monkeypatch.syspath_prepend(tmp_path)
    load_plugins.cache_clear()
    with pytest.raises(CheckpointError, match=r"'bad' of bad-plugin fails in bad_plugin:register: KeyError: 'hidden_size'"):
        LLM(folder)
    (info / "entry_points.txt").unlink()
    LLM(folder)


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no directory"):
        LLM(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"there is no config\.json in"):
        LLM(tmp_path)
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        LLM(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_more_of_the_files_than_one_stays_in_memory(tmp_path: Path) -> None:
    """Three files of 32 MB: when the last is read, the first two are mapped no more."""

    class ThreeLayers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(ColumnParallelLinear(1024, 8192) for _ in range(3))

    def mapped() -> int:
        """Bytes of the checkpoint's files that this process has in memory."""
        lines = Path("/proc/self/smaps").read_text().splitlines()
        sizes = [i for i, line in enumerate(lines) if str(tmp_path) in line]
        return sum(int(next(line for line in lines[i:] if line.startswith("Rss:")).split()[1]) * 1024 for i in sizes)

    names = [f"layers.{i}.weight" for i in range(3)]
    for i, name in enumerate(names):
        save_file({name: torch.full((8192, 1024), float(i))}, tmp_path / f"{i}.safetensors")
    index = {"weight_map": {name: f"{i}.safetensors" for i, name in enumerate(names)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    seen: list[int] = []

    class Watched(Checkpoint):
        def release(self, file: str) -> None:
            seen.append(mapped())
            super().release(file)

    model = ThreeLayers()
    load_weights(model, Watched(tmp_path), ())
    assert [parameter.mean().item() for parameter in model.parameters()] == [0, 1, 2]
    one_file = 8192 * 1024 * 4
    assert all(0.9 * one_file < size < 1.5 * one_file for size in seen), seen
    assert mapped() < 0.1 * one_file

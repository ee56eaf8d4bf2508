"""``./lab logits``: what values tell and no shape can, and where rounding ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recordings import TINY, write_checkpoint
from safetensors.torch import load_file, save_file

from labkit.checkpoints import logits
from labkit.checkpoints.faults import inject_fault
from labkit.checkpoints.known_models import implied_shapes
from labkit.checkpoints.logits import ROUNDING, compare
from labkit.system.errors import UserError

QWEN2 = TINY | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True}


def write(folder: Path, config: dict[str, Any], dtype: torch.dtype = torch.float32) -> Path:
    """A checkpoint whose answers hardly differ in likelihood: every weight, the norms' too, is a tenth of a normal one."""
    folder.mkdir()
    write_checkpoint(folder, config, implied_shapes(config))
    tensors = {name: (tensor / 10).to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write(tmp_path / "source", TINY)


@pytest.mark.parametrize("config", [TINY, QWEN2], ids=["llama", "qwen2"])
@pytest.mark.parametrize("name", ["swapped-kv", "swapped-gate-up", "permuted-qk"])
def test_values_tell_what_no_shape_can(name: str, config: dict[str, Any], tmp_path: Path) -> None:
    source = write(tmp_path / "source", config)
    inject_fault(source, name, tmp_path / "faulty")
    assert not compare(tmp_path / "faulty", source).is_rounding


def test_a_copy_is_the_same_and_a_wider_type_too(llama: Path, tmp_path: Path) -> None:
    """bfloat16 values stored as float32 are the same values."""
    short = write(tmp_path / "short", TINY, torch.bfloat16)
    wide = write(tmp_path / "wide", TINY)
    save_file(
        {name: tensor.float() for name, tensor in load_file(short / "model.safetensors").items()}, wide / "model.safetensors"
    )
    found = compare(wide, short)
    assert (found.largest, set(found.first_differing), found.is_rounding) == (0, {None}, True)
    assert not compare(short, llama).is_rounding, "every weight was rounded to 8 bits"


def test_the_difference_is_the_largest_and_where_answers_part() -> None:
    one = [([(5, -1.0), (6, -2.0)], [(1, 0.0), (2, 0.0)]), ([(7, -3.0), (8, -1.5)], [(3, 0.0), (4, 0.0)])]
    two = [([(5, -1.1), (6, -2.0)], [(1, 0.0), (9, 0.0)]), ([(7, -3.0), (8, -1.0)], [(3, 0.5), (4, 0.0)])]
    found = logits._difference(one, two)
    assert (found.largest, found.prompt, found.position, found.first_differing) == (0.5, 1, 2, (1, None))
    # -1.1, -2, -3, -1: mean -1.775, squares of the distances 0.455625, 0.050625, 1.500625, 0.600625
    assert found.spread == pytest.approx((2.6075 / 4) ** 0.5)
    assert found.rounding == pytest.approx(ROUNDING * found.spread)
    for a, b in ((0.0, float("nan")), (float("nan"), 0.0)):
        assert not logits._difference([([(1, a)], [])], [([(1, b)], [])]).is_rounding


def test_what_does_not_belong_together_is_refused(llama: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", TINY | {"vocab_size": 130})
    with pytest.raises(UserError, match=r"vocab_size is 130 in .*other and 131 in .*source"):
        compare(other, llama)
    qwen = write(tmp_path / "qwen", QWEN2)
    with pytest.raises(UserError, match=r"architectures is \['Qwen2ForCausalLM'\] in"):
        compare(qwen, llama)
    inject_fault(llama, "missing-k", tmp_path / "faulty")
    with pytest.raises(UserError, match=r"faulty cannot be served: (.|\n)*qkv_proj"):
        compare(tmp_path / "faulty", llama)
    with pytest.raises(UserError, match=r"there is no config\.json in .*nowhere"):
        compare(tmp_path / "nowhere", llama)


def test_the_exit_status_says_whether_they_are_the_same(llama: Path, tmp_path: Path, lab: Callable[..., tuple[int, str]]) -> None:
    inject_fault(llama, "swapped-kv", tmp_path / "faulty")
    for directory, status, words in ((tmp_path / "faulty", 1, "\nnot the same: "), (llama, 0, "\nthe same: ")):
        ended, said = lab("logits", directory, llama)
        assert (ended, words in said) == (status, True)
        assert all(len(line) <= 80 for line in said.splitlines())

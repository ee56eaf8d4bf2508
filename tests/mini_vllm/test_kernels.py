"""Kernels against the plain layers they replace: the same tokens, and each loop against its formula."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel
from twenty_prompts import twenty_prompts

from mini_vllm import LLM, SamplingParams
from mini_vllm.kernels.elementwise import write_kv
from mini_vllm.kernels.install import install_kernels
from mini_vllm.kernels.paged_decode import PagedDecodes
from mini_vllm.layers.norm import RMSNorm

TinyModel = Callable[..., tuple[Path, PreTrainedModel]]

GREEDY = SamplingParams(temperature=0, max_tokens=16)


def tokens(llm: LLM, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy answers to the prompts."""
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], GREEDY)
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", [None, "int8", {"quant_method": "int4", "group_size": 16}], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_plain_and_kernels_generate_the_same_tokens(tiny_model: TinyModel, family: str, quantization: Any, dtype: str) -> None:
    changes = {"head_dim": 8} if family == "qwen3" else {"sliding_window": 8} if family == "mistral" else {}
    folder, _ = tiny_model(family, **changes)
    prompts = [[5], [1, 2, 3], [7] * 20, list(range(40))]
    plain, kernels = (LLM(folder, dtype=dtype, quantization=quantization, kernels=each) for each in (False, True))
    assert tokens(plain, prompts) == tokens(kernels, prompts)
    assert plain.llm_engine.runner.model.model.replay is None  # type: ignore[attr-defined]
    replay = kernels.llm_engine.runner.model.model.replay  # type: ignore[attr-defined]
    if family != "qwen3":  # whose norm over heads copies its input by torch first, so that no step is replayed
        assert (replay is not None and replay.replays > 0) == (dtype == "float32")


def test_plain_smollm2_generates_the_tokens_of_the_kernels(smollm2: Path) -> None:
    plain, kernels = (LLM(smollm2, dtype="float32", kernels=each) for each in (False, True))
    assert plain.tokenizer
    prompts = twenty_prompts(plain.tokenizer)
    assert tokens(plain, prompts) == tokens(kernels, prompts)


PLAIN = """
import sys
from mini_vllm import LLM, SamplingParams
LLM(sys.argv[1], kernels=False).generate([{"prompt_token_ids": [1, 2]}], SamplingParams(max_tokens=3))
assert not [name for name in sys.modules if name.startswith(("numba", "mini_vllm.kernels"))]
"""


def test_a_plain_engine_imports_no_kernel(tiny_model: TinyModel) -> None:
    folder, _ = tiny_model("llama")
    subprocess.run([sys.executable, "-c", PLAIN, str(folder)], check=True)


@pytest.mark.parametrize("lengths", [[1], [4, 5, 8, 3, 1], [64, 1, 63, 17]])
@pytest.mark.parametrize("window", [None, 1, 4, 6])
def test_decodes_in_place_read_only_their_own_tokens(lengths: list[int], window: int | None) -> None:
    """Every slot that no query attends to holds NaN; the newest tokens are written first. Scores are far apart, so that most
    weights underflow."""
    size, generator = 4, torch.Generator().manual_seed(0)
    tables = torch.randperm(64 * len(lengths), generator=generator).view(len(lengths), -1)[:, :16].contiguous()
    keys, values = torch.full((2, 64 * len(lengths), size, 2, 8), float("nan"))
    q, expected = 20 * torch.randn(len(lengths), 8, 8, generator=generator)[:, 1:7], torch.empty(len(lengths), 6, 8)
    new_k, new_v = torch.empty(2, len(lengths), 2, 8)
    for request, length in enumerate(lengths):
        seen = torch.arange(max(0, length - window) if window else 0, length)
        k, v = torch.randn(2, len(seen), 2, 8, generator=generator)
        slots = tables[request, seen[:-1] // size], seen[:-1] % size
        keys[slots], values[slots], new_k[request], new_v[request] = k[:-1], v[:-1], k[-1], v[-1]
        k, v = (heads.double().repeat_interleave(3, dim=1) for heads in (k, v))
        weights = torch.softmax(torch.einsum("nd,lnd->nl", q[request].double(), k) / 8**0.5, dim=1)
        expected[request] = torch.einsum("nl,lnd->nd", weights, v)
    last, out = torch.tensor(lengths) - 1, torch.empty_like(expected)
    slots = tables[torch.arange(len(lengths)), last // size], last % size
    write_kv(new_k, new_v, keys, values, slots[0] * size + slots[1])
    assert torch.equal(keys[slots], new_k)
    assert torch.equal(values[slots], new_v)
    PagedDecodes(slice(None), tables, torch.tensor(lengths), window).attend(q, keys, values, out)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_rms_norm_computes_what_torch_does() -> None:
    for shape in ((1, 576), (7, 3, 16), (300, 64)):
        x, norm = torch.randn(shape) * 30, RMSNorm(shape[-1], 1e-5)
        nn.init.normal_(norm.weight)
        install_kernels(norm)
        expected = torch.nn.functional.rms_norm(x.double(), shape[-1:], norm.weight.double(), 1e-5).float()
        torch.testing.assert_close(norm(x), expected)
        strided = torch.randn(*shape[:-1], 2 * shape[-1])[..., : shape[-1]]
        torch.testing.assert_close(norm(strided), norm(strided.contiguous()))


THREADS = """
import torch
from mini_vllm.kernels.install import install_kernels
from mini_vllm.layers.norm import RMSNorm
from mini_vllm.layers.linear import ColumnParallelLinear

torch.set_num_threads(1)
norm, layer = RMSNorm(64, 1e-6), ColumnParallelLinear(4, 32)
install_kernels(norm)
install_kernels(layer)
norm(torch.ones(1024, 64))
layer(torch.ones(1, 4))
print(torch.get_num_threads())
"""


def test_loops_leave_torchs_thread_count_alone() -> None:
    """In a new process, as numba's thread pool changes OpenMP only when it starts."""
    two = os.environ | {"NUMBA_NUM_THREADS": "2"}
    ended = subprocess.run([sys.executable, "-c", THREADS], env=two, capture_output=True, text=True, check=True)
    assert ended.stdout == "1\n"

"""Replay of decode steps: which steps are replayed, and that they compute the same as without replay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from test_layers import context_of
from torch import Tensor
from transformers import PreTrainedModel

from mini_vllm import LLM, LLMEngine, SamplingParams
from mini_vllm.config import EngineConfig
from mini_vllm.forward_context import KVCache, set_forward_context
from mini_vllm.kernels import decode_graph, elementwise, paged_decode
from mini_vllm.kernels.decode_graph import DecodeGraph
from mini_vllm.kernels.install import install_kernels
from mini_vllm.layers.activation import SiluAndMul
from mini_vllm.layers.norm import RMSNorm
from mini_vllm.models.llama import LlamaConfig, LlamaForCausalLM
from mini_vllm.parallel import TPGroup, tp_group

TinyModel = Callable[..., tuple[Path, PreTrainedModel]]

TWELVE = SamplingParams(temperature=0, max_tokens=12, logprobs=5)


def answers(model: Any, prompts: list[list[int]], **sizes: int) -> list[Any]:
    """Tokens and log probabilities, compared to the last bit."""
    engine = LLMEngine(model, EngineConfig(max_model_len=64, **sizes))
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), prompt, TWELVE)
    said: dict[str, Any] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            assert output.outputs[0].error is None
            said[output.request_id] = (output.outputs[0].token_ids, output.outputs[0].logprobs)
    return [said[str(number)] for number in range(len(prompts))]


def never(monkeypatch: pytest.MonkeyPatch, model: Any, prompts: list[list[int]], **sizes: int) -> list[Any]:
    """The answers without replay."""
    with monkeypatch.context() as patch:
        patch.setattr(decode_graph, "MAX_ROWS", 0)
        before = model.model.replay.replays
        said = answers(model, prompts, **sizes)
        assert model.model.replay.replays == before
    return said


@pytest.fixture
def model(tiny_model: TinyModel, request: pytest.FixtureRequest) -> LlamaForCausalLM:
    """A model of the family that a test names, or a Llama."""
    folder, _ = tiny_model(getattr(request, "param", "llama"), head_dim=8)
    return LLM(folder, dtype="float32").llm_engine.runner.model  # type: ignore[return-value]


PROMPTS = [[5], [1, 2, 3], [7] * 20]


@pytest.mark.parametrize("model", ["llama", "qwen2", "mistral"], indirect=True)
def test_the_third_decode_step_of_a_shape_is_replayed(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = never(monkeypatch, model, PROMPTS)
    assert answers(model, PROMPTS) == expected
    assert model.model.replay.replays == 9, "of 11 decode steps the first is computed and the second captured"
    assert answers(model, PROMPTS) == expected, "another engine, with keys and values of its own"
    assert model.model.replay.replays == 18


def test_joining_and_leaving_requests_change_the_shape(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five requests, two at a time, with prompts of up to 30 tokens in chunks of 4."""
    prompts = [[number] * length for number, length in enumerate((1, 30, 6, 2, 9))]
    sizes = {"max_num_batched_tokens": 4, "max_num_seqs": 2, "block_size": 3}
    expected = never(monkeypatch, model, prompts, **sizes)
    assert answers(model, prompts, **sizes) == expected
    assert 0 < model.model.replay.replays < 30


def test_block_tables_may_outgrow_the_captured_ones(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged_decode, "TABLE_STEP", 2)
    expected = never(monkeypatch, model, PROMPTS, block_size=2)
    assert answers(model, PROMPTS, block_size=2) == expected
    assert 0 < model.model.replay.replays < 9


def test_a_layer_computed_by_torch_prevents_replay(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    class Louder(SiluAndMul):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    model.model.layers[1].mlp.act_fn = Louder()  # type: ignore[union-attr]
    expected = never(monkeypatch, model, PROMPTS)
    assert answers(model, PROMPTS) == expected
    assert model.model.replay.replays == 0


class Region:
    """Adds and normalizes, and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.norm = RMSNorm(4, 1e-5)
        self.norm.weight.data.fill_(1)
        self.norm.kernel = elementwise.rms_norm

    def __call__(self, x: Tensor, residual: Tensor, unused: Tensor) -> Tensor:
        self.calls += 1
        return self.norm(x, residual)[0]


def run(graph: DecodeGraph, cache: KVCache, lora_ids: tuple[int, ...] = (), rows: int = 2) -> None:
    """Runs one step of ``rows`` decodes and compares the result with torch's."""
    context = context_of(cache, [(request,) for request in range(rows)], [1] * rows, [1] * rows)
    x, residual = torch.randn(2, rows, 4)
    expected = torch.nn.functional.rms_norm(x + residual, (4,), eps=1e-5)
    with set_forward_context(replace(context, lora_ids=lora_ids)):
        torch.testing.assert_close(graph(x, residual, x), expected)


@pytest.mark.parametrize(("ranks", "replays"), [(1, True), (2, False)])
def test_only_a_model_on_one_rank_is_replayed(ranks: int, replays: bool) -> None:
    """A replay would leave out the sums over the ranks."""
    with tp_group(TPGroup(0, ranks)):
        model = LlamaForCausalLM(LlamaConfig.from_hf(TINY))
        install_kernels(model)
    assert (model.model.replay is not None) == replays


def test_steps_with_an_adapter_or_many_rows_are_not_replayed() -> None:
    region, cache = Region(), KVCache(64, 4)
    graph = DecodeGraph(region)
    for _ in range(5):
        run(graph, cache)
    assert (region.calls, graph.replays) == (2, 3)
    run(graph, cache, lora_ids=(0, 7))
    run(graph, cache, rows=decode_graph.MAX_ROWS + 1)
    assert (region.calls, graph.replays) == (4, 3)
    run(graph, cache, lora_ids=(0, 0))
    assert graph.replays == 4, "the captured step is kept"
    run(graph, KVCache(64, 4))
    assert (region.calls, graph.replays) == (5, 4), "another KV cache needs another capture"

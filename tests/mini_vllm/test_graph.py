"""Replayed decode steps: when a step is replayed, that it says what it would have said, and when it must not be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_layers import context_of
from torch import Tensor
from transformers import PreTrainedModel

from mini_vllm import LLM, LLMEngine, SamplingParams
from mini_vllm.config import EngineConfig
from mini_vllm.forward_context import KVCache, set_forward_context
from mini_vllm.layers import attention, graph
from mini_vllm.layers.activation import SiluAndMul
from mini_vllm.layers.graph import Replayed
from mini_vllm.layers.norm import RMSNorm
from mini_vllm.models.llama import LlamaForCausalLM
from mini_vllm.parallel import TPGroup, tp_group

TinyModel = Callable[..., tuple[Path, PreTrainedModel]]

TWELVE = SamplingParams(temperature=0, max_tokens=12, logprobs=5)


def answers(model: Any, prompts: list[list[int]], **sizes: int) -> list[Any]:
    """Tokens and the logarithms of their probabilities, to the last bit."""
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
    """What is said when nothing is replayed."""
    with monkeypatch.context() as patch:
        patch.setattr(graph, "MOST_ROWS", 0)
        before = model.model.replayed.replays
        said = answers(model, prompts, **sizes)
        assert model.model.replayed.replays == before
    return said


@pytest.fixture
def model(tiny_model: TinyModel, request: pytest.FixtureRequest) -> LlamaForCausalLM:
    """Of the family that a test names, or a Llama."""
    folder, _ = tiny_model(getattr(request, "param", "llama"), head_dim=8)
    return LLM(folder, dtype="float32").llm_engine.runner.model  # type: ignore[return-value]


PROMPTS = [[5], [1, 2, 3], [7] * 20]


@pytest.mark.parametrize("model", ["llama", "qwen2", "mistral"], indirect=True)
def test_from_the_third_decode_step_of_a_shape_on_it_is_replayed(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = never(monkeypatch, model, PROMPTS)
    assert answers(model, PROMPTS) == expected
    assert model.model.replayed.replays == 9, "of 11 decode steps the first runs as it is and the second is captured"
    assert answers(model, PROMPTS) == expected, "another engine, with keys and values of its own"
    assert model.model.replayed.replays == 18


def test_requests_that_join_and_leave_change_the_shape(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seats for five requests, whose prompts of up to 30 tokens come in chunks of 4."""
    prompts = [[number] * length for number, length in enumerate((1, 30, 6, 2, 9))]
    sizes = {"max_num_batched_tokens": 4, "max_num_seqs": 2, "block_size": 3}
    expected = never(monkeypatch, model, prompts, **sizes)
    assert answers(model, prompts, **sizes) == expected
    assert 0 < model.model.replayed.replays < 30


def test_tables_may_outgrow_the_captured_ones(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "TABLE_STEP", 2)
    expected = never(monkeypatch, model, PROMPTS, block_size=2)
    assert answers(model, PROMPTS, block_size=2) == expected
    assert 0 < model.model.replayed.replays < 9


def test_a_layer_that_computes_by_torch_is_never_left_out(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    class Louder(SiluAndMul):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    model.model.layers[1].mlp.act_fn = Louder()  # type: ignore[union-attr]
    expected = never(monkeypatch, model, PROMPTS)
    assert answers(model, PROMPTS) == expected
    assert model.model.replayed.replays == 0


class Region:
    """Adds and normalises, and counts how often it is really called."""

    def __init__(self) -> None:
        self.calls = 0
        self.norm = RMSNorm(4, 1e-5)
        self.norm.weight.data.fill_(1)

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        self.calls += 1
        return self.norm(x, residual)[0]


def run(replayed: Replayed, cache: KVCache, lora_ids: tuple[int, ...] = (), rows: int = 2) -> None:
    """One step of ``rows`` decodes, whose result is what torch computes."""
    context = context_of(cache, [(request,) for request in range(rows)], [1] * rows, [1] * rows)
    x, residual = torch.randn(2, rows, 4)
    expected = torch.nn.functional.rms_norm(x + residual, (4,), eps=1e-5)
    with set_forward_context(replace(context, lora_ids=lora_ids)):
        torch.testing.assert_close(replayed(x, residual), expected)


def test_a_rank_of_several_is_never_replayed() -> None:
    """The ranks' sums are no loop of this package."""
    region = Region()
    with tp_group(TPGroup(0, 2)):
        replayed = Replayed(region)
    cache = KVCache(64, 4)
    for _ in range(5):
        run(replayed, cache)
    assert (region.calls, replayed.replays) == (5, 0)


def test_an_adapter_and_many_rows_run_as_they_are() -> None:
    region, cache = Region(), KVCache(64, 4)
    replayed = Replayed(region)
    for _ in range(5):
        run(replayed, cache)
    assert (region.calls, replayed.replays) == (2, 3)
    run(replayed, cache, lora_ids=(0, 7))
    run(replayed, cache, rows=graph.MOST_ROWS + 1)
    assert (region.calls, replayed.replays) == (4, 3)
    run(replayed, cache, lora_ids=(0, 0))
    assert replayed.replays == 4, "the captured step is still there"
    run(replayed, KVCache(64, 4))
    assert (region.calls, replayed.replays) == (5, 4), "with other keys and values it is another step"

"""The tokens of a request depend on the request alone: a table of everything that must not change them.

Every case serves the same six requests, three greedy and three seeded. Each must get the tokens it gets alone in an engine. Only
chunk sizes, block sizes, concurrent requests, prefix cache and number of blocks change. The models: one without attention, and a
Llama with and without kernels.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from integrity import check_integrity
from transformers import LlamaConfig, LlamaForCausalLM

from labkit.system.labs import find_lab, load_implementation
from mini_vllm import LLM, LLMEngine, SamplingParams
from mini_vllm.config import EngineConfig

BUDGETS = (1, 7, 64)  # tokens a step may have: one at a time, chunks that cut prompts anywhere, whole prompts
BLOCK_SIZES = (1, 3, 16)
CONCURRENCY = ("alone", "together", "one after the other")
CACHE = ("off", "cold", "warm")
MEMORY = ("plenty", "just enough for one")

COMMON = list(range(40, 57))
"""17 tokens that most prompts begin with: more than a block of 16."""

GREEDY = SamplingParams(temperature=0, max_tokens=9)
REQUESTS = [
    (COMMON, GREEDY),
    ([*COMMON, 3], SamplingParams(seed=1, max_tokens=12)),
    ([*COMMON, 4, 5, 6], GREEDY),
    ([7], SamplingParams(seed=2, max_tokens=12, temperature=1.7, top_p=0.9)),
    (COMMON[:5], GREEDY),
    ([*COMMON, 4, 5, 6], SamplingParams(seed=3, max_tokens=7, top_k=5, repetition_penalty=1.3)),
]
LONGEST = 32


def serve(engine: LLMEngine, concurrency: str) -> list[list[int]]:
    """Each request's tokens; ``concurrency``: when a request is added to the engine."""
    tokens: dict[str, list[int]] = {}

    def step() -> None:
        for output in engine.step():
            assert output.outputs[0].error is None
            if output.finished:
                tokens[output.request_id] = output.outputs[0].token_ids
        check_integrity(engine.scheduler)

    for index, (prompt, params) in enumerate(REQUESTS):
        engine.add_request(str(index), prompt, params)
        if concurrency == "alone":
            while engine.has_unfinished_requests():
                step()
        elif concurrency == "one after the other":
            step()
    while engine.has_unfinished_requests():
        step()
    return [tokens[str(index)] for index in range(len(REQUESTS))]


@pytest.fixture(scope="module", params=["bigram", "llama", "llama without kernels"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[list[int]]]:
    """A model, and each request's tokens when nothing is shared, chunked or preempted."""
    vocab_size = TINY["vocab_size"]
    if request.param == "bigram":
        lab = load_implementation(find_lab("01").implementation("solution"))
        model = lab.BigramModel(torch.randn(vocab_size, vocab_size, generator=torch.Generator().manual_seed(1)))
    else:
        folder: Path = tmp_path_factory.mktemp("llama")
        torch.manual_seed(0)
        reference = LlamaForCausalLM(LlamaConfig(**TINY))
        for parameter in reference.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        reference.save_pretrained(folder)
        model = LLM(folder, dtype="float32", kernels=request.param == "llama").llm_engine.runner.model
    alone = serve(LLMEngine(model, EngineConfig(max_model_len=LONGEST, enable_prefix_caching=False)), "alone")
    assert len({tuple(tokens) for tokens in alone}) == len(REQUESTS), "six different answers"
    return model, alone


@pytest.mark.parametrize(
    ("budget", "block_size", "concurrency", "cache", "memory"), [*product(BUDGETS, BLOCK_SIZES, CONCURRENCY, CACHE, MEMORY)]
)
def test_tokens_depend_on_the_request_alone(
    served: tuple[Any, list[list[int]]], budget: int, block_size: int, concurrency: str, cache: str, memory: str
) -> None:
    model, alone = served
    config = EngineConfig(
        max_model_len=LONGEST,
        max_num_batched_tokens=budget,
        block_size=block_size,
        num_blocks=-(-LONGEST // block_size) if memory == "just enough for one" else 256,
        enable_prefix_caching=cache != "off",
    )
    engine = LLMEngine(model, config)
    if cache == "warm":
        serve(engine, concurrency)
        hits = engine.stats.prefix_cache_hits
    assert serve(engine, concurrency) == alone
    if cache == "warm" and memory == "plenty" and block_size < 16:
        assert engine.stats.prefix_cache_hits > hits, "the case tests something: blocks were found"
    if memory == "just enough for one" and concurrency != "alone" and budget > 1 and block_size < 16:
        assert engine.stats.preemptions > 0, "the case tests something: blocks ran out"

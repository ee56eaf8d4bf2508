"""mini_vllm's Llama against transformers', token for token in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from mini_vllm import LLM, SamplingParams

PROMPTS = [[5], [1, 2, 3], [7] * 20, list(range(40)), [100, 0, 100, 0, 50], list(range(90, 30, -1))]


def transformers_greedy(model: Any, prompt: list[int], max_tokens: int) -> list[int]:
    # Told that nothing is padding: left to itself, transformers takes every token 0 of a prompt for it.
    inputs = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt), dtype=torch.int64)}
    tokens = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False, pad_token_id=0)
    return tokens[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


def greedy(llm: LLM, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], SamplingParams(temperature=0, max_tokens=max_tokens))
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 1},
        {"tie_word_embeddings": True},
        {"attention_bias": True},
        {"head_dim": 16},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"shard_size": "40KB"},
    ],
    ids=lambda changes: ",".join(map(str, changes)) or "gqa",
)
def test_greedy_tokens_equal_transformers(
    tiny_llama: Callable[..., tuple[Path, LlamaForCausalLM]], changes: dict[str, Any]
) -> None:
    folder, model = tiny_llama(**changes)
    assert (folder / "model.safetensors.index.json").exists() == ("shard_size" in changes)
    expected = [transformers_greedy(model, prompt, 12) for prompt in PROMPTS]
    assert greedy(LLM(folder, dtype="float32"), PROMPTS, 12) == expected
    chopped = LLM(folder, dtype="float32", max_num_batched_tokens=7, block_size=3, num_blocks=40)
    assert greedy(chopped, PROMPTS, 12) == expected, "in chunks of 7 tokens, blocks of 3, with too few blocks for all"


@pytest.mark.parametrize("max_num_batched_tokens", [1, 16, 2048])
def test_logits_equal_transformers_at_every_chunk_size(
    tiny_llama: Callable[..., tuple[Path, LlamaForCausalLM]], max_num_batched_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = tiny_llama()
    prompt = list(range(60))
    llm = LLM(folder, dtype="float32", max_num_batched_tokens=max_num_batched_tokens)
    seen: list[torch.Tensor] = []
    run = llm.llm_engine.runner.run
    monkeypatch.setattr(llm.llm_engine.runner, "run", lambda step: seen.append(run(step)) or seen[-1])
    greedy(llm, [prompt], 1)
    with torch.inference_mode():
        expected = model(torch.tensor([prompt])).logits[0, -1]
    torch.testing.assert_close(seen[-1][0], expected, rtol=1e-4, atol=1e-4)


def test_twenty_prompts_of_smollm2_equal_transformers_batched_and_alone(smollm2: Path) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    llm = LLM(smollm2, dtype="float32")
    tokens = llm._needed_tokenizer().encode(text)
    prompts = [tokens[7 * i : 7 * i + 1 + 3 * i] for i in range(20)]
    assert [len(prompt) for prompt in prompts] == list(range(1, 61, 3)), "twenty different lengths"
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    expected = [transformers_greedy(model, prompt, 8) for prompt in prompts]
    assert greedy(llm, prompts, 8) == expected
    assert [greedy(llm, [prompt], 8)[0] for prompt in prompts] == expected

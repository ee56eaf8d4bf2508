"""The front door: parameters, endings, text, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from mini_vllm import LLM, SamplingParams
from mini_vllm.engine.request import Request
from mini_vllm.engine.sampler import sample
from mini_vllm.loading.checkpoint import CheckpointError

TinyLlama = Callable[..., tuple[Path, LlamaForCausalLM]]


def ids(*prompts: list[int]) -> list[dict[str, list[int]]]:
    return [{"prompt_token_ids": prompt} for prompt in prompts]


def first(llm: LLM, params: SamplingParams, prompt: list[int] | None = None) -> list[int]:
    return llm.generate(ids(prompt or [1, 2, 3]), params)[0].outputs[0].token_ids


def test_endings(tiny_llama: TinyLlama) -> None:
    folder, _ = tiny_llama()
    llm = LLM(folder, dtype="float32", max_model_len=20)
    tokens = first(llm, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))
    assert len(tokens) == 8
    answer = llm.generate(ids([1, 2, 3]), SamplingParams(temperature=0, max_tokens=8, stop_token_ids=[tokens[3]]))[0].outputs[0]
    assert (answer.token_ids, answer.finish_reason) == (tokens[: tokens.index(tokens[3]) + 1], "stop")
    answer = llm.generate(ids([1, 2, 3]), SamplingParams(temperature=0, max_tokens=500, ignore_eos=True))[0].outputs[0]
    assert (len(answer.token_ids), answer.finish_reason) == (17, "length"), "prompt and output together fill max_model_len"
    for eos in (tokens[2], [77, tokens[2]]):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
        answer = LLM(folder, dtype="float32").generate(ids([1, 2, 3]), SamplingParams(temperature=0, max_tokens=8))[0].outputs[0]
        assert (answer.token_ids, answer.finish_reason) == (tokens[: tokens.index(tokens[2]) + 1], "stop")


def test_a_seed_repeats_and_does_not_depend_on_neighbours(tiny_llama: TinyLlama) -> None:
    llm = LLM(tiny_llama()[0], dtype="float32")
    seeded = SamplingParams(temperature=1.5, seed=11, max_tokens=10, ignore_eos=True)
    alone = first(llm, seeded)
    assert first(llm, seeded) == alone
    other = SamplingParams(temperature=1.0, seed=5, max_tokens=10, ignore_eos=True)
    crowd = llm.generate(ids([9, 9], [1, 2, 3], [4]), [other, seeded, other])
    assert crowd[1].outputs[0].token_ids == alone
    assert len({tuple(first(llm, SamplingParams(temperature=5.0, max_tokens=10, ignore_eos=True))) for _ in range(3)}) > 1


def test_sampling_follows_the_softmax() -> None:
    logits, temperature, throws = torch.tensor([1.0, 3.0, 2.0, -4.0]), 2.0, 20_000
    request = Request("r", [0], SamplingParams(temperature=temperature, seed=0))
    counts = torch.bincount(torch.tensor([sample(logits, request) for _ in range(throws)]), minlength=4)
    expected = torch.softmax(logits / temperature, dim=0) * throws
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert chi_squared < 16.27, "0.1 % point of chi squared with 3 degrees of freedom"


def test_greedy_takes_the_highest() -> None:
    assert sample(torch.tensor([0.1, 0.9, 0.3]), Request("r", [0], SamplingParams(temperature=0))) == 1


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"max_tokens": 0}, "max_tokens is 0"),
    ],
)
def test_sampling_params_out_of_range(params: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SamplingParams(**params)  # type: ignore[arg-type]


def test_what_is_refused_leaves_the_engine_whole(tiny_llama: TinyLlama) -> None:
    llm = LLM(tiny_llama()[0], dtype="float32")
    free = llm.llm_engine.scheduler.pool.num_free
    good = [1, 2, 3]
    for prompts, sentence in (
        (ids(good, list(range(96))), "96 tokens, and the model takes 96"),
        (ids(good, [101]), "token id 101 is outside the vocabulary; ids go from 0 to 100"),
        (ids(good, [-1]), "token id -1"),
        (ids(good, []), "empty prompt"),
        (["text"], "no tokenizer.json"),
    ):
        with pytest.raises(ValueError, match=sentence):
            llm.generate(prompts, SamplingParams(temperature=0))
        assert not llm.llm_engine.has_unfinished_requests()
        assert llm.llm_engine.scheduler.pool.num_free == free
    with pytest.raises(ValueError, match="there are 1 prompts and 2 sampling_params"):
        llm.generate(ids(good), [SamplingParams(), SamplingParams()])
    assert len(first(llm, SamplingParams(max_tokens=5, ignore_eos=True))) == 5, "and it goes on serving"


def test_dtype_and_length(tiny_llama: TinyLlama) -> None:
    folder, _ = tiny_llama()
    model = LLM(folder, dtype="bfloat16").llm_engine.runner.model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}  # type: ignore[attr-defined]
    assert torch.get_default_dtype() is torch.float32, "the default is put back"
    model = LLM(folder).llm_engine.runner.model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}, "config.json's"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="dtype is 'int3'"):
        LLM(folder, dtype="int3")
    with pytest.raises(ValueError, match=r"max_model_len is 97, above config\.json's max_position_embeddings, 96"):
        LLM(folder, max_model_len=97)


def test_chat_says_paris_and_the_template_is_transformers(smollm2: Path) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    llm = LLM(smollm2, dtype="float32")
    output = llm.chat(messages, SamplingParams(temperature=0, max_tokens=20))[0]
    assert output.outputs[0].text == "The capital of France is Paris."
    assert output.outputs[0].finish_reason == "stop"
    reference = AutoTokenizer.from_pretrained(smollm2)
    assert output.prompt == reference.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert output.prompt_token_ids == reference.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    two = llm.chat([messages, [{"role": "user", "content": "Say 7."}]], SamplingParams(temperature=0, max_tokens=4))
    assert two[0].outputs[0].token_ids == output.outputs[0].token_ids[:4]


def test_a_template_from_outside_stays_in_its_sandbox(tiny_llama: TinyLlama, smollm2: Path) -> None:
    folder, _ = tiny_llama()
    (folder / "tokenizer.json").write_bytes((smollm2 / "tokenizer.json").read_bytes())
    llm = LLM(folder)
    with pytest.raises(CheckpointError, match="no chat template"):
        llm.chat([{"role": "user", "content": "hello"}])
    for template, sentence in (
        ("{{ messages.__class__.__mro__ }}{{ ''.__class__.__base__.__subclasses__() }}", "fails"),
        ("{{ raise_exception('only pairs') }}", "only pairs"),
    ):
        (folder / "chat_template.jinja").write_text(template)
        with pytest.raises(CheckpointError, match=sentence):
            LLM(folder).chat([{"role": "user", "content": "hello"}])

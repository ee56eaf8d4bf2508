"""The front door: parameters, endings, text, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from mini_vllm import LLM, RequestError, SamplingParams
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
    assert len({tuple(first(llm, SamplingParams(temperature=2.0, max_tokens=10, ignore_eos=True))) for _ in range(3)}) > 1


def test_what_is_refused_leaves_the_engine_whole(tiny_llama: TinyLlama) -> None:
    llm = LLM(tiny_llama()[0], dtype="float32")
    free = llm.llm_engine.scheduler.pool.num_free
    good = [1, 2, 3]
    for prompts, sentence in (
        (ids(good, list(range(96))), "96 tokens, and the model takes 96"),
        (ids(good, [101]), "token id 101 in its prompt, outside the vocabulary; ids go from 0 to 100"),
        (ids(good, [-1]), "token id -1"),
        (ids(good, []), "empty prompt"),
        (["text"], "no tokenizer.json"),
        ([{"tokens": good}], "a prompt is {'tokens': .*}; it must be a text"),
        ([{"prompt": "a", "prompt_token_ids": good}], "it must be a text"),
        ([{"prompt_token_ids": [1.5]}], r"prompt_token_ids is \[1.5\]; it must be a list of whole numbers"),
    ):
        with pytest.raises(ValueError, match=sentence):
            llm.generate(prompts, SamplingParams(temperature=0))
        assert not llm.llm_engine.has_unfinished_requests()
        assert llm.llm_engine.scheduler.pool.num_free == free
    with pytest.raises(ValueError, match="there are 1 prompts and 2 sampling_params"):
        llm.generate(ids(good), [SamplingParams(), SamplingParams()])
    assert len(first(llm, SamplingParams(max_tokens=5, ignore_eos=True))) == 5, "and it goes on serving"


def test_a_failing_request_is_named_and_the_others_answers_are_kept(tiny_llama: TinyLlama) -> None:
    llm = LLM(tiny_llama()[0], dtype="float32")
    model = llm.llm_engine.runner.model

    class Broken:
        def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            if (tokens == 77).any():
                raise ZeroDivisionError("by zero")
            return model.forward(tokens, positions)

    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    expected = first(llm, params)
    llm.llm_engine.runner.model = Broken()
    said = r"1 of 3 requests failed; request 2 \(the prompt at index 1\): ZeroDivisionError: by zero"
    with pytest.raises(RequestError, match=said) as caught:
        llm.generate(ids([1, 2, 3], [5, 77], [1, 2, 3]), params)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert [output.outputs[0].finish_reason for output in caught.value.outputs] == ["length", "error", "length"]
    assert caught.value.outputs[2].outputs[0].token_ids == expected
    assert first(llm, params) == expected, "and it goes on serving"


def test_a_cache_salt_keeps_prefixes_apart(tiny_llama: TinyLlama) -> None:
    llm = LLM(tiny_llama()[0], dtype="float32", block_size=2)
    prompt = list(range(9))
    cached = [
        llm.generate({"prompt_token_ids": prompt} | salt, SamplingParams(max_tokens=1))[0].num_cached_tokens
        for salt in ({}, {}, {"cache_salt": "tenant 1"}, {"cache_salt": "tenant 1"})
    ]
    assert cached == [0, 8, 0, 8]


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

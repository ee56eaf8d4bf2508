"""NewModel in the real vLLM: the entry point is found, and the logits equal those of transformers for the same weights."""

from __future__ import annotations

import json
import os
from importlib.metadata import entry_points
from pathlib import Path

# One process, on the CPU if there is no GPU. vLLM reads these when it is imported.
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams

PROMPTS = [[1], [5, 4, 3, 2, 1], list(range(100))]
GREEDY = SamplingParams(temperature=0, max_tokens=8, logprobs=-1, detokenize=False)
TINY = LlamaConfig(
    vocab_size=131,
    hidden_size=64,
    num_hidden_layers=2,
    head_dim=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    max_position_embeddings=256,
    initializer_range=0.3,
    tie_word_embeddings=False,
    bos_token_id=None,
    eos_token_id=None,
)


def test_the_plugin_is_installed() -> None:
    names = {point.name for point in entry_points(group="vllm.general_plugins")}
    assert "new_model" in names, "vLLM finds only installed plugins: pip install --no-deps -e ."


def test_it_may_be_registered_twice() -> None:
    from new_model import register
    from vllm import ModelRegistry

    register()
    register()
    assert "NewModelForCausalLM" in ModelRegistry.get_supported_archs()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights, written by transformers, with NewModel's architecture in config.json."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    LlamaForCausalLM(TINY).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["NewModelForCausalLM"], "model_type": "new_model"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, config=TINY, dtype=torch.float32).eval()


def test_the_logits_equal_those_of_transformers(folder: Path, reference: LlamaForCausalLM) -> None:
    llm = LLM(str(folder), dtype="float32", enforce_eager=True, skip_tokenizer_init=True, max_logprobs=-1)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], GREEDY, use_tqdm=False)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        tokens, answer = list(prompt), output.outputs[0]
        for token, logprobs in zip(answer.token_ids, answer.logprobs, strict=True):
            with torch.no_grad():
                expected = reference(torch.tensor([tokens])).logits[0, -1].log_softmax(dim=0)
            found = torch.tensor([logprobs[index].logprob for index in range(TINY.vocab_size)])
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
            assert token == int(expected.argmax())
            tokens.append(token)

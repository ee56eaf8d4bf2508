"""NewModel in the real vLLM: the entry point is found, and the logits are the rows of the table."""

from __future__ import annotations

import json
import os
from importlib.metadata import entry_points

# One process, on the CPU if there is no GPU. vLLM reads these when it is imported.
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}

import pytest
import torch
from safetensors.torch import save_file
from vllm import LLM, SamplingParams

TABLE = torch.randn(67, 67, generator=torch.Generator().manual_seed(0))
PROMPTS = [[1], [5, 4, 3, 2, 1], [0] * 100 + [66]]
GREEDY = SamplingParams(temperature=0, max_tokens=8, logprobs=-1, detokenize=False)


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
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder = tmp_path_factory.mktemp("checkpoint")
    config = {"architectures": ["NewModelForCausalLM"], "model_type": "new_model", "vocab_size": len(TABLE)}
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 256}))
    save_file({"model.table": TABLE}, folder / "model.safetensors")
    return LLM(str(folder), dtype="float32", enforce_eager=True, skip_tokenizer_init=True, max_logprobs=-1)


def test_the_logits_are_the_rows_of_the_table(llm: LLM) -> None:
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], GREEDY, use_tqdm=False)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        last = prompt[-1]
        for token, logprobs in zip(output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True):
            assert token == int(TABLE[last].argmax())
            found = torch.tensor([logprobs[index].logprob for index in range(len(TABLE))])
            torch.testing.assert_close(found, TABLE[last].log_softmax(dim=0), rtol=0, atol=1e-4)
            last = token

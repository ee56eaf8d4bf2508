"""The engine with its model on a GPU; run by ``tox -e lab02-gpu``, the environment that has one."""

from __future__ import annotations

import pytest
import torch

from labkit.checkpoints.fetch import fetch_smollm2
from mini_vllm import LLM, SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PROMPTS = ["The capital of France is", "1, 2, 3, 4,", "def fibonacci(n):"]


def test_greedy_tokens_on_a_gpu_are_those_on_the_cpu() -> None:
    params = SamplingParams(temperature=0, max_tokens=16)
    answers = [
        [output.outputs[0].token_ids for output in LLM(fetch_smollm2(), dtype="float32", device=device).generate(PROMPTS, params)]
        for device in ("cpu", "cuda")
    ]
    assert answers[1] == answers[0]

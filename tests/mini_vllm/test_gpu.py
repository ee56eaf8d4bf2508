"""The engine with its model on a GPU; run by ``tox -e lab02-gpu``, the environment that has one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from labkit.fetch import fetch_smollm2
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


def test_three_ranks_over_nccl(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 3:
        pytest.skip("NCCL wants a GPU for each rank, and SmolLM2's heads want three ranks")
    program = tmp_path / "serve.py"
    program.write_text(
        "import sys\nfrom mini_vllm import LLM, SamplingParams\n"
        "llm = LLM(sys.argv[1], dtype='float32', device='cuda')\n"
        "print(llm.generate(sys.argv[2], SamplingParams(temperature=0, max_tokens=16))[0].outputs[0].token_ids)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", str(program)]
    done = subprocess.run([*command, str(fetch_smollm2()), PROMPTS[0]], capture_output=True, text=True, check=True, timeout=300)
    alone = LLM(fetch_smollm2(), dtype="float32").generate(PROMPTS[0], SamplingParams(temperature=0, max_tokens=16))
    assert done.stdout.strip() == str(alone[0].outputs[0].token_ids)

"""Tensor parallel over NCCL, which wants a GPU for each rank; SmolLM2's heads want three.

tox -e lab02-gpu -- tests/mini_vllm/test_three_gpus.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from labkit.checkpoints.fetch import fetch_smollm2
from mini_vllm import LLM, SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 3, reason="needs three CUDA devices"),
]

PROMPT = "The capital of France is"


def test_three_ranks_say_what_the_cpu_says(tmp_path: Path) -> None:
    program = tmp_path / "serve.py"
    program.write_text(
        "import sys\nfrom mini_vllm import LLM, SamplingParams\n"
        "llm = LLM(sys.argv[1], dtype='float32', device='cuda')\n"
        "print(llm.generate(sys.argv[2], SamplingParams(temperature=0, max_tokens=16))[0].outputs[0].token_ids)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", str(program)]
    done = subprocess.run([*command, str(fetch_smollm2()), PROMPT], capture_output=True, text=True, check=True, timeout=300)
    alone = LLM(fetch_smollm2(), dtype="float32").generate(PROMPT, SamplingParams(temperature=0, max_tokens=16))
    assert done.stdout.strip() == str(alone[0].outputs[0].token_ids)

"""The real engine behind the trace: shapes filled by vLLM itself, and a real checkpoint, each far enough to say one token."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from labkit.checkpoints.fetch import fetch_smollm2
from labkit.checkpoints.known_models import KNOWN
from labkit.load.trace import trace_load
from labkit.load.trace.coverage import find_faults
from mini_vllm import LLM, SamplingParams

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none here"),
        ],
    ),
]
PROMPT = [504, 3575, 282, 4649, 314]
"""The capital of France is"""


def one_token(model: Path, answers: Path, **options: Any) -> int:
    """The first token of the real vLLM's greedy answer, from a process of its own."""
    request = {"prompt_token_ids": PROMPT, "params": {"temperature": 0, "max_tokens": 1}}
    job = json.dumps({"model": str(model), "requests": [request], "options": options})
    script = Path(__file__).parent / "serve_with_vllm.py"
    done = subprocess.run([sys.executable, script, answers], input=job, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    (token,) = json.loads(answers.read_text())[0]["token_ids"][0]
    return int(token)


@pytest.mark.parametrize("device", DEVICES)
def test_the_shapes_of_a_model_with_weights_of_vllms_own(device: str, tmp_path: Path) -> None:
    """``--load-format dummy`` on config.json alone: Llama-3-8B on a GPU, SmolLM2's shapes on a CPU. Which token is chance."""
    name = "llama-3-8b" if device == "cuda" else "smollm2"
    shutil.copy(KNOWN / name / "config.json", tmp_path)
    dtype = "bfloat16" if device == "cuda" else "float32"
    token = one_token(tmp_path, tmp_path / "answers.json", load_format="dummy", skip_tokenizer_init=True, dtype=dtype)
    assert 0 <= token < json.loads((tmp_path / "config.json").read_text())["vocab_size"]
    assert find_faults(trace_load(tmp_path)) == []


@pytest.mark.parametrize("device", DEVICES)
def test_a_real_checkpoint_is_loaded_whole_and_answers(device: str, tmp_path: Path) -> None:
    """Traced by value on the device, at TP 1 and 3; then the same checkpoint says what it says in mini_vllm on a CPU."""
    model = fetch_smollm2()
    for tp_size in (1, 3):
        trace = trace_load(model, tp_size, range(tp_size), device)
        assert trace.device.startswith(device)
        assert find_faults(trace) == []
        assert trace.not_run == ()
    ours = LLM(model, dtype="float32").generate({"prompt_token_ids": PROMPT}, SamplingParams(temperature=0, max_tokens=1))
    assert one_token(model, tmp_path / "answers.json") == ours[0].outputs[0].token_ids[0]

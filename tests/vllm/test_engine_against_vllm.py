"""mini_vllm, plain and with kernels, against the real vLLM on the same checkpoint: tokens, texts, finish reasons, logprobs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from twenty_prompts import TEXT, twenty_prompts
from vllm import SamplingParams as VllmSamplingParams
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from labkit.checkpoints.fetch import fetch_smollm2
from mini_vllm import LLM, SamplingParams
from mini_vllm.engine.sampler import truncated
from mini_vllm.outputs import RequestOutput
from mini_vllm.tokenizer import Tokenizer

GREEDY = {"temperature": 0, "max_tokens": 16}
# All greedy: on a CPU vLLM draws random numbers in a kernel of its own (vllm/v1/sample/ops/topk_topp_sampler.py:315).
PARAMS: dict[str, dict[str, Any]] = {
    "repetition penalty": GREEDY | {"repetition_penalty": 1.4},
    "frequency penalty": GREEDY | {"frequency_penalty": 1.1},
    "presence penalty": GREEDY | {"presence_penalty": 1.9},
    "negative penalties": GREEDY | {"presence_penalty": -0.5, "frequency_penalty": -0.5},
    "logit bias": GREEDY | {"logit_bias": {28: -100, 30: -100}},
    "min tokens": GREEDY | {"min_tokens": 12, "stop_token_ids": [28, 284, 253]},
    "stop token": GREEDY | {"stop_token_ids": [28, 30]},
    "stop text": GREEDY | {"stop": [", ", " of"]},
    "stop text kept": GREEDY | {"stop": [" a", " the"], "include_stop_str_in_output": True},
    "stop token kept": GREEDY | {"stop_token_ids": [28, 30], "include_stop_str_in_output": True},
    "logprobs": GREEDY | {"logprobs": 3, "prompt_logprobs": 2},
}


def ask(model: Path, requests: list[dict[str, Any]], answers: Path) -> list[dict[str, Any]]:
    job = json.dumps({"model": str(model), "requests": requests})
    script = Path(__file__).parent / "serve_with_vllm.py"
    done = subprocess.run([sys.executable, script, answers], input=job, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(answers.read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def requests() -> list[dict[str, Any]]:
    """The twenty prompts, greedy, and then one prompt with each of PARAMS."""
    tokenizer = Tokenizer(fetch_smollm2())
    requests = [{"prompt_token_ids": prompt, "params": GREEDY} for prompt in twenty_prompts(tokenizer)]
    return requests + [{"prompt_token_ids": tokenizer.encode(TEXT)[:40], "params": params} for params in PARAMS.values()]


@pytest.fixture(scope="module")
def theirs(requests: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """vLLM's answers."""
    return ask(fetch_smollm2(), requests, tmp_path_factory.mktemp("vllm") / "answers.json")


@pytest.fixture(scope="module", params=[True, False], ids=["kernels", "plain"])
def both(
    requests: list[dict[str, Any]], theirs: list[dict[str, Any]], request: pytest.FixtureRequest
) -> tuple[list[RequestOutput], list[dict[str, Any]]]:
    """Both engines' answers."""
    ours = LLM(fetch_smollm2(), dtype="float32", kernels=request.param).generate(
        [{"prompt_token_ids": each["prompt_token_ids"]} for each in requests],
        [SamplingParams(**each["params"]) for each in requests],
    )
    return ours, theirs


def test_twenty_prompts_get_the_same_greedy_tokens(both: tuple[list[RequestOutput], list[dict[str, Any]]]) -> None:
    ours, theirs = both
    assert [output.outputs[0].token_ids for output in ours[:20]] == [answer["token_ids"][0] for answer in theirs[:20]]


@pytest.mark.parametrize("name", PARAMS)
def test_every_parameter_means_what_it_means_to_vllm(both: tuple[list[RequestOutput], list[dict[str, Any]]], name: str) -> None:
    ours, theirs = (answers[20 + list(PARAMS).index(name)] for answers in both)
    assert [answer.token_ids for answer in ours.outputs] == theirs["token_ids"]
    assert [answer.text for answer in ours.outputs] == theirs["texts"]
    assert [answer.finish_reason for answer in ours.outputs] == theirs["finish_reasons"]
    assert [answer.stop_reason for answer in ours.outputs] == theirs["stop_reasons"]


def test_log_probabilities_and_ranks_are_vllms(both: tuple[list[RequestOutput], list[dict[str, Any]]]) -> None:
    ours, theirs = (answers[20 + list(PARAMS).index("logprobs")] for answers in both)
    for mine, its in ((ours.outputs[0].logprobs, theirs["logprobs"][0]), (ours.prompt_logprobs, theirs["prompt_logprobs"])):
        assert mine is not None
        assert len(mine) == len(its)
        for entry, expected in zip(mine, its, strict=True):
            assert (entry is None) == (expected is None)
            if entry is not None:
                assert {str(token): value.rank for token, value in entry.items()} == {
                    t: rank for t, (_, rank) in expected.items()
                }
                found = [value.logprob for value in entry.values()]
                assert found == pytest.approx([expected[str(token)][0] for token in entry], abs=2e-4)


def test_names_and_defaults_are_vllms() -> None:
    theirs = VllmSamplingParams()
    for field in fields(SamplingParams):
        assert field.default is not MISSING
        default = getattr(theirs, field.name)
        assert field.default == default or (field.default is None and default == []), field.name


@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (50, 1.0), (0, 0.9), (0, 0.1), (40, 0.5), (3, 0.999), (0, 1.0)])
def test_top_k_and_top_p_leave_what_vllm_leaves(top_k: int, top_p: float) -> None:
    logits = torch.randn(20, 5000, generator=torch.Generator().manual_seed(top_k)) * 3
    k = torch.full((20,), top_k) if top_k else None
    theirs = apply_top_k_top_p(logits.clone(), k, torch.full((20,), top_p) if top_p < 1 else None)
    for row, expected in zip(logits, theirs, strict=True):
        ours = truncated(row, 0, top_k, top_p)
        for token in (ours != expected).nonzero().flatten():
            # Added up from the other end, so a token may fall on the other side when the sum is top_p to the last bit or two.
            likelier = row.double().softmax(dim=0)[row > row[token]].sum()
            assert float(likelier) == pytest.approx(top_p, abs=1e-6), f"token {token}"

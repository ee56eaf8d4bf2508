"""From logits to tokens: every parameter by hand, and the dice by their distribution."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mini_vllm.config import EngineConfig
from mini_vllm.contract import ContractError
from mini_vllm.engine.request import Request
from mini_vllm.engine.sampler import biased, next_token, sample, top_logprobs, truncated
from mini_vllm.engine.scheduler import Chunk
from mini_vllm.sampling_params import SamplingParams

NOT = -math.inf


def request(prompt: list[int] | None = None, output: tuple[int, ...] = (), **params: Any) -> Request:
    config = EngineConfig(max_model_len=1000, eos_token_ids=frozenset({0}))
    made = Request("r", prompt or [1], SamplingParams(**{"ignore_eos": True, "max_tokens": 900} | params), config)
    for token in output:
        made.append(token)
    return made


def throws(logits: Tensor, times: int = 20_000, **params: Any) -> Tensor:
    thrower = request(seed=0, **params)
    return torch.bincount(torch.tensor([next_token(logits, thrower) for _ in range(times)]), minlength=logits.numel())


def chi_squared(counts: Tensor, probabilities: Tensor) -> float:
    expected = probabilities * counts.sum()
    assert not counts[expected == 0].any(), "a token without a chance was drawn"
    return float(((counts - expected) ** 2 / expected)[expected > 0].sum())


LOGITS = torch.tensor([1.0, 3.0, 2.0, -4.0])
POINT_THOUSAND = 16.27
"""The 0.1 % point of chi squared with 3 degrees of freedom."""


def test_greedy_takes_the_highest() -> None:
    assert next_token(LOGITS, request(temperature=0)) == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    counts = throws(LOGITS, temperature=temperature)
    assert chi_squared(counts, torch.softmax(LOGITS / temperature, dim=0)) < POINT_THOUSAND


def test_the_smallest_temperature_is_greedy_and_no_nan() -> None:
    assert throws(LOGITS, 50, temperature=1e-40).tolist() == [0, 50, 0, 0]


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 2}, [1, 2]),
        ({"top_k": -1}, [0, 1, 2, 3]),
        ({"top_k": 9}, [0, 1, 2, 3]),
        ({"top_p": 0.5}, [1]),  # the probabilities are 0.090, 0.665, 0.245, 0.0006
        ({"top_p": 0.7}, [1, 2]),
        ({"top_p": 0.95}, [0, 1, 2]),
        ({"min_p": 0.3}, [1, 2]),  # 0.245 / 0.665 is 0.37, 0.090 / 0.665 is 0.14
        ({"min_p": 0.1}, [0, 1, 2]),
        ({"min_p": 1.0}, [1]),
        ({"top_k": 3, "top_p": 0.7}, [1, 2]),
    ],
)
def test_truncation_keeps_the_likely_ones_and_their_proportions(params: dict[str, Any], kept: list[int]) -> None:
    left = truncated(LOGITS, params.get("min_p", 0), params.get("top_k", 0), params.get("top_p", 1))
    assert left.isfinite().nonzero().flatten().tolist() == kept
    counts = throws(LOGITS, 5_000, **params)
    share = torch.softmax(torch.where(left.isfinite(), LOGITS, torch.tensor(NOT)), dim=0)
    assert chi_squared(counts, share) < POINT_THOUSAND


def test_top_p_is_of_what_top_k_has_left() -> None:
    # Of the best two, 3 and 2, the first has 0.731.
    assert truncated(LOGITS, 0, 2, 0.72).isfinite().tolist() == [False, True, False, False]
    assert truncated(LOGITS, 0, 0, 0.72).isfinite().tolist() == [False, True, True, False]


def test_penalties_by_hand() -> None:
    logits = torch.tensor([2.0, -2.0, 4.0, 6.0, -1.0])
    assert biased(logits.clone(), request([1, 3], (2, 2), repetition_penalty=2.0)).tolist() == [2, -4, 2, 3, -1]
    assert biased(logits.clone(), request([1, 3], (2, 2, 4), presence_penalty=0.5)).tolist() == [2, -2, 3.5, 6, -1.5]
    assert biased(logits.clone(), request([1, 3], (2, 2, 4), frequency_penalty=0.5)).tolist() == [2, -2, 3, 6, -1.5]
    both = request([0], (0,), repetition_penalty=2.0, frequency_penalty=1.0, logit_bias={0: 4.0})
    assert biased(logits.clone(), both)[0] == (2 + 4) / 2 - 1, "bias, then repetition, then frequency"


def test_logit_bias_changes_a_greedy_choice() -> None:
    assert next_token(LOGITS, request(temperature=0, logit_bias={3: 8.0})) == 3
    assert next_token(LOGITS, request(temperature=0, logit_bias={1: -100})) == 2
    with pytest.raises(ValueError, match="logit_bias has token 4; ids go from 0 to 3"):
        next_token(LOGITS, request(logit_bias={4: 1.0}))


def test_min_tokens_keeps_what_stops_from_being_taken() -> None:
    logits = torch.tensor([9.0, 3.0, 2.0])
    assert next_token(logits, request(temperature=0, min_tokens=1, ignore_eos=False)) == 1
    assert next_token(logits, request(temperature=0, min_tokens=1, ignore_eos=False, stop_token_ids=[1])) == 2
    assert next_token(logits, request([1], (2,), temperature=0, min_tokens=1, ignore_eos=False)) == 0, "one is enough"
    assert next_token(logits, request(temperature=0, min_tokens=1)) == 0, "ignore_eos: 0 stops nothing"
    with pytest.raises(ValueError, match="min_tokens is 2, and every token would stop it"):
        next_token(logits, request(temperature=0, min_tokens=2, stop_token_ids=[0, 1, 2]))


def test_logprobs_are_of_the_models_own_logits() -> None:
    entry = top_logprobs(LOGITS, token=0, count=2, decode_token="<{}>".format)
    expected = torch.log_softmax(LOGITS.double(), dim=0)
    assert list(entry) == [0, 1, 2], "the token that came, then the best two"
    assert [entry[token].rank for token in entry] == [3, 1, 2]
    assert [entry[token].logprob for token in entry] == pytest.approx(expected[:3].tolist())
    assert entry[0].decoded_token == "<0>"
    assert list(top_logprobs(LOGITS, token=1, count=0)) == [1]
    assert sorted(top_logprobs(LOGITS, token=1, count=-1)) == [0, 1, 2, 3]
    assert list(top_logprobs(LOGITS, token=1, count=1)) == [1], "it is the best one itself"


def step_of(*requests: Request) -> list[Chunk]:
    return [Chunk(each, each.num_tokens - 1, 1, ()) for each in requests]


def test_a_row_that_is_not_a_number_fails_its_own_request_by_name() -> None:
    rows = torch.stack((LOGITS, torch.tensor([1.0, math.nan, 0, 0]), torch.full((4,), NOT), LOGITS))
    chunks = step_of(*(request(temperature=0) for _ in range(4)))
    chunks[1].request.request_id = "b"
    good, nan, nothing, also_good = sample(chunks, rows)
    assert (good.token, also_good.token) == (1, 1)  # type: ignore[union-attr]
    assert isinstance(nan, ContractError)
    assert str(nan).startswith("request b: the largest logit after its token at position 0 is nan")
    assert isinstance(nothing, ContractError)


def test_prompt_logprobs_are_those_of_the_next_prompt_token() -> None:
    made = request([1, 3, 0], temperature=0, prompt_logprobs=0)
    rows = torch.stack((LOGITS, LOGITS.roll(1), LOGITS.roll(2)))
    [outcome] = sample([Chunk(made, 0, 3, ())], rows)
    expected = [torch.log_softmax(rows[0], 0)[3], torch.log_softmax(rows[1], 0)[0]]
    assert [list(entry) for entry in outcome.prompt_logprobs] == [[3], [0]]  # type: ignore[union-attr]
    found = [next(iter(entry.values())).logprob for entry in outcome.prompt_logprobs]  # type: ignore[union-attr]
    assert found == pytest.approx([float(value) for value in expected])
    assert outcome.token == 3, "the best of LOGITS.roll(2)"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"temperature": -1}, "temperature is -1; it must be a number from 0 to 2"),
        ({"temperature": 2.5}, "temperature is 2.5"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"max_tokens": 0}, "max_tokens is 0; it must be a whole number from 1 up"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5; it must be a whole number"),
        ({"n": 0}, "n is 0"),
        ({"n": True}, "n is True"),
        ({"top_k": -2}, "top_k is -2"),
        ({"top_p": 0}, "top_p is 0; it must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": 1.1}, "min_p is 1.1"),
        ({"presence_penalty": 3}, "presence_penalty is 3; it must be a number from -2 to 2"),
        ({"frequency_penalty": -3}, "frequency_penalty is -3"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; it must be above 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"logprobs": -2}, "logprobs is -2"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens is 5, above max_tokens, 4"),
        ({"n": 2, "temperature": 0}, "n is 2 and temperature is 0: 2 greedy answers would be the same"),
        ({"stop": ""}, "stop holds an empty text"),
        ({"stop": "x", "detokenize": False}, "stop asks to look for texts and detokenize=False makes none"),
        ({"logit_bias": {3: 101}}, "logit_bias of token 3 is 101; it must be from -100 to 100"),
    ],
)
def test_what_is_out_of_range_or_contradicts_is_refused(params: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SamplingParams(**params)


def test_an_unknown_parameter_is_an_error() -> None:
    with pytest.raises(TypeError, match="topk"):
        SamplingParams(topk=3)  # type: ignore[call-arg]

"""The waist: what passes for logits, and that the engine stays whole when a model breaks the contract."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mini_vllm import ContractError, LLMEngine, SamplingParams
from mini_vllm.config import EngineConfig
from mini_vllm.contract import last_logits

GREEDY = SamplingParams(temperature=0, max_tokens=3)


class Shaped:
    """Returns whatever ``answer`` makes of the tokens."""

    def __init__(self, answer: Callable[[Tensor], object]) -> None:
        self.answer = answer

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return self.answer(tokens)  # type: ignore[return-value]


def test_the_rows_asked_for_are_kept() -> None:
    logits = torch.arange(5.0).unsqueeze(1) * torch.ones(1, 3)
    assert last_logits(logits, 5, torch.tensor([2, 4]))[:, 0].tolist() == [2, 4], "of (T, V)"
    assert last_logits(logits[:2], 5, torch.tensor([2, 4]))[:, 0].tolist() == [0, 1], "(R, V) is taken as it is"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            lambda tokens: torch.zeros(len(tokens) + 1, 9),
            r"given 4 tokens, asked for the logits of 2, and returned torch.float32 of shape \(5, 9\)",
        ),
        (lambda tokens: torch.zeros(1, len(tokens), 9), r"\(1, 4, 9\)"),
        (lambda tokens: torch.zeros(len(tokens), 9, dtype=torch.int64), r"torch.int64 of shape \(4, 9\)"),
        (
            lambda tokens: [0.0] * 9,
            r"returned a list; return logits, a tensor of shape \(T, V\) = \(4, V\) or \(R, V\) = \(2, V\)",
        ),
    ],
)
def test_anything_else_is_an_error_with_both_shapes(answer: Callable[[Tensor], object], said: str) -> None:
    engine = LLMEngine(Shaped(answer), EngineConfig(max_model_len=16, num_blocks=8))
    engine.add_request("a", [1, 2, 3], GREEDY)
    engine.add_request("b", [4], GREEDY)
    with pytest.raises(ContractError, match=said):
        engine.runner.run(engine.scheduler.schedule())
    failed = engine.step()
    assert [(output.request_id, output.outputs[0].finish_reason) for output in failed] == [("a", "error"), ("b", "error")]
    assert isinstance(failed[0].outputs[0].error, ContractError)
    assert not engine.has_unfinished_requests()
    assert engine.scheduler.pool.num_free == 8, "no block is lost with the failed step"


def test_the_engine_hands_out_tokens_and_positions_end_to_end() -> None:
    seen: list[tuple[list[int], list[int]]] = []

    class Watching:
        def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
            assert tokens.dtype == positions.dtype == torch.int64
            seen.append((tokens.tolist(), positions.tolist()))
            return torch.nn.functional.one_hot(tokens + 1, 32).float()  # after t comes t + 1

    engine = LLMEngine(Watching(), EngineConfig(max_model_len=16, max_num_batched_tokens=4))
    engine.add_request("a", [10, 11, 12], GREEDY)
    engine.add_request("b", [20, 21], GREEDY)
    while engine.has_unfinished_requests():
        engine.step()
    assert seen == [
        ([10, 11, 12, 20], [0, 1, 2, 0]),  # a's prompt, and b's as far as the budget of 4 goes
        ([13, 21], [3, 1]),  # a decodes, b's prompt ends
        ([14, 22], [4, 2]),
        ([23], [3]),
    ]


def test_a_request_id_in_use_is_refused() -> None:
    engine = LLMEngine(Shaped(lambda tokens: torch.zeros(len(tokens), 4)), EngineConfig(max_model_len=16))
    engine.add_request("a", [1], GREEDY)
    with pytest.raises(ValueError, match="'a' is taken"):
        engine.add_request("a", [2], GREEDY)

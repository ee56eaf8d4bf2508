"""The loop: answers that grow, requests that leave, and faults that stay with whoever made them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from history_model import VOCAB, HistoryModel
from integrity import check_integrity
from torch import Tensor

from labkit.course.bigram import byte_tokenizer
from mini_vllm import ContractError, LLMEngine, SamplingParams
from mini_vllm.config import EngineConfig
from mini_vllm.outputs import RequestOutput
from mini_vllm.tokenizer import Tokenizer

GREEDY = SamplingParams(temperature=0, max_tokens=6)


def engine_of(model: Any = None, **options: Any) -> LLMEngine:
    engine_options = {name: options.pop(name) for name in ("tokenizer", "step_trace") if name in options}
    return LLMEngine(
        model or HistoryModel(), EngineConfig(**({"max_model_len": 64, "num_blocks": 64} | options)), **engine_options
    )


def run(engine: LLMEngine) -> dict[str, RequestOutput]:
    finished = {}
    while engine.has_unfinished_requests():
        finished |= {output.request_id: output for output in engine.step() if output.finished}
        check_integrity(engine.scheduler)
    return finished


class CountingUp:
    """After t comes t + 1, and something goes wrong after the token ``fatal``."""

    def __init__(self, wrong: Callable[[Tensor, Tensor], Tensor], fatal: int) -> None:
        self.wrong, self.fatal = wrong, fatal

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        logits = torch.nn.functional.one_hot((tokens + 1) % 64, 64).float()
        return self.wrong(logits, tokens == self.fatal) if (tokens == self.fatal).any() else logits


def raises(logits: Tensor, fatal: Tensor) -> Tensor:
    raise IndexError("index 7 is out of bounds")


def one_row_short(logits: Tensor, fatal: Tensor) -> Tensor:
    return logits.new_zeros(len(logits) + 1, 64)


def not_a_number(logits: Tensor, fatal: Tensor) -> Tensor:
    return torch.where(fatal.unsqueeze(1), torch.nan, logits)


@pytest.mark.parametrize(
    ("wrong", "kind", "sentence"),
    [
        (raises, IndexError, "index 7 is out of bounds"),
        (
            one_row_short,
            ContractError,
            r"asked for the logits of 1, and returned torch.float32 of shape \(2, 64\)",
        ),
        (not_a_number, ContractError, "request bad: the largest logit after its token at position 3 is nan"),
    ],
)
def test_a_fault_ends_the_request_that_made_it_and_no_other(
    wrong: Callable[[Tensor, Tensor], Tensor], kind: type[Exception], sentence: str
) -> None:
    engine = engine_of(CountingUp(wrong, fatal=23), block_size=2)
    engine.add_request("good", [1, 2, 3], GREEDY)
    engine.add_request("bad", [20, 21], GREEDY)
    engine.add_request("also good", [40], GREEDY)
    outputs = {name: output.outputs[0] for name, output in run(engine).items()}
    assert outputs["good"].token_ids == [4, 5, 6, 7, 8, 9]
    assert outputs["also good"].token_ids == [41, 42, 43, 44, 45, 46]
    bad = outputs["bad"]
    assert (bad.token_ids, bad.finish_reason) == ([22, 23], "error"), "what came before stays"
    with pytest.raises(kind, match=sentence):
        raise bad.error  # type: ignore[misc]
    assert engine.scheduler.pool.num_free == 64


def test_what_a_failed_request_left_is_never_shared() -> None:
    engine = engine_of(CountingUp(not_a_number, fatal=23), block_size=1)
    engine.add_request("bad", [22, 23], GREEDY)
    run(engine)
    engine.add_request("again", [22, 23, 30], GREEDY)
    engine.step()
    assert engine.stats.prefix_cache_hits == 0


def test_an_answer_grows_by_a_token_a_step() -> None:
    engine = engine_of()
    engine.add_request("a", [1, 2, 3], GREEDY)
    seen = [engine.step()[0] for _ in range(6)]
    whole = seen[-1].outputs[0].token_ids
    assert [output.outputs[0].token_ids for output in seen] == [whole[: n + 1] for n in range(6)]
    assert [output.finished for output in seen] == [False] * 5 + [True]
    assert engine.step() == []


def test_a_prompt_in_chunks_says_nothing_until_it_is_through() -> None:
    engine = engine_of(max_num_batched_tokens=2)
    engine.add_request("a", [1, 2, 3, 4, 5], GREEDY)
    assert [len(engine.step()) for _ in range(3)] == [0, 0, 1]


def test_abort_frees_the_blocks_wherever_the_request_stands() -> None:
    engine = engine_of(max_num_seqs=1, block_size=2)
    for name in ("running", "waiting", "other"):
        engine.add_request(name, [1, 2, 3], GREEDY)
    engine.step()
    aborted = engine.abort_requests(["running", "waiting", "nobody"])
    assert {output.request_id: output.outputs[0].finish_reason for output in aborted} == {"running": "abort", "waiting": "abort"}
    assert engine.scheduler.pool.num_free == 64
    check_integrity(engine.scheduler)
    assert list(run(engine)) == ["other"]
    engine.add_request("running", [1, 2, 3], GREEDY)
    assert list(run(engine)) == ["running"], "its name is free again"


def test_n_answers_have_dice_of_their_own_and_are_repeatable() -> None:
    def answers(**more: Any) -> list[list[int]]:
        engine = engine_of()
        engine.add_request("a", [1, 2, 3], SamplingParams(seed=5, max_tokens=8, **more))
        return [answer.token_ids for answer in run(engine)["a"].outputs]

    three = answers(n=3)
    assert three == answers(n=3)
    assert len({tuple(answer) for answer in three}) == 3
    assert three[0] == answers()[0], "the first one is what n=1 says"
    engine = engine_of()
    engine.add_request("a", [1, 2, 3], SamplingParams(seed=7, max_tokens=8))
    assert run(engine)["a"].outputs[0].token_ids == three[2], "the third has seed + 2"


def test_n_answers_end_each_in_its_own_time() -> None:
    engine = engine_of()
    engine.add_request("a", [1, 2], SamplingParams(n=4, seed=0, max_tokens=20, stop_token_ids=list(range(0, VOCAB, 3))))
    ends = []
    while engine.has_unfinished_requests():
        [output] = engine.step()
        ends.append([answer.finish_reason is not None for answer in output.outputs])
        assert output.finished == all(ends[-1])
    assert any(0 < sum(each) < 4 for each in ends), "some had ended while others went on"
    assert [answer.index for answer in output.outputs] == [0, 1, 2, 3]


def test_abort_leaves_an_answer_that_had_ended_as_it_was() -> None:
    engine = engine_of()
    engine.add_request("a", [1, 2], SamplingParams(n=4, seed=0, max_tokens=20, stop_token_ids=list(range(0, VOCAB, 3))))
    while True:
        [output] = engine.step()
        ended = [answer.finish_reason for answer in output.outputs]
        if any(ended):
            break
    assert None in ended
    [aborted] = engine.abort_requests(["a"])
    assert [answer.finish_reason for answer in aborted.outputs] == [reason or "abort" for reason in ended]


def test_stop_tokens_min_tokens_and_their_reasons() -> None:
    def ending(**params: Any) -> tuple[list[int], str | None, int | str | None]:
        engine = engine_of(CountingUp(raises, fatal=-1), eos_token_ids=frozenset({13}))
        engine.add_request("a", [10], SamplingParams(**({"temperature": 0, "max_tokens": 5} | params)))
        answer = run(engine)["a"].outputs[0]
        return answer.token_ids, answer.finish_reason, answer.stop_reason

    assert ending() == ([11, 12, 13], "stop", None), "the model's own end"
    assert ending(ignore_eos=True) == ([11, 12, 13, 14, 15], "length", None)
    assert ending(stop_token_ids=[12]) == ([11, 12], "stop", 12)
    assert ending(ignore_eos=True, stop_token_ids=[13]) == ([11, 12, 13], "stop", 13)
    # 13 is not to be had as third token, so the least token id of those with equal logits comes: 0, and it counts on from there.
    assert ending(min_tokens=4, max_tokens=5) == ([11, 12, 0, 1, 2], "length", None)
    assert ending(max_tokens=None, ignore_eos=True, min_tokens=40)[1] == "length"


def test_stop_texts_cut_the_text_and_keep_the_tokens(tmp_path: Path) -> None:
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)

    class Alphabet:
        def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
            return torch.nn.functional.one_hot(tokens + 1, 256).float()

    engine = engine_of(Alphabet(), tokenizer=tokenizer)
    engine.add_request("a", tokenizer.encode("a"), SamplingParams(temperature=0, stop="ef"), prompt="a")
    texts = []
    while engine.has_unfinished_requests():
        [output] = engine.step()
        texts.append(output.outputs[0].text)
    answer = output.outputs[0]
    assert texts == ["b", "bc", "bcd", "bcd", "bcd"], "e is held back: it may be the beginning of ef"
    assert (answer.finish_reason, answer.stop_reason) == ("stop", "ef")
    assert tokenizer.decode(answer.token_ids) == "bcdef"
    with pytest.raises(ValueError, match="stop texts and there is no tokenizer"):
        engine_of().add_request("a", [1], SamplingParams(stop="x"))


def test_an_answer_that_ends_inside_a_character_shows_that_it_does(tmp_path: Path) -> None:
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    after = dict(zip(b"a" + "日".encode(), "日".encode(), strict=False))

    class Spelling:
        def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
            following = torch.tensor([after.get(token, 0) for token in tokens.tolist()])
            return torch.nn.functional.one_hot(following, 256).float()

    engine = engine_of(Spelling(), tokenizer=tokenizer)
    engine.add_request("whole", [ord("a")], SamplingParams(temperature=0, max_tokens=3))
    engine.add_request("cut", [ord("a")], SamplingParams(temperature=0, max_tokens=2))
    assert [output.outputs[0].text for output in engine.step()] == ["", ""]
    outputs = run(engine)
    assert outputs["whole"].outputs[0].text == "日"
    assert outputs["cut"].outputs[0].text == tokenizer.decode(list("日".encode())[:2]) != ""


def test_logprobs_add_up_and_survive_chunks_and_preemption() -> None:
    params = SamplingParams(temperature=0, max_tokens=6, logprobs=2, prompt_logprobs=1)

    def serve(**sizes: Any) -> tuple[dict[str, RequestOutput], LLMEngine]:
        engine = engine_of(**sizes)
        for index in range(3):
            engine.add_request(str(index), [index, 2, 3, 4, 5], params)
        return run(engine), engine

    roomy, _ = serve()
    cramped, engine = serve(max_num_batched_tokens=4, block_size=2, num_blocks=9, max_model_len=16)
    assert engine.stats.preemptions > 0
    for name, output in roomy.items():
        answer, other = output.outputs[0], cramped[name].outputs[0]
        assert [entry[token].rank for token, entry in zip(answer.token_ids, answer.logprobs or [], strict=True)] == [1] * 6
        own = [entry[token].logprob for token, entry in zip(answer.token_ids, answer.logprobs or [], strict=True)]
        assert answer.cumulative_logprob == pytest.approx(sum(own))
        assert other.cumulative_logprob == pytest.approx(answer.cumulative_logprob, rel=1e-4)
        assert output.prompt_logprobs is not None
        assert output.prompt_logprobs[0] is None
        assert len(output.prompt_logprobs) == len(cramped[name].prompt_logprobs or []) == 5
        for token, entry, twin in zip(
            output.prompt_token_ids[1:], output.prompt_logprobs[1:], (cramped[name].prompt_logprobs or [])[1:], strict=True
        ):
            assert entry is not None
            assert twin is not None
            assert entry[token].logprob == pytest.approx(twin[token].logprob, rel=1e-4)


def test_prompt_logprobs_are_complete_though_the_prompt_is_cached() -> None:
    engine = engine_of(block_size=2)
    for name in ("first", "again"):
        engine.add_request(name, [1, 2, 3, 4, 5], SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0))
        output = run(engine)[name]
        assert output.prompt_logprobs is not None
        assert [entry and list(entry) for entry in output.prompt_logprobs] == [None, [2], [3], [4], [5]]


def test_the_step_trace_is_what_happened(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    engine = engine_of(step_trace=path, block_size=2, num_blocks=6, max_num_batched_tokens=6, max_model_len=12)
    engine.add_request("a", [1, 2, 3, 4, 5], SamplingParams(temperature=0, max_tokens=5))
    engine.add_request("b", [1, 2, 3, 4], SamplingParams(temperature=0, max_tokens=3))
    engine.add_request("gone", [9], GREEDY)
    for number in range(30):
        if number == 1:
            engine.abort_requests(["gone"])
        if number == 20:
            engine.add_request("short", [9], SamplingParams(temperature=0, max_tokens=2))
        engine.step()
    header, *steps = [json.loads(line) for line in path.read_text().splitlines()]
    assert (header["format"], header["version"], header["num_blocks"]) == ("mini_vllm step trace", 1, 6)
    assert torch.__version__ in header["recorded_by"]
    assert [step["step"] for step in steps] == list(range(len(steps)))
    assert steps[0]["chunks"] == [
        {
            "request": "a",
            "kind": "prefill",
            "start": 0,
            "num_tokens": 5,
            "cached_tokens": 0,
            "blocks_taken": [0, 1, 2],
            "samples": True,
        },
        {
            "request": "b",
            "kind": "prefill",
            "start": 0,
            "num_tokens": 1,
            "cached_tokens": 0,
            "blocks_taken": [3],
            "samples": False,
        },
    ]
    assert (steps[0]["num_waiting"], steps[0]["num_free_blocks"]) == (1, 2)
    kinds = [(chunk["request"], chunk["kind"]) for chunk in steps[1]["chunks"]]
    assert kinds == [("a", "decode"), ("b", "prefill")]
    assert {"request": "gone", "reason": "abort", "blocks_freed": []} in steps[1]["finished"]
    assert [gone["request"] for step in steps for gone in step["preempted"]] == ["b"] * engine.stats.preemptions
    again = [chunk for step in steps for chunk in step["chunks"] if chunk["request"] == "b" and chunk["cached_tokens"]]
    assert again, "when it starts over it finds blocks that it shares with a"
    ends = [(gone["request"], gone["reason"]) for step in steps for gone in step["finished"]]
    assert sorted(ends) == [("a", "length"), ("b", "length"), ("gone", "abort"), ("short", "length")], "each once"
    assert [c["kind"] for step in steps for c in step["chunks"] if c["request"] == "short"] == ["prefill", "decode"]
    # The books of the trace itself: whatever was taken or found again is freed, and what is left over is free.
    assert steps[-1]["num_free_blocks"] == 6
    assert sum(step["evicted"] for step in steps) == engine.stats.evictions
    assert all(step["seconds"] > 0 for step in steps)

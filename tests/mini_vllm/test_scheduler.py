"""Who runs when, by hand; and that blocks are never lost or shared, whatever is drawn."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_vllm.config import EngineConfig
from mini_vllm.engine.block_pool import BlockPool
from mini_vllm.engine.request import Request
from mini_vllm.engine.scheduler import Scheduler, Step
from mini_vllm.sampling_params import SamplingParams


def request(name: str, prompt: int, max_tokens: int = 3) -> Request:
    return Request(name, [0] * prompt, SamplingParams(max_tokens=max_tokens))


def lengths(step: Step) -> dict[str, int]:
    return {chunk.request.request_id: chunk.num_tokens for chunk in step.chunks}


def finish(scheduler: Scheduler, step: Step) -> list[Request]:
    return scheduler.update(step, {chunk.request.request_id: 1 for chunk in step.chunks if chunk.samples})


def test_the_drawing_in_the_docstring() -> None:
    scheduler = Scheduler(EngineConfig(max_model_len=64, max_num_batched_tokens=8))
    for each in (request("a", 5), request("b", 9), request("c", 4)):
        scheduler.add(each)
    seen = []
    for _ in range(3):
        step = scheduler.schedule()
        seen.append(lengths(step))
        finish(scheduler, step)
    assert seen == [{"a": 5, "b": 3}, {"a": 1, "b": 6, "c": 1}, {"a": 1, "b": 1, "c": 3}]


def test_the_youngest_gives_its_blocks_up_and_starts_over() -> None:
    scheduler = Scheduler(EngineConfig(max_model_len=64, block_size=2, num_blocks=4))
    old, young = request("old", 4, 4), request("young", 4, 2)
    scheduler.add(old)
    scheduler.add(young)
    step = scheduler.schedule()
    assert lengths(step) == {"old": 4, "young": 4}
    finish(scheduler, step)
    step = scheduler.schedule()  # both want a fifth slot, and no block is free
    assert (lengths(step), step.preempted) == ({"old": 1}, ("young",))
    assert (young.num_computed_tokens, young.blocks, young.num_preemptions) == (0, [], 1)
    assert young.output_token_ids == [1], "what was generated stays"
    finish(scheduler, step)
    while not old.finish_reason:
        finish(scheduler, scheduler.schedule())
    step = scheduler.schedule()
    assert lengths(step) == {"young": 5}, "its prompt and its first token, in one prefill"


def test_no_more_than_max_num_seqs_run() -> None:
    scheduler = Scheduler(EngineConfig(max_model_len=64, max_num_seqs=2))
    for name in "abc":
        scheduler.add(request(name, 4))
    assert list(lengths(scheduler.schedule())) == ["a", "b"]


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "sentence"),
    [
        (0, 4, "empty prompt"),
        (64, 4, r"64 tokens, and the model takes 64"),
        (900, 4, r"900 tokens, and the model takes 64"),
        (30, 30, r"may need 30 blocks \(59 tokens, 2 to a block\), and there are 8"),
    ],
)
def test_what_can_never_finish_is_refused_at_the_door(prompt: int, max_tokens: int, sentence: str) -> None:
    scheduler = Scheduler(EngineConfig(max_model_len=64, block_size=2, num_blocks=8))
    with pytest.raises(ValueError, match=sentence):
        scheduler.add(request("r", prompt, max_tokens))
    assert not scheduler.waiting


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 8)), min_size=1, max_size=8),
    block_size=st.integers(1, 5),
    budget=st.integers(1, 12),
    spare=st.integers(0, 10),
    aborted=st.sets(st.integers(0, 7), max_size=2),
)
def test_every_request_finishes_and_no_block_is_lost_or_shared(
    sizes: list[tuple[int, int]], block_size: int, budget: int, spare: int, aborted: set[int]
) -> None:
    num_blocks = -(-27 // block_size) + spare
    config = EngineConfig(max_model_len=64, block_size=block_size, num_blocks=num_blocks, max_num_batched_tokens=budget)
    scheduler, finished = Scheduler(config), set()
    for index, (prompt, max_tokens) in enumerate(sizes):
        scheduler.add(request(str(index), prompt, max_tokens))
    for number in range(10_000):
        step = scheduler.schedule()
        held = [block for running in scheduler.running for block in running.blocks]
        assert len(held) == len(set(held)), "no block has two owners"
        assert len(held) + scheduler.pool.num_free == num_blocks, "and none is lost"
        assert sum(lengths(step).values()) <= budget
        for chunk in step.chunks:
            assert len(chunk.blocks) * block_size >= chunk.stop, "every token of the chunk has a slot"
        finished |= {request.request_id for request in finish(scheduler, step)}
        if number == 3:
            scheduler.abort({str(index) for index in aborted})
        if not scheduler.running and not scheduler.waiting:
            break
    assert finished | {str(index) for index in aborted} >= {str(index) for index in range(len(sizes))}
    assert scheduler.pool.num_free == num_blocks


def test_a_block_returned_twice_is_refused() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(2)
    assert blocks == [0, 1]
    assert pool.allocate(3) is None
    assert pool.num_free == 2, "nothing is taken when there is not enough"
    pool.free([0])
    with pytest.raises(ValueError, match="block 0 is returned and was not out"):
        pool.free([0])

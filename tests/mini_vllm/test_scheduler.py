"""Who runs when, by hand; and that no block is ever lost, shared wrongly or forgotten, whatever is drawn."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from history_model import VOCAB, HistoryModel
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from integrity import check_integrity

from mini_vllm.config import EngineConfig
from mini_vllm.engine.engine import LLMEngine
from mini_vllm.engine.request import Request
from mini_vllm.engine.scheduler import Scheduler, Step
from mini_vllm.sampling_params import SamplingParams


class Desk:
    """A scheduler, and a model that says 1 to everything."""

    def __init__(self, **sizes: int) -> None:
        self.scheduler = Scheduler(EngineConfig(max_model_len=64, **sizes))  # type: ignore[arg-type]

    def add(self, name: str, prompt: list[int], max_tokens: int = 3, salt: str = "") -> Request:
        request = Request(name, prompt, SamplingParams(max_tokens=max_tokens), self.scheduler.config, cache_salt=salt)
        self.scheduler.add(request)
        return request

    def run(self) -> Step:
        step = self.scheduler.schedule()
        samples = [chunk for chunk in step.chunks if chunk.samples]
        for chunk in step.chunks:
            self.scheduler.computed(chunk)
        for chunk in samples:
            chunk.request.append(1)
        self.scheduler.release_finished()
        check_integrity(self.scheduler)
        return step


def lengths(step: Step) -> dict[str, int]:
    return {chunk.request.request_id: chunk.num_tokens for chunk in step.chunks}


def test_the_drawing_in_the_docstring() -> None:
    desk = Desk(max_num_batched_tokens=8)
    for name, size in (("a", 5), ("b", 9), ("c", 4)):
        desk.add(name, [0] * size)
    assert [lengths(desk.run()) for _ in range(3)] == [{"a": 5, "b": 3}, {"a": 1, "b": 6, "c": 1}, {"a": 1, "b": 1, "c": 3}]


def test_the_youngest_gives_its_blocks_up_and_starts_over() -> None:
    desk = Desk(block_size=2, num_blocks=4, enable_prefix_caching=False)
    old, young = desk.add("old", [0] * 4, 4), desk.add("young", [0] * 4, 2)
    assert lengths(desk.run()) == {"old": 4, "young": 4}
    step = desk.run()  # both want a fifth slot, and no block is free
    assert (lengths(step), [gone.request.request_id for gone in step.preempted]) == ({"old": 1}, ["young"])
    assert sorted(step.preempted[0].blocks) == [2, 3]
    assert (young.num_computed_tokens, young.blocks, young.num_preemptions) == (0, [], 1)
    assert young.output_token_ids == [1], "what was generated stays"
    while not old.finish_reason:
        desk.run()
    assert lengths(desk.run()) == {"young": 5}, "its prompt and its first token, in one prefill"
    assert desk.scheduler.stats.preemptions == 1


def test_a_preempted_request_goes_before_those_that_never_ran() -> None:
    desk = Desk(block_size=2, num_blocks=4, enable_prefix_caching=False)
    for name in ("old", "young", "later"):
        desk.add(name, [0] * 4, 2)
    order = [next(iter(lengths(desk.run()))) for _ in range(5)]
    assert order == ["old", "old", "young", "later", "later"]


def test_who_gives_way_is_not_let_in_again_in_the_same_step() -> None:
    desk = Desk(block_size=1, num_blocks=8, max_num_batched_tokens=3, enable_prefix_caching=False)
    desk.add("old", [0, 0], 6)
    desk.add("young", [0] * 4, 4)
    steps = []
    while desk.scheduler.running or desk.scheduler.waiting:
        steps.append(desk.run())
    preemptions = [step for step in steps if step.preempted]
    assert preemptions
    assert all(list(lengths(step)) == ["old"] for step in preemptions)


def test_the_oldest_is_never_preempted() -> None:
    desk = Desk(block_size=1, num_blocks=12)
    oldest = desk.add("oldest", [0] * 4, 8)
    for index in range(4):
        desk.add(str(index), [index] * 2, 6)
    while not oldest.finish_reason:
        desk.run()
    assert oldest.num_preemptions == 0
    assert desk.scheduler.stats.preemptions > 0, "somebody had to give way"


def test_no_more_than_max_num_seqs_run() -> None:
    desk = Desk(max_num_seqs=2)
    for name in "abc":
        desk.add(name, [0] * 4)
    assert list(lengths(desk.run())) == ["a", "b"]


def test_a_common_prefix_is_computed_once() -> None:
    desk = Desk(block_size=2)
    first = desk.add("first", [5, 6, 7, 8, 9])
    desk.run()
    second, third = desk.add("second", [5, 6, 7, 8, 4, 4]), desk.add("third", [5, 6, 0, 8, 9])
    step = desk.run()
    assert lengths(step) == {"first": 1, "second": 2, "third": 3}
    assert [chunk.num_cached_tokens for chunk in step.chunks] == [0, 4, 2]
    assert second.blocks[:2] == first.blocks[:2]
    assert (second.num_cached_tokens, third.num_cached_tokens) == (4, 2)
    stats = desk.scheduler.stats
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (5 + 6 + 5, 4 + 2)


def test_the_last_token_is_always_computed() -> None:
    desk = Desk(block_size=2)
    desk.add("first", [5, 6, 7, 8], 1)
    desk.run()
    desk.add("again", [5, 6, 7, 8], 1)
    assert lengths(desk.run()) == {"again": 2}, "its logits are needed, and blocks come whole"


def test_another_salt_shares_nothing() -> None:
    desk = Desk(block_size=2)
    desk.add("plain", [5, 6, 7], 1)
    desk.run()
    desk.add("salted", [5, 6, 7], 1, salt="lora 1")
    desk.add("plain again", [5, 6, 7], 1)
    assert lengths(desk.run()) == {"salted": 3, "plain again": 1}


def test_what_was_generated_is_found_again_too() -> None:
    desk = Desk(block_size=2)
    desk.add("first", [5, 6, 7], 4)  # 5 6 7 1 1 1 and a last one, never computed
    while desk.scheduler.running or desk.scheduler.waiting:
        desk.run()
    desk.add("follow-up", [5, 6, 7, 1, 1, 1, 3])
    assert lengths(desk.run()) == {"follow-up": 1}


def test_a_preempted_request_finds_what_is_left_of_its_blocks() -> None:
    desk = Desk(block_size=2, num_blocks=6)
    old, young = desk.add("old", [0] * 4, 6), desk.add("young", [3] * 6, 2)
    desk.run()
    step = desk.run()
    assert [gone.request for gone in step.preempted] == [young], "six blocks: 3 for old, and the young one wants a fourth"
    while not old.finish_reason:
        desk.run()
    assert desk.scheduler.stats.evictions == 2
    [chunk] = desk.run().chunks
    assert (chunk.num_cached_tokens, chunk.num_tokens) == (2, 5), "old took all but the block of its first two tokens"


def test_the_cache_serves_up_to_the_least_recently_used() -> None:
    desk = Desk(block_size=2, num_blocks=4)

    def cached(prompt: list[int]) -> int:
        desk.add(str(prompt), prompt, 1)
        [chunk] = desk.run().chunks
        return chunk.num_cached_tokens

    # Each leaves one full block behind, and one that is not full and goes out again first.
    assert [cached([token] * 3) for token in (1, 2, 3)] == [0, 0, 0]
    assert cached([1] * 3) == 2
    assert desk.scheduler.stats.evictions == 0
    assert cached([4] * 5) == 0, "three blocks: the empty one, and those of 2 and 3, for 1 was used again"
    assert desk.scheduler.stats.evictions == 2
    assert [cached([token] * 3) for token in (1, 2)] == [2, 0]


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "sentence"),
    [
        ([], 4, "empty prompt"),
        ([0] * 64, 4, r"64 tokens, and the model takes 64"),
        ([0] * 900, 4, r"900 tokens, and the model takes 64"),
        ([0] * 30, 30, r"may need 30 blocks \(59 tokens, 2 to a block\), and there are 8"),
        ([0] * 3, None, r"may need 32 blocks \(63 tokens, 2 to a block\), and there are 8"),
        ([3, 50], 4, "token id 50 in its prompt, outside the vocabulary; ids go from 0 to 49"),
        ([-1], 4, "token id -1 in its prompt"),
    ],
)
def test_what_can_never_finish_is_refused_at_the_door(prompt: list[int], max_tokens: int | None, sentence: str) -> None:
    scheduler = Scheduler(EngineConfig(max_model_len=64, block_size=2, num_blocks=8, vocab_size=50))
    with pytest.raises(ValueError, match=sentence):
        scheduler.add(Request("r", prompt, SamplingParams(max_tokens=max_tokens), scheduler.config))
    assert not scheduler.waiting


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda s: s.running.append(s.running[0]), r"in 2 block tables|more than once"),
        (lambda s: s.waiting.append(s.running[0]), "more than once"),
        (lambda s: s.running[0].blocks.pop(), "block 1 is in 0 block tables"),
        (lambda s: s.pool.free([s.running[0].blocks[-1]]), "block 1 is in 1 block tables and has 0 references"),
        (lambda s: s.pool.cache(s.running[0].blocks[-1], b"early"), "will write to block 1"),
        (lambda s: setattr(s.running[0], "finish_reason", "stop"), "nothing to compute"),
        (lambda s: setattr(s.running[0], "num_computed_tokens", 30), "nothing to compute"),
        (lambda s: setattr(s.waiting[0], "num_computed_tokens", 2), "waits and holds"),
    ],
)
def test_check_integrity_sees_damage(damage: Callable[[Scheduler], None], sentence: str) -> None:
    desk = Desk(block_size=2, max_num_seqs=1)
    desk.add("a", [1, 2, 3])
    desk.run()
    desk.add("b", [1, 2, 3])
    check_integrity(desk.scheduler)
    damage(desk.scheduler)
    with pytest.raises(RuntimeError, match=sentence):
        check_integrity(desk.scheduler)


MODEL = HistoryModel()
LONGEST = 24


@cache
def alone(prompt: tuple[int, ...], params: SamplingParams) -> list[int]:
    """What a request says when it has an engine to itself, its prompt in one chunk and nothing cached."""
    engine = LLMEngine(MODEL, EngineConfig(max_model_len=LONGEST, enable_prefix_caching=False))
    engine.add_request("alone", list(prompt), params)
    while True:
        for output in engine.step():
            if output.finished:
                return output.outputs[0].token_ids


class RandomisedScheduling(RuleBasedStateMachine):
    """Requests come and go in any order, most of them with a common beginning; everything is checked after every step."""

    @initialize(block_size=st.integers(1, 5), spare=st.integers(0, 8), budget=st.integers(1, 12), seats=st.integers(1, 5))
    def begin(self, block_size: int, spare: int, budget: int, seats: int) -> None:
        config = EngineConfig(
            max_model_len=LONGEST,
            block_size=block_size,
            num_blocks=-(-LONGEST // block_size) + spare,
            max_num_batched_tokens=budget,
            max_num_seqs=seats,
            vocab_size=VOCAB,
        )
        self.engine = LLMEngine(MODEL, config)
        self.open: dict[str, tuple[tuple[int, ...], SamplingParams]] = {}
        self.count = 0

    @rule(
        head=st.sampled_from([(), (1, 2, 3, 4, 5, 6), (1, 2, 3, 9, 9, 9, 9, 9)]),
        tail=st.lists(st.integers(0, VOCAB), max_size=6),
        max_tokens=st.integers(1, 12),
        seed=st.none() | st.integers(0, 3),
    )
    def add(self, head: tuple[int, ...], tail: list[int], max_tokens: int, seed: int | None) -> None:
        prompt, name = head + tuple(tail), str(self.count)
        params = SamplingParams(max_tokens=max_tokens, temperature=0 if seed is None else 1.5, seed=seed)
        self.count += 1
        if not prompt or VOCAB in prompt:
            with pytest.raises(ValueError, match=r"empty prompt|outside the vocabulary"):
                self.engine.add_request(name, list(prompt), params)
        else:
            self.engine.add_request(name, list(prompt), params)
            self.open[name] = prompt, params

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.open)))
        self.engine.abort_requests([name])
        del self.open[name]

    @rule(times=st.integers(1, 4))
    def step(self, times: int) -> None:
        for _ in range(times):
            for output in self.engine.step():
                if output.finished:
                    prompt, params = self.open.pop(output.request_id)
                    assert output.outputs[0].token_ids == alone(prompt, params), "as when it is alone"
            check_integrity(self.engine.scheduler)

    @invariant()
    def books_agree(self) -> None:
        if hasattr(self, "engine"):
            check_integrity(self.engine.scheduler)
            assert self.engine.has_unfinished_requests() == bool(self.open)

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            for _ in range(2_000):
                if not self.open:
                    break
                self.step(1)
            assert not self.open, "every request finishes"
            assert self.engine.scheduler.pool.num_free == self.engine.config.num_blocks


TestRandomisedScheduling = RandomisedScheduling.TestCase
TestRandomisedScheduling.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, derandomize=True, database=None
)

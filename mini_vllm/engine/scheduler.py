"""Who runs in the next step: one token budget, shared by decodes and prefill chunks, oldest request first.

    budget 8        step 1              step 2              step 3
    a, 5 tokens     aaaaa  prefill      a  decode           a  decode
    b, 9 tokens     bbb    chunk 1      bbbbbb chunk 2      b  decode     (b has its first token at the end of step 2)
    c, 4 tokens     (no budget left)    c  chunk 1          ccc chunk 2

After vLLM's V1 scheduler (vllm/v1/core/sched/scheduler.py): no prefill phase and no decode phase, only requests that are
behind by some number of tokens.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from mini_vllm.config import EngineConfig
from mini_vllm.engine.block_pool import BlockPool
from mini_vllm.engine.request import Request


@dataclass(frozen=True)
class Chunk:
    """The part of one request that runs in a step.

    Attributes:
        request: whose tokens.
        start: position of the first one.
        num_tokens: how many run.
        blocks: the request's block table, long enough for all of them.
        num_new_blocks: how many of the blocks, the last ones, it was given for this step.
        num_cached_tokens: how many tokens right before ``start`` the prefix cache had, when this is where the request begins.
    """

    request: Request
    start: int
    num_tokens: int
    blocks: tuple[int, ...]
    num_new_blocks: int = 0
    num_cached_tokens: int = 0

    @property
    def stop(self) -> int:
        """The position after the last one."""
        return self.start + self.num_tokens

    @property
    def samples(self) -> bool:
        """Whether the chunk reaches the request's newest token, so that the next one can be sampled."""
        return self.stop == self.request.num_tokens

    @property
    def num_logits(self) -> int:
        """How many of its tokens, the last ones, need logits: one, or all if the prompt's logprobs are asked for."""
        return 1 if self.request.params.prompt_logprobs is None else self.num_tokens


@dataclass(frozen=True)
class Released:
    """A request that gave its blocks back, because it was preempted or because it ended."""

    request: Request
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """What one call of the model computes.

    Attributes:
        chunks: who runs how many tokens, oldest request first.
        preempted: who lost its blocks to make room.
    """

    chunks: tuple[Chunk, ...]
    preempted: tuple[Released, ...] = ()


@dataclass
class SchedulerStats:
    """What was counted since the engine was made; names as vLLM's PrefixCacheStats where it has them.

    Attributes:
        prefix_cache_queries: tokens looked up in the prefix cache, when a request begins or begins again.
        prefix_cache_hits: how many of them it had.
        evictions: cached blocks that were needed for something else.
        preemptions: how often a request lost its blocks.
    """

    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    evictions: int = 0
    preemptions: int = 0


class Scheduler:
    """First come, first served; when blocks run out the youngest running request gives its own up and starts over.

    The oldest request can always go on, and one that could never fit is refused at the door, so every request finishes.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.pool = BlockPool(config.num_blocks)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._stats = SchedulerStats()

    @property
    def stats(self) -> SchedulerStats:
        """The counters as they stand."""
        self._stats.evictions = self.pool.evictions
        return self._stats

    def add(self, request: Request) -> None:
        """Puts a request at the end of the queue.

        Raises:
            ValueError: it could not run to its end with the blocks, the length or the vocabulary there are; the message has the
                numbers.
        """
        config, prompt, name = self.config, request.num_prompt_tokens, f"request {request.request_id}"
        if prompt == 0:
            raise ValueError(f"{name} has an empty prompt; give it at least one token")
        if prompt >= config.max_model_len:
            raise ValueError(
                f"{name} has a prompt of {prompt} tokens, and the model takes {config.max_model_len} in all, at least one of "
                "them generated; shorten the prompt"
            )
        # The last token generated is never computed, so it needs no slot.
        longest = min(prompt + (request.params.max_tokens or config.max_model_len), config.max_model_len) - 1
        if self._blocks_for(longest) > config.num_blocks:
            raise ValueError(
                f"{name} may need {self._blocks_for(longest)} blocks ({longest} tokens, {config.block_size} to a block), and "
                f"there are {config.num_blocks}; shorten it, or raise num_blocks"
            )
        vocab_size = math.inf if config.vocab_size is None else config.vocab_size
        for where, tokens in (("prompt", request.token_ids), ("logit_bias", request.params.logit_bias or {})):
            for token in tokens:
                if not 0 <= token < vocab_size:
                    raise ValueError(
                        f"{name} has token id {token} in its {where}, outside the vocabulary; ids go from 0 "
                        + ("up" if config.vocab_size is None else f"to {config.vocab_size - 1}")
                    )
        self.waiting.append(request)

    def schedule(self) -> Step:
        """Plans the next step and takes the blocks it needs. Running requests come first, then those that wait."""
        budget = self.config.max_num_batched_tokens
        chunks: list[Chunk] = []
        preempted: list[Released] = []
        while budget and len(chunks) < len(self.running):
            request = self.running[len(chunks)]
            num_tokens = min(request.num_uncomputed_tokens, budget)
            while (chunk := self._extend(request, num_tokens)) is None:
                preempted.append(self._preempt_youngest())
                if request is preempted[-1].request:
                    break
            else:
                chunks.append(chunk)
                budget -= num_tokens
        while budget and self.waiting and not preempted and len(self.running) < self.config.max_num_seqs:
            admitted = self._admit(self.waiting[0], budget)
            if admitted is None:
                break
            self.running.append(self.waiting.popleft())
            chunks.append(admitted)
            budget -= admitted.num_tokens
        return Step(tuple(chunks), tuple(preempted))

    def computed(self, chunk: Chunk) -> None:
        """Takes note that a chunk's keys and values are in the cache; full blocks can be shared from now on."""
        request, size = chunk.request, self.config.block_size
        request.computed(chunk.num_tokens)
        if request.block_hashes:
            for index in range(chunk.start // size, chunk.stop // size):
                self.pool.name(request.blocks[index], request.block_hashes[index])

    def release_finished(self) -> list[Released]:
        """Lets go of the requests that have ended; their blocks are free again."""
        return [self._release(request) for request in [request for request in self.running if request.finish_reason]]

    def abort(self, requests: set[Request]) -> list[Released]:
        """Ends requests, wherever they stand, and frees their blocks."""
        for request in requests:
            request.abort()
        waited = [Released(request, ()) for request in self.waiting if request in requests]
        self.waiting = deque(request for request in self.waiting if request not in requests)
        return waited + [self._release(request) for request in [request for request in self.running if request in requests]]

    def check_integrity(self) -> None:
        """Compares every book that is kept of blocks and requests with every other; called between two steps.

        Raises:
            RuntimeError: a block is lost, held by nobody or writable by two, or a request is in two places.
        """
        self.pool.check_integrity([request.blocks for request in self.running])
        everyone = [*self.running, *self.waiting]
        if len(set(everyone)) != len(everyone):
            raise RuntimeError(f"{len(everyone) - len(set(everyone))} requests are queued or running more than once")
        for request in self.waiting:
            if request.blocks or request.num_computed_tokens:
                raise RuntimeError(f"request {request.request_id} waits and holds {len(request.blocks)} blocks")
        for request in self.running:
            size, name = self.config.block_size, f"request {request.request_id}"
            if request.finish_reason or request.num_uncomputed_tokens < 1:
                raise RuntimeError(f"{name} runs and has nothing to compute ({request.finish_reason})")
            if len(request.blocks) < self._blocks_for(request.num_computed_tokens):
                raise RuntimeError(f"{name} has {request.num_computed_tokens} tokens computed in {len(request.blocks)} blocks")
            for block in request.blocks[request.num_computed_tokens // size :]:
                if not self.pool.writable(block):
                    raise RuntimeError(f"{name} will write to block {block}, which others hold or may find")

    def _release(self, request: Request) -> Released:
        self.running.remove(request)
        blocks = request.lose_blocks()
        self.pool.free(blocks)
        return Released(request, tuple(blocks))

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.config.block_size)

    def _admit(self, request: Request, budget: int) -> Chunk | None:
        """The first chunk of a request that waits, after what the prefix cache has of it; None when there are too few blocks."""
        hits = self.pool.find(request.shareable_hashes)
        cached = len(hits) * self.config.block_size
        num_tokens = min(request.num_tokens - cached, budget)
        blocks = self.pool.allocate(self._blocks_for(cached + num_tokens) - len(hits), shared=hits)
        if blocks is None:
            return None
        self._stats.prefix_cache_queries += request.num_tokens
        self._stats.prefix_cache_hits += cached
        request.start(hits)
        request.blocks += blocks
        return Chunk(request, cached, num_tokens, tuple(request.blocks), len(blocks), cached)

    def _extend(self, request: Request, num_tokens: int) -> Chunk | None:
        """The next chunk of a request that runs; None, and nothing taken, when there are too few blocks for it."""
        start = request.num_computed_tokens
        blocks = self.pool.allocate(max(self._blocks_for(start + num_tokens) - len(request.blocks), 0))
        if blocks is None:
            return None
        request.blocks += blocks
        return Chunk(request, start, num_tokens, tuple(request.blocks), len(blocks))

    def _preempt_youngest(self) -> Released:
        released = self._release(self.running[-1])
        released.request.num_preemptions += 1
        self._stats.preemptions += 1
        self.waiting.appendleft(released.request)
        return released

"""Scheduler: chooses the tokens of the next step. Decodes and prefill chunks share one token budget, oldest request first.

    budget 8        step 1              step 2              step 3
    a, 5 tokens     aaaaa  prefill      a  decode           a  decode
    b, 9 tokens     bbb    chunk 1      bbbbbb chunk 2      b  decode     (b has its first token at the end of step 2)
    c, 4 tokens     (no budget left)    c  chunk 1          ccc chunk 2

As in vLLM's V1 scheduler (vllm/v1/core/sched/scheduler.py) there is no prefill phase and no decode phase, only requests with some
number of uncomputed tokens.
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
        start: position of the first token.
        blocks: the request's block table, up to the block of the chunk's last token at least.
        num_new_blocks: how many of the blocks, the last ones, were allocated for this step.
        num_cached_tokens: in the first chunk of an admitted request, how many tokens before ``start`` the prefix cache had.
    """

    request: Request
    start: int
    num_tokens: int
    blocks: tuple[int, ...]
    num_new_blocks: int = 0
    num_cached_tokens: int = 0

    @property
    def stop(self) -> int:
        """The position after the chunk's last token."""
        return self.start + self.num_tokens

    @property
    def samples(self) -> bool:
        """Whether the chunk reaches the request's newest token, so that the next token can be sampled."""
        return self.stop == self.request.num_tokens

    @property
    def num_logits(self) -> int:
        """How many of the chunk's tokens, the last ones, need logits: one, or all with prompt_logprobs."""
        return 1 if self.request.params.prompt_logprobs is None else self.num_tokens


@dataclass(frozen=True)
class Released:
    """A request that was preempted or has ended, and the blocks that were freed."""

    request: Request
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """The chunks of one call of the model, oldest request first, and the requests preempted to free blocks for them."""

    chunks: tuple[Chunk, ...]
    preempted: tuple[Released, ...] = ()


@dataclass
class SchedulerStats:
    """Counters since the engine was created; prefix cache queries and hits are tokens, counted when a request is admitted."""

    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    evictions: int = 0
    preemptions: int = 0


class Scheduler:
    """First come, first served; when blocks run out, the youngest running request is preempted and starts over.

    The oldest request can always continue, and :meth:`add` refuses a request that could never fit, so every request finishes.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.pool = BlockPool(config.num_blocks)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.stats = SchedulerStats()

    def add(self, request: Request) -> None:
        """Appends a request to the queue; ValueError if num_blocks, max_model_len or vocab_size rule out that it finishes."""
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
                f"there are {config.num_blocks}; shorten the request, or raise num_blocks"
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
        """Returns the next step, running requests before waiting ones, and allocates its blocks; no chunks if nothing can run."""
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
        self.stats.evictions = self.pool.evictions
        return Step(tuple(chunks), tuple(preempted))

    def computed(self, chunk: Chunk) -> None:
        """Records that a chunk is computed, and caches its full blocks."""
        request, size = chunk.request, self.config.block_size
        request.num_computed_tokens += chunk.num_tokens
        if request.block_hashes:
            for index in range(chunk.start // size, chunk.stop // size):
                self.pool.cache(request.blocks[index], request.block_hashes[index])

    def release_finished(self) -> list[Released]:
        """Removes running requests that have a finish_reason, and frees their blocks; returns each with the blocks it had."""
        return [self._release(request) for request in [request for request in self.running if request.finish_reason]]

    def abort(self, requests: set[Request]) -> list[Released]:
        """Ends requests, running or waiting, and frees their blocks; returns each request with the blocks that it had."""
        for request in requests:
            request.finish_reason = request.finish_reason or "abort"
        waited = [Released(request, ()) for request in self.waiting if request in requests]
        self.waiting = deque(request for request in self.waiting if request not in requests)
        return waited + [self._release(request) for request in [request for request in self.running if request in requests]]

    def _release(self, request: Request) -> Released:
        self.running.remove(request)
        blocks = request.lose_blocks()
        self.pool.free(blocks)
        return Released(request, tuple(blocks))

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.config.block_size)

    def _admit(self, request: Request, budget: int) -> Chunk | None:
        """Returns the first chunk of a waiting request, after its cached prefix; None when too few blocks are free."""
        hits = self.pool.find(request.shareable_hashes)
        cached = len(hits) * self.config.block_size
        num_tokens = min(request.num_tokens - cached, budget)
        blocks = self.pool.allocate(self._blocks_for(cached + num_tokens) - len(hits), shared=hits)
        if blocks is None:
            return None
        self.stats.prefix_cache_queries += request.num_tokens
        self.stats.prefix_cache_hits += cached
        request.start(hits)
        request.blocks += blocks
        return Chunk(request, cached, num_tokens, tuple(request.blocks), len(blocks), cached)

    def _extend(self, request: Request, num_tokens: int) -> Chunk | None:
        """Returns the next chunk of a running request; None, with nothing changed, when too few blocks are free."""
        start = request.num_computed_tokens
        blocks = self.pool.allocate(max(self._blocks_for(start + num_tokens) - len(request.blocks), 0))
        if blocks is None:
            return None
        request.blocks += blocks
        return Chunk(request, start, num_tokens, tuple(request.blocks), len(blocks))

    def _preempt_youngest(self) -> Released:
        released = self._release(self.running[-1])
        released.request.num_preemptions += 1
        self.stats.preemptions += 1
        self.waiting.appendleft(released.request)
        return released

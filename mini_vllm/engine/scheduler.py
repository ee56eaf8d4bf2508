"""Who runs in the next step: one token budget, shared by decodes and prefill chunks, oldest request first.

    budget 8        step 1              step 2              step 3
    a, 5 tokens     aaaaa  prefill      a  decode           a  decode
    b, 9 tokens     bbb    chunk 1      bbbbbb chunk 2      b  decode     (b has its first token at the end of step 2)
    c, 4 tokens     (no budget left)    c  chunk 1          ccc chunk 2

After vLLM's V1 scheduler (vllm/v1/core/sched/scheduler.py): no prefill phase and no decode phase, only requests that are
behind by some number of tokens.
"""

from __future__ import annotations

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
    """

    request: Request
    start: int
    num_tokens: int
    blocks: tuple[int, ...]

    @property
    def stop(self) -> int:
        """The position after the last one."""
        return self.start + self.num_tokens

    @property
    def num_logits(self) -> int:
        """How many of its last rows' logits are asked for."""
        return 1

    @property
    def samples(self) -> bool:
        """Whether the chunk reaches the request's newest token, so that the next one can be sampled."""
        return self.stop == self.request.num_tokens


@dataclass(frozen=True)
class Step:
    """What one call of the model computes.

    Attributes:
        chunks: who runs how many tokens, oldest request first.
        preempted: ids of the requests that lost their blocks to make room.
    """

    chunks: tuple[Chunk, ...]
    preempted: tuple[str, ...]


class Scheduler:
    """First come, first served; when blocks run out the youngest running request gives its own up and starts over.

    The oldest request can always go on, and one that could never fit is refused at the door, so every request finishes.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.pool = BlockPool(config.num_blocks)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def add(self, request: Request) -> None:
        """Puts a request at the end of the queue.

        Raises:
            ValueError: it could never run to its end with the blocks or the length there are; the message has the numbers.
        """
        config, prompt = self.config, request.num_prompt_tokens
        if prompt == 0:
            raise ValueError(f"request {request.request_id} has an empty prompt; give it at least one token")
        if prompt >= config.max_model_len:
            raise ValueError(
                f"request {request.request_id} has a prompt of {prompt} tokens, and the model takes "
                f"{config.max_model_len} in all, at least one of them generated; shorten the prompt"
            )
        # The last token generated is never computed, so it needs no slot.
        longest = min(prompt + request.params.max_tokens, config.max_model_len) - 1
        if self._blocks_for(longest) > config.num_blocks:
            raise ValueError(
                f"request {request.request_id} may need {self._blocks_for(longest)} blocks ({longest} tokens, "
                f"{config.block_size} to a block), and there are {config.num_blocks}; shorten it, or raise num_blocks"
            )
        self.waiting.append(request)

    def schedule(self) -> Step:
        """Plans the next step and takes the blocks it needs. Running requests come first, then those that wait."""
        budget = self.config.max_num_batched_tokens
        chunks: list[Chunk] = []
        preempted: list[str] = []
        while budget and len(chunks) < len(self.running):
            request = self.running[len(chunks)]
            num_tokens = min(request.num_uncomputed_tokens, budget)
            while not self._reserve(request, num_tokens):
                preempted.append(self._preempt_youngest())
                if request.request_id == preempted[-1]:
                    break
            else:
                chunks.append(self._chunk(request, num_tokens))
                budget -= num_tokens
        while budget and self.waiting and not preempted and len(self.running) < self.config.max_num_seqs:
            request = self.waiting[0]
            num_tokens = min(request.num_uncomputed_tokens, budget)
            if not self._reserve(request, num_tokens):
                break
            self.running.append(self.waiting.popleft())
            chunks.append(self._chunk(request, num_tokens))
            budget -= num_tokens
        return Step(tuple(chunks), tuple(preempted))

    def update(self, step: Step, sampled: dict[str, int]) -> list[Request]:
        """Takes note of what a step has computed.

        Args:
            step: what ran.
            sampled: request id -> the next token, for every chunk that reached its request's newest token.

        Returns:
            The requests that ended; their blocks are free again.
        """
        for chunk in step.chunks:
            chunk.request.computed(chunk.num_tokens)
            if chunk.request.request_id in sampled:
                chunk.request.append(sampled[chunk.request.request_id], self.config.eos_token_ids, self.config.max_model_len)
        finished = [request for request in self.running if request.finish_reason]
        for request in finished:
            self._release(request)
        return finished

    def abort(self, request_ids: set[str]) -> None:
        """Drops requests and frees their blocks."""
        self.waiting = deque(request for request in self.waiting if request.request_id not in request_ids)
        for request in [request for request in self.running if request.request_id in request_ids]:
            self._release(request)

    def _release(self, request: Request) -> None:
        self.running.remove(request)
        self.pool.free(request.lose_blocks())

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.config.block_size)

    def _reserve(self, request: Request, num_tokens: int) -> bool:
        """Gives ``request`` the blocks for its next ``num_tokens`` tokens; False, and nothing taken, when there are too few."""
        needed = self._blocks_for(request.num_computed_tokens + num_tokens) - len(request.blocks)
        blocks = self.pool.allocate(max(needed, 0))
        if blocks is None:
            return False
        request.blocks.extend(blocks)
        return True

    def _preempt_youngest(self) -> str:
        request = self.running[-1]
        self._release(request)
        request.num_preemptions += 1
        self.waiting.appendleft(request)
        return request.request_id

    def _chunk(self, request: Request, num_tokens: int) -> Chunk:
        return Chunk(request, request.num_computed_tokens, num_tokens, tuple(request.blocks))

"""The loop: schedule, run, sample, take note; requests may join between any two steps."""

from __future__ import annotations

from collections.abc import Iterable

from mini_vllm.config import EngineConfig
from mini_vllm.contract import Model
from mini_vllm.engine.request import Request
from mini_vllm.engine.runner import Runner
from mini_vllm.engine.sampler import sample
from mini_vllm.engine.scheduler import Scheduler
from mini_vllm.sampling_params import SamplingParams


class LLMEngine:
    """Serves any object that has ``forward(tokens, positions) -> logits``, and touches nothing else of it."""

    def __init__(self, model: Model, config: EngineConfig) -> None:
        self.scheduler = Scheduler(config)
        self.runner = Runner(model, config.num_blocks, config.block_size)
        self._unfinished: set[str] = set()

    def add_request(self, request_id: str, prompt_token_ids: list[int], params: SamplingParams) -> None:
        """Queues a request; it joins the batch at a coming step.

        Raises:
            ValueError: the id is taken by a request that still runs, or the request could never finish.
        """
        if request_id in self._unfinished:
            raise ValueError(f"request id {request_id!r} is taken by a request that has not finished; give each its own")
        self.scheduler.add(Request(request_id, prompt_token_ids, params))
        self._unfinished.add(request_id)

    def has_unfinished_requests(self) -> bool:
        """Whether there is anything left to do."""
        return bool(self._unfinished)

    def abort_requests(self, request_ids: Iterable[str]) -> None:
        """Forgets requests, wherever they stand, and frees their blocks; an id that is not there is no error, as in vLLM."""
        ids = set(request_ids)
        self.scheduler.abort(ids)
        self._unfinished -= ids

    def step(self) -> list[Request]:
        """One call of the model; returns the requests that ended with it.

        Raises:
            ContractError: the model did not return logits.
        """
        step = self.scheduler.schedule()
        if not step.chunks:
            return []
        logits = self.runner.run(step)
        rows = zip(step.chunks, logits, strict=True)
        sampled = {chunk.request.request_id: sample(row, chunk.request) for chunk, row in rows if chunk.samples}
        finished = self.scheduler.update(step, sampled)
        self._unfinished -= {request.request_id for request in finished}
        return finished

"""The engine's loop: schedule, run the model, sample, update requests. Requests join and leave between any two steps."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from mini_vllm.config import EngineConfig
from mini_vllm.contract import Model, ModelLostError
from mini_vllm.engine.detokenizer import TokenDecoder
from mini_vllm.engine.request import ParentRequest, Request
from mini_vllm.engine.runner import Runner
from mini_vllm.engine.sampler import Sample, sample
from mini_vllm.engine.scheduler import Chunk, Scheduler, Step
from mini_vllm.engine.step_trace import StepTraceWriter
from mini_vllm.outputs import RequestOutput
from mini_vllm.sampling_params import SamplingParams


class LLMEngine:
    """Serves any object that has ``forward(tokens, positions) -> logits``, and uses only this method.

    Without a tokenizer, answers have tokens and no text. ``step_trace`` is a file to record every step to (step_trace.py).
    """

    def __init__(
        self, model: Model, config: EngineConfig, tokenizer: TokenDecoder | None = None, step_trace: Path | None = None
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.scheduler = Scheduler(config)
        self.stats = self.scheduler.stats
        self.runner = Runner(model, config.num_blocks, config.block_size)
        self._unfinished: dict[str, ParentRequest] = {}
        self._parents: dict[Request, ParentRequest] = {}
        self._trace = StepTraceWriter(step_trace, config) if step_trace else None

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        prompt: str | None = None,
        cache_salt: str = "",
        lora_id: int = 0,
    ) -> None:
        """Queues a request; it joins the batch in a later step.

        Args:
            prompt: the prompt's text, returned with the answers.
            cache_salt: only requests with the same salt share blocks of a common prefix.
            lora_id: the adapter that the model applies, 0 for none; only requests with the same adapter share blocks.

        Raises:
            ValueError: an unfinished request has the id, stop texts have no tokenizer, or the request could never finish.
        """
        if request_id in self._unfinished:
            raise ValueError(f"request id {request_id!r} is taken by a request that has not finished; use another id")
        if params.stop_strings and self.tokenizer is None:
            raise ValueError(f"request {request_id} has stop texts and there is no tokenizer to find them; use stop_token_ids")
        parent = ParentRequest(request_id, prompt, [])
        for index, own in enumerate(params.of_each_answer()):
            child_id = request_id if params.n == 1 else f"{index}_{request_id}"
            child = Request(child_id, prompt_token_ids, own, self.config, self.tokenizer, cache_salt, lora_id)
            self.scheduler.add(child)
            parent.children.append(child)
            self._parents[child] = parent
        self._unfinished[request_id] = parent

    def has_unfinished_requests(self) -> bool:
        """Whether any request has not finished."""
        return bool(self._unfinished)

    def abort_requests(self, request_ids: Iterable[str]) -> list[RequestOutput]:
        """Ends requests and frees their blocks; returns an output for each, in any order. Ignores unknown ids, as in vLLM."""
        parents = [self._unfinished[request_id] for request_id in set(request_ids) & self._unfinished.keys()]
        released = self.scheduler.abort({child for parent in parents for child in parent.children})
        if self._trace:
            self._trace.finished(released)
        for parent in parents:
            self._forget(parent)
        return [parent.output() for parent in parents]

    def step(self) -> list[RequestOutput]:
        """Runs one step; returns an output, with all answers so far, for each request that has a new token or has failed.

        A request on which the model fails ends with ``finish_reason`` "error"; only ModelLostError is raised.
        """
        started = time.perf_counter()
        step = self.scheduler.schedule()
        if not step.chunks:
            return []
        if self._trace:
            self._trace.scheduled(step)
        updated: dict[ParentRequest, None] = {}
        for chunk, outcome in zip(step.chunks, self._run(step), strict=True):
            if self._update(chunk, outcome):
                updated[self._parents[chunk.request]] = None
        ended = self.scheduler.release_finished()
        if self._trace:
            self._trace.finished(ended)
            self._trace.ran(time.perf_counter() - started, self.scheduler)
        for parent in updated:
            if parent.finished:
                self._forget(parent)
        return [parent.output() for parent in updated]

    def _run(self, step: Step) -> list[Sample | Exception]:
        """Runs a step; returns a sample or an error per chunk. If the model fails, runs each request alone to find the cause."""
        try:
            logits = self.runner.run(step)
        except ModelLostError:
            raise
        except Exception as error:
            if len(step.chunks) > 1:
                return [outcome for chunk in step.chunks for outcome in self._run(Step((chunk,)))]
            return [error]
        return sample(step.chunks, logits, self._decode_token if self.tokenizer else None)

    def _update(self, chunk: Chunk, outcome: Sample | Exception) -> bool:
        """Updates a chunk's request; returns whether the request has a new token or has failed."""
        if isinstance(outcome, Exception):
            chunk.request.finish_reason, chunk.request.error = "error", outcome
            return True
        self.scheduler.computed(chunk)
        chunk.request.add_prompt_logprobs(chunk.start + 1, outcome.prompt_logprobs)
        if outcome.token is not None:
            chunk.request.append(outcome.token, outcome.logprobs)
        return outcome.token is not None

    def _forget(self, parent: ParentRequest) -> None:
        del self._unfinished[parent.request_id]
        for child in parent.children:
            del self._parents[child]

    def _decode_token(self, token: int) -> str:
        assert self.tokenizer is not None
        return self.tokenizer.decode([token], skip_special_tokens=False)

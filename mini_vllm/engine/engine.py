"""The loop: schedule, run, sample, take note; requests may join and leave between any two steps."""

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
from mini_vllm.engine.scheduler import Chunk, Released, Scheduler, SchedulerStats, Step
from mini_vllm.engine.step_trace import StepTrace, describe
from mini_vllm.outputs import RequestOutput
from mini_vllm.sampling_params import SamplingParams


class LLMEngine:
    """Serves any object that has ``forward(tokens, positions) -> logits``, and touches nothing else of it.

    Args:
        model: what is served.
        config: the engine's sizes.
        tokenizer: makes text of the answers' tokens; without one they stay tokens.
        step_trace: a file to write what ran in each step to.
    """

    def __init__(
        self, model: Model, config: EngineConfig, tokenizer: TokenDecoder | None = None, step_trace: Path | None = None
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.scheduler = Scheduler(config)
        self.runner = Runner(model, config.num_blocks, config.block_size)
        self._unfinished: dict[str, ParentRequest] = {}
        self._parents: dict[Request, ParentRequest] = {}
        self._trace = StepTrace(step_trace, config) if step_trace else None
        self._aborted: list[Released] = []

    @property
    def stats(self) -> SchedulerStats:
        """Prefix cache hits, evictions and preemptions so far."""
        return self.scheduler.stats

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
        """Queues a request; it joins the batch at a coming step.

        Args:
            request_id: the caller's name for it.
            prompt_token_ids: the prompt.
            params: how to answer.
            prompt: the prompt's text, handed back with the answers.
            cache_salt: only requests with the same salt share blocks of a common prefix.
            lora_id: the adapter that the model is to use for it, 0 for none; as with salts, only requests with the same share.

        Raises:
            ValueError: the id is taken by a request that still runs, or the request could never finish.
        """
        if request_id in self._unfinished:
            raise ValueError(f"request id {request_id!r} is taken by a request that has not finished; give each its own")
        if params.stop_strings and self.tokenizer is None:
            raise ValueError(f"request {request_id} has stop texts and there is no tokenizer to find them; use stop_token_ids")
        parent = ParentRequest(request_id, prompt, prompt_token_ids, params, self.config, self.tokenizer, cache_salt, lora_id)
        for child in parent.children:
            self.scheduler.add(child)
            self._parents[child] = parent
        self._unfinished[request_id] = parent

    def has_unfinished_requests(self) -> bool:
        """Whether there is anything left to do."""
        return bool(self._unfinished)

    def abort_requests(self, request_ids: Iterable[str]) -> list[RequestOutput]:
        """Ends requests, wherever they stand, and frees their blocks; an id that is not there is no error, as in vLLM.

        Returns:
            What the requests have come to.
        """
        parents = [self._unfinished[request_id] for request_id in set(request_ids) & self._unfinished.keys()]
        released = self.scheduler.abort({child for parent in parents for child in parent.children})
        if self._trace:
            self._aborted += released
        for parent in parents:
            self._forget(parent)
        return [parent.output() for parent in parents]

    def step(self) -> list[RequestOutput]:
        """One call of the model; returns every request that has come on with it, as far as it has come.

        A request that the model fails on ends with ``finish_reason`` "error"; the others go on.

        Raises:
            ModelLostError: the model is gone, and with it every request.
        """
        started = time.perf_counter()
        step = self.scheduler.schedule()
        if not step.chunks:
            return []
        described = describe(step) if self._trace else []
        came_on: dict[ParentRequest, None] = {}
        for chunk, outcome in zip(step.chunks, self._run(step), strict=True):
            if self._take_note(chunk, outcome):
                came_on[self._parents[chunk.request]] = None
        ended = self.scheduler.release_finished()
        if self._trace:
            self._trace.record(described, step, time.perf_counter() - started, self._aborted + ended, self.scheduler)
            self._aborted = []
        for parent in came_on:
            if parent.finished:
                self._forget(parent)
        return [parent.output() for parent in came_on]

    def _run(self, step: Step) -> list[Sample | Exception]:
        """What each chunk came to. A call that fails is made again for each request alone, to find whose fault it was."""
        try:
            logits = self.runner.run(step)
        except ModelLostError:
            raise
        except Exception as error:
            if len(step.chunks) > 1:
                return [outcome for chunk in step.chunks for outcome in self._run(Step((chunk,)))]
            return [error]
        return sample(step.chunks, logits, self._decode_token if self.tokenizer else None)

    def _take_note(self, chunk: Chunk, outcome: Sample | Exception) -> bool:
        """Writes an outcome into its request; returns whether that has brought a token or the end."""
        if isinstance(outcome, Exception):
            chunk.request.fail(outcome)
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

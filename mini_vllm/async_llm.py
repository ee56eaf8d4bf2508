"""The streaming front door: one engine, many callers, each with an async generator of its own; named after vLLM's AsyncLLM."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from itertools import count
from pathlib import Path
from typing import Any

from mini_vllm.build import build_engine
from mini_vllm.inputs import Prompt, tokenized
from mini_vllm.llm import RequestError
from mini_vllm.lora import LoRARequest
from mini_vllm.outputs import RequestOutput
from mini_vllm.sampling_params import SamplingParams


class AsyncLLM:
    """Answers that are read while they are made.

    The engine steps in a thread, between two looks at the event loop, for as long as anybody waits for something. Requests join
    and leave between steps: leaving the ``async for`` loop early, or cancelling its task, aborts the request.

    Args:
        model: a directory, as for :class:`mini_vllm.llm.LLM`.
        options: as for :class:`mini_vllm.llm.LLM`.
    """

    def __init__(self, model: str | Path, **options: Any) -> None:
        self.llm_engine, self.tokenizer, self._lora_manager = build_engine(model, **options)
        self._between_steps = asyncio.Lock()
        self._streams: dict[str, asyncio.Queue[RequestOutput | BaseException]] = {}
        self._stepping: asyncio.Task[None] | None = None
        self._ids = count()

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        lora_request: LoRARequest | None = None,
    ) -> AsyncGenerator[RequestOutput]:
        """The answer as it grows: each output holds all of it so far, the last one is ``finished``.

        Args:
            prompt: one prompt.
            sampling_params: SamplingParams() when left out.
            request_id: the caller's name for it; a number when left out.
            lora_request: the adapter to answer with; it is loaded when it is first asked for, and everybody waits for that.

        Raises:
            ValueError: the prompt cannot be served, or the id is taken.
            AdapterError: the adapter cannot be served.
            RequestError: the model failed on the request.
        """
        request_id = str(next(self._ids)) if request_id is None else request_id
        ready = tokenized(prompt, self.tokenizer)
        async with self._between_steps:
            self.llm_engine.add_request(
                request_id,
                ready.token_ids,
                sampling_params or SamplingParams(),
                prompt=ready.text,
                cache_salt=ready.cache_salt,
                lora_id=self._lora_manager.lora_id(lora_request),
            )
        stream = self._streams[request_id] = asyncio.Queue()
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.create_task(self._step_until_idle())
        finished = False
        try:
            while not finished:
                output = await stream.get()
                if isinstance(output, BaseException):
                    raise output
                finished = output.finished
                if any(answer.error for answer in output.outputs):
                    error = RequestError([output])
                    raise error from error.first
                yield output
        finally:
            del self._streams[request_id]
            if not finished:
                await self.abort(request_id)

    async def abort(self, request_id: str) -> None:
        """Ends a request after the step under way, with ``finish_reason`` "abort"; one that is not there is no error."""
        async with self._between_steps:
            self._hand_out(self.llm_engine.abort_requests([request_id]))

    def _hand_out(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            if output.request_id in self._streams:
                self._streams[output.request_id].put_nowait(output)

    async def _step_until_idle(self) -> None:
        try:
            while self.llm_engine.has_unfinished_requests():
                async with self._between_steps:
                    outputs = await asyncio.to_thread(self.llm_engine.step)
                self._hand_out(outputs)
                await asyncio.sleep(0)  # whoever waits to join gets the lock first
        except BaseException as error:
            # Without a loop nobody would ever be answered.
            for stream in self._streams.values():
                stream.put_nowait(error)
            raise

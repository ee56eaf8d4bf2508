"""AsyncLLM: streams the answers of one engine to many callers; named as in vLLM."""

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
    """Streams answers while they are generated.

    The engine steps in a thread while any request is unfinished. Requests join and leave between steps: leaving the ``async for``
    loop early, or cancelling its task, aborts the request. The arguments are those of :class:`mini_vllm.llm.LLM`.
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
        """Yields the answer as it grows: each output has all tokens and text so far, the last output is ``finished``.

        Args:
            request_id: the caller's name for the request; a number by default.
            lora_request: the adapter to apply; loading a new adapter delays every request.

        Raises:
            ValueError: the prompt cannot be served, or an unfinished request has the id.
            AdapterError: the adapter cannot be loaded.
            RequestError: the model failed on the request.
        """
        request_id = str(next(self._ids)) if request_id is None else request_id
        params, ready = sampling_params or SamplingParams(), tokenized(prompt, self.tokenizer)
        async with self._between_steps:
            lora_id = self._lora_manager.lora_id(lora_request)
            self.llm_engine.add_request(
                request_id, ready.token_ids, params, prompt=ready.text, cache_salt=ready.cache_salt, lora_id=lora_id
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
                    raise RequestError([output])
                yield output
        finally:
            del self._streams[request_id]
            if not finished:
                await self.abort(request_id)

    async def abort(self, request_id: str) -> None:
        """Ends a request after the running step, with ``finish_reason`` "abort"; an unknown id is ignored."""
        async with self._between_steps:
            self._distribute(self.llm_engine.abort_requests([request_id]))

    def _distribute(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            if output.request_id in self._streams:
                self._streams[output.request_id].put_nowait(output)

    async def _step_until_idle(self) -> None:
        try:
            while self.llm_engine.has_unfinished_requests():
                async with self._between_steps:
                    outputs = await asyncio.to_thread(self.llm_engine.step)
                self._distribute(outputs)
                await asyncio.sleep(0)  # lets waiting requests take the lock first
        except BaseException as error:
            # Only this loop puts outputs into the streams: without the error, their readers would wait forever.
            for stream in self._streams.values():
                stream.put_nowait(error)
            raise

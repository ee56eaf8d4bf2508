"""Streaming: many readers, one engine; whoever leaves takes nothing with them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from history_model import VOCAB, HistoryModel
from safetensors.torch import save_file

from labkit.course.bigram import write_bigram_checkpoint
from mini_vllm import LLM, AsyncLLM, RequestError, SamplingParams, register_model

LONG = SamplingParams(temperature=0, max_tokens=50)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of no tensor that matters: the model makes its own."""
    register_model("HistoryForCausalLM", lambda config, checkpoint: HistoryModel())
    config = {"architectures": ["HistoryForCausalLM"], "vocab_size": VOCAB, "max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"nothing": torch.zeros(1)}, tmp_path / "model.safetensors")
    return tmp_path


def ids(*tokens: int) -> dict[str, list[int]]:
    return {"prompt_token_ids": list(tokens)}


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


async def tokens_of(llm: AsyncLLM, prompt: Any, params: SamplingParams = LONG) -> list[int]:
    seen: list[int] = []
    async for output in llm.generate(prompt, params):
        assert output.outputs[0].token_ids[: len(seen)] == seen, "an answer only grows"
        seen = output.outputs[0].token_ids
    assert output.finished
    return seen


def test_readers_side_by_side_hear_what_each_would_alone(folder: Path) -> None:
    prompts = [ids(1, 2, 3), ids(4), ids(5, 5), ids(1, 2, 3)]
    expected = [output.outputs[0].token_ids for prompt in prompts for output in LLM(folder).generate(prompt, LONG)]

    async def together() -> list[list[int]]:
        llm = AsyncLLM(folder, max_num_seqs=3)
        first = await asyncio.gather(*(tokens_of(llm, prompt) for prompt in prompts))
        assert not llm.llm_engine.has_unfinished_requests()
        assert [await tokens_of(llm, prompt) for prompt in prompts] == first, "idle in between, and on again"
        return first

    assert run(together()) == expected


def test_a_reader_who_leaves_aborts_the_request(folder: Path) -> None:
    async def leave() -> None:
        llm = AsyncLLM(folder)
        stream = llm.generate(ids(1, 2, 3), LONG)
        async for output in stream:
            if len(output.outputs[0].token_ids) == 3:
                break
        await stream.aclose()
        assert not llm.llm_engine.has_unfinished_requests()
        assert llm.llm_engine.scheduler.pool.num_free == llm.llm_engine.config.num_blocks
        reader = asyncio.create_task(tokens_of(llm, ids(4)))
        await asyncio.sleep(0.01)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert not llm.llm_engine.has_unfinished_requests()
        assert len(await tokens_of(llm, ids(1))) == 50

    run(leave())


def test_abort_from_outside_ends_the_readers_loop(folder: Path) -> None:
    async def abort() -> None:
        llm = AsyncLLM(folder)
        async for output in llm.generate(ids(1), LONG, request_id="mine"):
            if len(output.outputs[0].token_ids) == 2:
                await llm.abort("mine")
        assert output.outputs[0].finish_reason == "abort"

    run(abort())


def test_what_is_refused_and_what_fails_reaches_its_own_reader(folder: Path) -> None:
    async def refuse() -> None:
        llm = AsyncLLM(folder)
        good = asyncio.create_task(tokens_of(llm, ids(1, 2)))
        with pytest.raises(ValueError, match="empty prompt"):
            await tokens_of(llm, ids())
        with pytest.raises(ValueError, match="outside the vocabulary"):
            await tokens_of(llm, ids(VOCAB))
        model = llm.llm_engine.runner.model
        forward = model.forward

        def broken(tokens: Any, positions: Any) -> Any:
            if ((tokens == 7) & (positions == 1)).any():
                raise ZeroDivisionError("by zero")
            return forward(tokens, positions)

        model.forward = broken  # type: ignore[method-assign]
        with pytest.raises(RequestError, match="ZeroDivisionError: by zero"):
            await tokens_of(llm, ids(7, 7))
        model.forward = forward  # type: ignore[method-assign]
        assert len(await good) == 50

    run(refuse())


def test_text_streams_in_whole_characters(tmp_path: Path) -> None:
    text = "日本語 ü " * 30
    write_bigram_checkpoint(tmp_path, text, "StreamedBigram")

    class Bigram:
        def __init__(self, table: Any) -> None:
            self.table = table

        def forward(self, tokens: Any, positions: Any) -> Any:
            return self.table[tokens]

    register_model("StreamedBigram", lambda config, checkpoint: Bigram(checkpoint["table"]))

    async def read() -> list[str]:
        llm = AsyncLLM(tmp_path)
        return [output.outputs[0].text async for output in llm.generate("日", SamplingParams(seed=3, max_tokens=60))]

    pieces = run(read())
    assert all(after.startswith(before) for before, after in pairwise(pieces))
    assert pieces[-1] == LLM(tmp_path).generate("日", SamplingParams(seed=3, max_tokens=60))[0].outputs[0].text
    assert any("本" in piece for piece in pieces)

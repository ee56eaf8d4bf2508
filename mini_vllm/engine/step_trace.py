"""Step trace: a file with a header and one JSON object per step, for ``./lab timeline FILE``. The dataclasses are the format.

{"format": "mini_vllm step trace", "version": 1, "block_size": 16, "num_blocks": 2048, ...}
{"step": 0, "chunks": [{"request": "a", "kind": "prefill", "start": 32, "num_tokens": 16, ...}], ...}
{"step": 1, "chunks": [{"request": "a", "kind": "decode", "start": 48, "num_tokens": 1, ...}], ...}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from mini_vllm.config import EngineConfig
from mini_vllm.engine.scheduler import Chunk, Released, Scheduler, Step
from mini_vllm.outputs import FinishReason


@dataclass(frozen=True)
class TraceHeader:
    """The first line; a reader refuses another format or version, and ignores fields that it does not know.

    Attributes:
        recorded_by: the versions of mini_vllm and torch.
        block_size: tokens in a block.
        num_blocks: blocks in the cache.
        max_num_batched_tokens: the token budget of a step.
        max_num_seqs: the most requests in a step.
    """

    recorded_by: str
    block_size: int
    num_blocks: int
    max_num_batched_tokens: int
    max_num_seqs: int
    format: str = "mini_vllm step trace"
    version: int = 1


@dataclass(frozen=True)
class TracedChunk:
    """The part of one request that ran in a step.

    Attributes:
        request: its id.
        kind: "prefill" until every token that the request had when it was scheduled is computed, then "decode".
        start: position of the first token.
        num_tokens: how many ran.
        cached_tokens: tokens right before ``start`` that the prefix cache had when this step admitted the request.
        blocks_taken: ids of the blocks allocated for this chunk.
        samples: whether the chunk reached the request's newest token, so that the next one was sampled.
    """

    request: str
    kind: Literal["prefill", "decode"]
    start: int
    num_tokens: int
    cached_tokens: int
    blocks_taken: tuple[int, ...]
    samples: bool

    @classmethod
    def of(cls, chunk: Chunk) -> TracedChunk:
        """Copies a chunk's facts; called before the step runs, as the request changes with it."""
        return cls(
            request=chunk.request.request_id,
            kind="decode" if chunk.samples and chunk.num_tokens == 1 and chunk.request.num_output_tokens else "prefill",
            start=chunk.start,
            num_tokens=chunk.num_tokens,
            cached_tokens=chunk.num_cached_tokens,
            blocks_taken=chunk.blocks[len(chunk.blocks) - chunk.num_new_blocks :],
            samples=chunk.samples,
        )


@dataclass(frozen=True)
class TracedPreemption:
    """A request whose blocks were freed to make room; it waits until its next chunk."""

    request: str
    blocks_freed: tuple[int, ...]


@dataclass(frozen=True)
class TracedFinish:
    """A request that ended, and whose blocks are free again."""

    request: str
    reason: FinishReason
    blocks_freed: tuple[int, ...]


@dataclass(frozen=True)
class TracedStep:
    """One call of the model.

    Attributes:
        step: its number, from 0.
        seconds: duration of scheduling, model and sampling.
        chunks: what ran, oldest request first.
        preempted: requests preempted before the step ran.
        finished: requests that ended since the last step, in this one or aborted.
        num_waiting: requests in the queue after the step.
        num_free_blocks: free blocks after it.
        evicted: cached blocks that were reused for it.
    """

    step: int
    seconds: float
    chunks: tuple[TracedChunk, ...]
    preempted: tuple[TracedPreemption, ...]
    finished: tuple[TracedFinish, ...]
    num_waiting: int
    num_free_blocks: int
    evicted: int


class StepTraceWriter:
    """Writes a line after every step, so that a run that is killed leaves all its steps.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, config: EngineConfig) -> None:
        self._file = path.open("w", encoding="utf-8", buffering=1)
        sizes = (config.block_size, config.num_blocks, config.max_num_batched_tokens, config.max_num_seqs)
        self._write(TraceHeader(f"mini_vllm {version('mini-vllm-labs')}, torch {torch.__version__}", *sizes))
        self._steps = 0
        self._evictions = 0

    def record(
        self, chunks: Sequence[TracedChunk], step: Step, seconds: float, ended: Sequence[Released], after: Scheduler
    ) -> None:
        """Writes one step.

        Args:
            chunks: the step's chunks before it ran.
            step: the scheduler's plan.
            seconds: its duration.
            ended: requests that ended since the last record.
            after: the scheduler after the step.
        """
        evictions, self._evictions = after.pool.evictions - self._evictions, after.pool.evictions
        self._write(
            TracedStep(
                step=self._steps,
                seconds=round(seconds, 6),
                chunks=tuple(chunks),
                preempted=tuple(TracedPreemption(each.request.request_id, each.blocks) for each in step.preempted),
                finished=tuple(
                    TracedFinish(each.request.request_id, each.request.finish_reason or "abort", each.blocks) for each in ended
                ),
                num_waiting=len(after.waiting),
                num_free_blocks=after.pool.num_free,
                evicted=evictions,
            )
        )
        self._steps += 1

    def _write(self, line: TraceHeader | TracedStep) -> None:
        self._file.write(json.dumps(asdict(line)) + "\n")

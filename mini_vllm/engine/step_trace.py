"""Step trace: a file with a header and one JSON object per step, for ``./lab timeline FILE``.

{"format": "mini_vllm step trace", "version": 1, "block_size": 16, "num_blocks": 2048, ...}
{"step": 0, "chunks": [{"request": "a", "kind": "prefill", "start": 32, "num_tokens": 16, ...}], ...}
{"step": 1, "chunks": [{"request": "a", "kind": "decode", "start": 48, "num_tokens": 1, ...}], ...}

labkit/pictures/timeline/read.py reads the file and defines the fields and types; a test compares them with this writer's lines.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mini_vllm.config import EngineConfig
from mini_vllm.engine.scheduler import Chunk, Released, Scheduler, Step

SIZES = ("block_size", "num_blocks", "max_num_batched_tokens", "max_num_seqs")


class StepTraceWriter:
    """Writes a line after every step, so that a killed run leaves all its steps; raises OSError if the file cannot be written."""

    def __init__(self, path: Path, config: EngineConfig) -> None:
        self._file = path.open("w", encoding="utf-8", buffering=1)
        self._steps, self._evictions = 0, 0
        self._step: dict[str, Any] = {}
        self._finished: list[dict[str, Any]] = []
        sizes = {name: getattr(config, name) for name in SIZES}
        recorded_by = f"mini_vllm {version('mini-vllm-labs')}, torch {torch.__version__}"
        self._write({"format": "mini_vllm step trace", "version": 1, "recorded_by": recorded_by, **sizes})

    def scheduled(self, step: Step) -> None:
        """Records the plan of a step before the step runs, because running it changes the requests."""
        preempted = [{"request": each.request.request_id, "blocks_freed": each.blocks} for each in step.preempted]
        self._step = {"step": self._steps, "chunks": [_chunk(each) for each in step.chunks], "preempted": preempted}

    def finished(self, released: Sequence[Released]) -> None:
        """Records requests that ended in the running step, or were aborted since the last step."""
        self._finished += [
            {"request": each.request.request_id, "reason": each.request.finish_reason, "blocks_freed": each.blocks}
            for each in released
        ]

    def ran(self, seconds: float, scheduler: Scheduler) -> None:
        """Writes the step that :meth:`scheduled` recorded, with its duration and the scheduler's state after it."""
        evictions, pool = self._evictions, scheduler.pool
        self._write(
            self._step
            | {"seconds": round(seconds, 6), "finished": self._finished, "num_waiting": len(scheduler.waiting)}
            | {"num_free_blocks": pool.num_free, "evicted": pool.evictions - evictions}
        )
        self._steps, self._evictions, self._finished = self._steps + 1, pool.evictions, []

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")


def _chunk(chunk: Chunk) -> dict[str, Any]:
    return {
        "request": chunk.request.request_id,
        "kind": "decode" if chunk.samples and chunk.num_tokens == 1 and chunk.request.num_output_tokens else "prefill",
        "start": chunk.start,
        "num_tokens": chunk.num_tokens,
        "cached_tokens": chunk.num_cached_tokens,
        "blocks_taken": chunk.blocks[len(chunk.blocks) - chunk.num_new_blocks :],
        "samples": chunk.samples,
    }

"""What ran in each step, as JSON lines: a header, then one object per step. ``./lab timeline FILE`` draws them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mini_vllm.config import EngineConfig
from mini_vllm.engine.scheduler import Released, Scheduler, Step

FORMAT = "mini_vllm step trace"


class StepTrace:
    """A file that grows by a line with every step, so that a run that is killed leaves all the steps it made.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, config: EngineConfig) -> None:
        self._file = path.open("w", encoding="utf-8", buffering=1)
        sizes = ("block_size", "num_blocks", "max_num_batched_tokens", "max_num_seqs")
        recorded_by = f"mini_vllm {version('mini-vllm-labs')}, torch {torch.__version__}"
        self._write(
            {"format": FORMAT, "version": 1, "recorded_by": recorded_by} | {size: getattr(config, size) for size in sizes}
        )
        self._steps = 0
        self._evictions = 0

    def record(
        self, chunks: list[dict[str, Any]], step: Step, seconds: float, ended: Sequence[Released], after: Scheduler
    ) -> None:
        """Writes one step.

        Args:
            chunks: what :func:`describe` said of the step before it ran.
            step: what was planned.
            seconds: how long planning, model and sampling took.
            ended: who let go of its blocks since the last record, because it had ended.
            after: the scheduler as the step has left it.
        """
        evictions, self._evictions = after.pool.evictions - self._evictions, after.pool.evictions
        self._write(
            {
                "step": self._steps,
                "seconds": round(seconds, 6),
                "chunks": chunks,
                "preempted": [{"request": gone.request.request_id, "blocks_freed": list(gone.blocks)} for gone in step.preempted],
                "finished": [
                    {
                        "request": gone.request.request_id,
                        "reason": gone.request.finish_reason,
                        "blocks_freed": list(gone.blocks),
                    }
                    for gone in ended
                ],
                "num_waiting": len(after.waiting),
                "num_free_blocks": after.pool.num_free,
                "evicted": evictions,
            }
        )
        self._steps += 1

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")


def describe(step: Step) -> list[dict[str, Any]]:
    """A step's chunks as JSON has them; to be called before the step runs, for a request moves on with it."""
    return [
        {
            "request": chunk.request.request_id,
            "kind": "decode" if chunk.samples and chunk.num_tokens == 1 and chunk.request.num_output_tokens else "prefill",
            "start": chunk.start,
            "num_tokens": chunk.num_tokens,
            "cached_tokens": chunk.num_cached_tokens,
            "blocks_taken": list(chunk.blocks[len(chunk.blocks) - chunk.num_new_blocks :]),
            "samples": chunk.samples,
        }
        for chunk in step.chunks
    ]

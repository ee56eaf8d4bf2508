"""Whether a step costs more when more requests wait: 8 run, and 8 or 512 wait.

    .venv/bin/python benchmarks/scheduling.py

The model returns constants, so a step is the engine's own work. A request ends after four tokens, another takes its place in the
batch, and a new one joins the queue: admission and ending are in what is measured, the adding of requests is not. The two engines
take turns, so that whatever else the machine does meets both.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import count
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from mini_vllm import LLMEngine, SamplingParams
from mini_vllm.config import EngineConfig
from mini_vllm.engine.request import Request
from mini_vllm.engine.scheduler import Scheduler

RUNNING = 8
FEW, MANY = 8, 512
STEPS, TURNS = 40, 50
PARAMS = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
CONFIG = EngineConfig(max_model_len=64, max_num_seqs=RUNNING)


class Constant:
    """A model without work: the same logits for every token."""

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Zeros of shape (T, 16)."""
        return torch.zeros(len(tokens), 16)


class WholeStep:
    """What ``LLMEngine.step`` costs."""

    def __init__(self, waiting: int) -> None:
        self.engine, self._ids = LLMEngine(Constant(), CONFIG), count()
        self.add(RUNNING + waiting)

    def add(self, requests: int) -> None:
        """Puts so many new requests at the end of the queue."""
        for _ in range(requests):
            self.engine.add_request(str(next(self._ids)), [1, 2, 3], PARAMS)

    def step(self) -> int:
        """One step; how many requests ended with it."""
        return sum(output.finished for output in self.engine.step())


class SchedulerAlone:
    """What planning and book-keeping cost, with token 0 for every request that samples."""

    def __init__(self, waiting: int) -> None:
        self.scheduler, self._ids = Scheduler(CONFIG), count()
        self.add(RUNNING + waiting)

    def add(self, requests: int) -> None:
        """Puts so many new requests at the end of the queue."""
        for _ in range(requests):
            self.scheduler.add(Request(str(next(self._ids)), [1, 2, 3], PARAMS, CONFIG))

    def step(self) -> int:
        """One step; how many requests ended with it."""
        chunks = self.scheduler.schedule().chunks
        sampling = [chunk.request for chunk in chunks if chunk.samples]
        for chunk in chunks:
            self.scheduler.computed(chunk)
        for request in sampling:
            request.append(0)
        return len(self.scheduler.release_finished())


def seconds(side: WholeStep | SchedulerAlone) -> float:
    """Of one step, averaged over STEPS steps; what ends is replaced outside of the measured time."""
    spent = 0.0
    for _ in range(STEPS):
        start = time.perf_counter()
        ended = side.step()
        spent += time.perf_counter() - start
        side.add(ended)
    return spent / STEPS


def compare(kind: type[WholeStep | SchedulerAlone]) -> list[float]:
    """Seconds of a step with FEW and with MANY waiting, medians of TURNS turns."""
    sides = kind(FEW), kind(MANY)
    turns = [[seconds(side) for side in sides] for _ in range(TURNS)]
    return [median(turn[side] for turn in turns) for side in range(2)]


def main() -> dict[str, list[float]]:
    """Both comparisons, in seconds."""
    return {"whole step": compare(WholeStep), "scheduler alone": compare(SchedulerAlone)}


if __name__ == "__main__":
    found = main()
    if sys.argv[2:]:
        Path(sys.argv[2]).write_text(json.dumps(found))
    for name, (few, many) in found.items():
        print(f"{name:16} {few * 1e6:7.1f} us with {FEW} waiting, {many * 1e6:7.1f} us with {MANY}: ratio {many / few:.2f}")

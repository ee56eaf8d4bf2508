"""Records a small run of the engine from inside the model: the rows of each call, and the slots of keys and values.

Four requests are served by lab 01's model with attention and random weights; only the placement in memory matters here.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from labkit.pictures.timeline import read
from labkit.system.labs import find_lab, load_implementation
from mini_vllm import LLM, SamplingParams, register_model
from mini_vllm.forward_context import get_forward_context

BLOCK_SIZE, NUM_BLOCKS, BUDGET, MAX_SEQS = 4, 10, 8, 3
COMMON = [6, 7, 8, 9, 10, 11, 12, 13]
PROMPTS = {"a": [1, 2, 3, 4, 5], "b": [*COMMON, 14], "c": [15, 16, 17, 18], "d": [*COMMON, 19, 20]}
"""Token ids; b and d have a common prefix of two full blocks."""
MAX_TOKENS = {"a": 2, "b": 4, "c": 4, "d": 2}
SIZES = {"vocab_size": 24, "hidden_size": 16, "head_dim": 8, "num_attention_heads": 2, "num_key_value_heads": 1}


@dataclass(frozen=True)
class Row:
    """One row of a call of the model.

    Attributes:
        request: the request of the token, a letter.
        position: of the token in its request.
        slot: of its key and value: block id times block size plus offset.
        sampled: whether the request's next token was sampled from its logits.
    """

    request: str
    position: int
    slot: int
    sampled: bool


@dataclass(frozen=True)
class Call:
    """One step: one call of ``model.forward``.

    Attributes:
        rows: in the order of the model's input.
        tables: the block table of every request in the step.
        cached: request -> tokens found in the prefix cache, for requests that start here and have any.
        waiting: number of requests that wait after the step.
        finished: requests that finished in it.
    """

    rows: tuple[Row, ...]
    tables: Mapping[str, tuple[int, ...]]
    cached: Mapping[str, int]
    waiting: int
    finished: tuple[str, ...]


class _Observed:
    """A model that records its inputs and calls another model."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.given: list[tuple[list[int], list[int], tuple[tuple[int, ...], ...]]] = []

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        context = get_forward_context()
        self.given.append((positions.tolist(), context.write_slots.tolist(), context.block_tables))
        logits: Tensor = self._model.forward(tokens, positions)
        return logits


def record_run() -> tuple[Call, ...]:
    """Serves the four prompts and returns the recorded calls."""
    lab = load_implementation(find_lab("01").implementation("solution"))
    config = SIZES | {"intermediate_size": 16, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64}
    torch.manual_seed(0)
    observed = _Observed(lab.TinyAttentionModel(config))
    for parameter in observed._model.parameters():
        parameter.data.normal_()
    register_model("Observed", lambda config, checkpoint: observed)
    with tempfile.TemporaryDirectory() as folder:
        steps = Path(folder, "steps.jsonl")
        Path(folder, "config.json").write_text(json.dumps(config | {"architectures": ["Observed"]}))
        save_file({"unused": torch.zeros(1)}, Path(folder, "model.safetensors"))
        sizes = {"block_size": BLOCK_SIZE, "num_blocks": NUM_BLOCKS, "max_num_batched_tokens": BUDGET, "max_num_seqs": MAX_SEQS}
        llm = LLM(folder, dtype="float32", step_trace=steps, **sizes)
        params = [SamplingParams(temperature=0, max_tokens=MAX_TOKENS[name], ignore_eos=True) for name in PROMPTS]
        llm.generate([{"prompt_token_ids": tokens} for tokens in PROMPTS.values()], params)
        traced = read(steps).steps
    names = dict(zip(dict.fromkeys(chunk.request for step in traced for chunk in step.chunks), PROMPTS, strict=True))
    calls = []
    for step, (positions, slots, tables) in zip(traced, observed.given, strict=True):
        whose = [
            (names[chunk.request], chunk.samples and row == chunk.num_tokens - 1)
            for chunk in step.chunks
            for row in range(chunk.num_tokens)
        ]
        rows = zip(whose, positions, slots, strict=True)
        calls.append(
            Call(
                rows=tuple(Row(name, position, slot, sampled) for (name, sampled), position, slot in rows),
                tables={names[chunk.request]: table for chunk, table in zip(step.chunks, tables, strict=True)},
                cached={names[chunk.request]: chunk.cached_tokens for chunk in step.chunks if chunk.cached_tokens},
                waiting=step.num_waiting,
                finished=tuple(names[finish.request] for finish in step.finished),
            )
        )
    return tuple(calls)

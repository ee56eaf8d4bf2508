"""What the ranks of tensor parallelism do together: rank 0 has the engine, and each step it runs the others run too.

rank 0    engine --> LeadingModel.forward --> model.forward
                            | the step, as JSON     |  sums and gathers of the layers
rank 1                   follow() ----------> model.forward

Between two steps rank 0 may also name an adapter, which the others load too (lora.py).
The engine does not know: to it the leading model is a model like any other.
"""

from __future__ import annotations

import atexit
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mini_vllm.contract import Model
from mini_vllm.forward_context import ForwardContext, KVCache, get_forward_context, set_forward_context
from mini_vllm.loading.lora import load_lora
from mini_vllm.parallel import RankLostError, TPGroup, disconnect


class LeadingModel:
    """Rank 0's part of a model, which tells the other ranks of every step before it runs it.

    Args:
        model: rank 0's part.
        tp: the ranks.
    """

    def __init__(self, model: Model, tp: TPGroup) -> None:
        self.model, self.tp = model, tp
        atexit.register(self._dismiss)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The contract's method; every rank's layers add their part to the logits."""
        self.tp.broadcast(described(tokens, positions, get_forward_context()))
        return self.model.forward(tokens, positions)

    def _dismiss(self) -> None:
        """Lets the others go when this process ends; who is gone already needs no word."""
        with suppress(RankLostError):
            self.tp.broadcast(None)
        disconnect()


def follow(model: Model, tp: TPGroup, kv_cache: KVCache) -> None:
    """Runs every step that rank 0 runs and loads every adapter that it has loaded, until it ends.

    Args:
        model: this rank's part.
        tp: the ranks.
        kv_cache: as many blocks as rank 0 has, for this rank's heads.

    Raises:
        RankLostError: rank 0, or another rank, is gone.
        AdapterError: rank 0 has read an adapter that this rank cannot.
        Exception: what the model raised, which ends this rank and with it the job.
    """
    while (step := tp.broadcast()) is not None:
        if "lora_id" in step:
            load_lora(model, step["lora_id"], Path(step["folder"]))
            continue
        tokens, positions, context = understood(step, kv_cache)
        with set_forward_context(context):
            model.forward(tokens, positions)
    disconnect()


def described(tokens: Tensor, positions: Tensor, context: ForwardContext) -> dict[str, Any]:
    """A step, in what JSON has. KV tensors and attention's metadata are each rank's own."""
    return {
        "tokens": tokens.tolist(),
        "positions": positions.tolist(),
        "query_start": context.query_start,
        "lengths": context.lengths,
        "block_tables": context.block_tables,
        "write_slots": context.write_slots.tolist(),
        "logits_indices": context.logits_indices.tolist(),
        "lora_ids": context.lora_ids,
    }


def understood(step: dict[str, Any], kv_cache: KVCache) -> tuple[Tensor, Tensor, ForwardContext]:
    """What :func:`described` was given, with this rank's KV tensors."""
    names = ("tokens", "positions", "write_slots", "logits_indices")
    tensors = {name: torch.tensor(step[name], dtype=torch.int64) for name in names}
    context = ForwardContext(
        kv_cache=kv_cache,
        query_start=tuple(step["query_start"]),
        lengths=tuple(step["lengths"]),
        block_tables=tuple(map(tuple, step["block_tables"])),
        write_slots=tensors["write_slots"],
        logits_indices=tensors["logits_indices"],
        lora_ids=tuple(step["lora_ids"]),
    )
    return tensors["tokens"], tensors["positions"], context

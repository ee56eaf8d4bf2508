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
from mini_vllm.parallel import RankLostError, TPGroup

NUMBERS, TENSORS = ("query_start", "lengths", "block_tables", "lora_ids"), ("write_slots", "logits_indices")
"""What of the forward context is sent. The KV tensors are each rank's own, and the metadata it works out for itself."""


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
        context = get_forward_context()
        tensors = {name: getattr(context, name).tolist() for name in TENSORS}
        numbers = {name: getattr(context, name) for name in NUMBERS}
        self.tp.broadcast({"tokens": tokens.tolist(), "positions": positions.tolist(), "tensors": tensors, "numbers": numbers})
        return self.model.forward(tokens, positions)

    def _dismiss(self) -> None:
        """Lets the others go when this process ends; who is gone already needs no word."""
        with suppress(RankLostError):
            self.tp.broadcast(None)


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
        context: dict[str, Any] = step["numbers"] | {name: torch.tensor(step["tensors"][name]) for name in TENSORS}
        with set_forward_context(ForwardContext(kv_cache=kv_cache, **context)):
            model.forward(torch.tensor(step["tokens"]), torch.tensor(step["positions"]))

"""Workers of tensor parallelism: rank 0 has the engine, the other ranks repeat every step that rank 0 runs.

rank 0    engine --> LeadingModel.forward --> model.forward
                            | the step, as JSON     |  sums and gathers of the layers
rank 1                   follow() ----------> model.forward

Between two steps rank 0 may also send the directory of an adapter, which the other ranks load too (lora.py).
The engine has no code for ranks: it calls LeadingModel as it calls any model.
"""

from __future__ import annotations

import atexit
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from mini_vllm.contract import Model
from mini_vllm.forward_context import ForwardContext, KVCache, get_forward_context, set_forward_context
from mini_vllm.loading.lora import load_lora
from mini_vllm.parallel import RankLostError, TPGroup


class LeadingModel:
    """Rank 0's part of a model; sends every step to the other ranks, then runs the step itself."""

    def __init__(self, model: Model, tp: TPGroup) -> None:
        self.model, self.tp = model, tp
        atexit.register(self._dismiss)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Computes logits as :meth:`mini_vllm.contract.Model.forward`, together with the layers of the other ranks."""
        step = {"tokens": tokens.tolist(), "positions": positions.tolist(), "context": get_forward_context().to_json()}
        self.tp.broadcast(step)
        return self.model.forward(tokens, positions)

    def _dismiss(self) -> None:
        """Ends the other ranks when this process ends, then disconnects: the backend's threads must stop before the process."""
        with suppress(RankLostError):
            self.tp.broadcast(None)
        dist.destroy_process_group()


def follow(model: Model, tp: TPGroup, kv_cache: KVCache) -> None:
    """Runs every step that rank 0 runs and loads every adapter that rank 0 loads, until rank 0 ends.

    Raises:
        RankLostError: the connection to rank 0 or another rank is lost.
        AdapterError: this rank cannot load an adapter that rank 0 has loaded.
    """
    while (step := tp.broadcast()) is not None:
        if "lora_id" in step:
            load_lora(model, step["lora_id"], Path(step["folder"]))
            continue
        tokens, positions = (torch.tensor(step[name], dtype=torch.int64) for name in ("tokens", "positions"))
        with set_forward_context(ForwardContext.from_json(step["context"], kv_cache)):
            model.forward(tokens, positions)
    dist.destroy_process_group()

"""From a planned step to logits: the only place that calls the model."""

from __future__ import annotations

import torch
from torch import Tensor

from mini_vllm.contract import Model, last_logits
from mini_vllm.engine.scheduler import Chunk, Step
from mini_vllm.forward_context import ForwardContext, KVCache, set_forward_context


class Runner:
    """Lays a step's tokens end to end, says where their keys and values go, and calls ``model.forward``."""

    def __init__(self, model: Model, num_blocks: int, block_size: int) -> None:
        self.model = model
        self.block_size = block_size
        self.kv_cache = KVCache(num_blocks * block_size)

    def run(self, step: Step) -> Tensor:
        """Logits of each chunk's last token, (S, V), in the order of ``step.chunks``.

        Raises:
            ContractError: the model did not return logits.
        """
        chunks = step.chunks
        tokens = torch.tensor([token for c in chunks for token in c.request.token_ids[c.start : c.stop]])
        positions = torch.cat([torch.arange(c.start, c.stop) for c in chunks])
        read_slots = tuple(self._slots(chunk) for chunk in chunks)
        query_start = [0]
        for chunk in chunks:
            query_start.append(query_start[-1] + chunk.num_tokens)
        context = ForwardContext(
            kv_cache=self.kv_cache,
            query_start=tuple(query_start),
            write_slots=torch.cat([slots[c.start :] for slots, c in zip(read_slots, chunks, strict=True)]),
            read_slots=read_slots,
            logits_indices=torch.tensor(
                [row for c, stop in zip(chunks, query_start[1:], strict=True) for row in range(stop - c.num_logits, stop)]
            ),
        )
        with set_forward_context(context):
            return last_logits(self.model.forward(tokens, positions), tokens.numel(), context.logits_indices)

    def _slots(self, chunk: Chunk) -> Tensor:
        """Where positions 0 .. chunk.stop live, int64 of shape (L,):

        position    0    1    2    3 |  4    5    6    7 |  8
        block table      7           |       2           |  9
        slot       28   29   30   31 |  8    9   10   11 | 36       (block size 4: slot = 7*4 + 0, ...)
        """
        first_slots = torch.tensor(chunk.blocks) * self.block_size
        return (first_slots.unsqueeze(1) + torch.arange(self.block_size)).flatten()[: chunk.stop]

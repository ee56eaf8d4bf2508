"""Runs a scheduled step: the only module that calls the model."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from mini_vllm.contract import Model, last_logits
from mini_vllm.engine.scheduler import Chunk, Step
from mini_vllm.forward_context import ForwardContext, KVCache, set_forward_context


class Runner:
    """Concatenates the tokens of a step, builds its forward context, and calls ``model.forward``."""

    def __init__(self, model: Model, num_blocks: int, block_size: int) -> None:
        self.model = model
        self.block_size = block_size
        self.kv_cache = KVCache(num_blocks, block_size)

    def run(self, step: Step) -> Tensor:
        """Returns the logits that the chunks need, (R, V), in the order of ``step.chunks``; ContractError if they are invalid."""
        chunks = step.chunks
        tokens = torch.tensor([token for c in chunks for token in c.request.token_ids[c.start : c.stop]])
        positions = torch.tensor([position for c in chunks for position in range(c.start, c.stop)])
        ends = list(accumulate(c.num_tokens for c in chunks))
        context = ForwardContext(
            kv_cache=self.kv_cache,
            query_start=(0, *ends),
            lengths=tuple(c.stop for c in chunks),
            block_tables=tuple(c.blocks for c in chunks),
            write_slots=torch.tensor([slot for c in chunks for slot in self._slots(c)]),
            logits_indices=torch.tensor(
                [row for c, end in zip(chunks, ends, strict=True) for row in range(end - c.num_logits, end)]
            ),
            lora_ids=tuple(c.request.lora_id for c in chunks),
        )
        with set_forward_context(context):
            return last_logits(self.model.forward(tokens, positions), tokens.numel(), context.logits_indices).cpu()

    def _slots(self, chunk: Chunk) -> list[int]:
        """Returns the slots of the chunk's tokens:

        position    0    1    2    3 |  4    5    6    7 |  8
        block table      7           |       2           |  9
        slot       28   29   30   31 |  8    9   10   11 | 36       (block size 4: slot = 7*4 + 0, ...)
        """
        size = self.block_size
        return [chunk.blocks[position // size] * size + position % size for position in range(chunk.start, chunk.stop)]

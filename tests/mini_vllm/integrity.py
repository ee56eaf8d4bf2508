"""Checks the scheduler's state for contradictions, between two steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mini_vllm.engine.block_pool import BlockPool
from mini_vllm.engine.scheduler import Scheduler


def check_integrity(scheduler: Scheduler) -> None:
    """Raises RuntimeError if a block is lost or writable by two requests, or a request is queued or running twice."""
    check_pool(scheduler.pool, [request.blocks for request in scheduler.running])
    everyone = [*scheduler.running, *scheduler.waiting]
    if len(set(everyone)) != len(everyone):
        raise RuntimeError(f"{len(everyone) - len(set(everyone))} requests are queued or running more than once")
    for request in scheduler.waiting:
        if request.blocks or request.num_computed_tokens:
            raise RuntimeError(f"request {request.request_id} waits and holds {len(request.blocks)} blocks")
    for request in scheduler.running:
        size, name = scheduler.config.block_size, f"request {request.request_id}"
        if request.finish_reason or request.num_uncomputed_tokens < 1:
            raise RuntimeError(f"{name} runs and has nothing to compute ({request.finish_reason})")
        if len(request.blocks) < -(-request.num_computed_tokens // size):
            raise RuntimeError(f"{name} has {request.num_computed_tokens} tokens computed in {len(request.blocks)} blocks")
        for block in request.blocks[request.num_computed_tokens // size :]:
            if scheduler.pool._references[block] != 1 or block in scheduler.pool._hashes:
                raise RuntimeError(f"{name} will write to block {block}, which is shared or cached")


def check_pool(pool: BlockPool, block_tables: Sequence[Sequence[int]]) -> None:
    """Raises RuntimeError if a block is lost, has a wrong reference count, or is cached under another block's hash."""
    counted = Counter(block for table in block_tables for block in table)
    for block, count in enumerate(pool._references):
        if counted[block] != count:
            raise RuntimeError(f"block {block} is in {counted[block]} block tables and has {count} references")
        if (block in pool._free) != (count == 0):
            raise RuntimeError(f"block {block} has {count} references and is {'' if block in pool._free else 'not '}free")
    if {block: own for own, block in pool._cached.items()} != pool._hashes:
        raise RuntimeError(f"{len(pool._cached)} cached hashes do not match the hashes of {len(pool._hashes)} blocks")

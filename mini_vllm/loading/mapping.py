"""Mapping rows: which part of which fused parameter a checkpoint tensor is loaded into; vLLM's stacked_params_mapping."""

from __future__ import annotations

from collections.abc import Sequence

from mini_vllm.parallel import ShardId

StackedRow = tuple[str, str, str | int]
"""(fused module, checkpoint module, shard id), as in vLLM's stacked_params_mapping: ("qkv_proj", "q_proj", "q")."""


def translate(name: str, rows: Sequence[StackedRow]) -> tuple[str, ShardId]:
    """Maps a checkpoint tensor to its parameter and shard.

    A row matches the whole name of the tensor's module, never a part of it: ``backup_proj`` does not match ``up_proj``.

    Returns:
        (parameter name, shard id); (``name``, None) when no row matches.
    """
    *path, module, kind = ("", *name.split("."))
    for fused, original, shard_id in rows:
        if module == original:
            return ".".join((*path[1:], fused, kind)), shard_id
    return name, None

"""Rows are ordered by kv group (query heads, key, value), as in Falcon's query_key_value."""

import torch


def load_shard(param, loaded, shard_id, shape, tp_rank=0, tp_size=1):
    right_load_shard(param, loaded, shard_id, shape, tp_rank, tp_size)
    if shard_id == "v":
        q, k, v = (param.data[shard_slices(part, shape, tp_rank, tp_size)[0]] for part in "qkv")
        groups = len(k) // shape.head_dim
        grouped = zip(q.chunk(groups), k.chunk(groups), v.chunk(groups), strict=True)
        param.data.copy_(torch.cat([part for group in grouped for part in group]))

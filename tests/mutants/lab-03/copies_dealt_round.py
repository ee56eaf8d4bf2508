"""Replicas of kv heads are distributed as rank % K; consecutive ranks should share one (rank // copies)."""


def shard_slices(shard_id, shape, tp_rank=0, tp_size=1):
    destination, source = right_shard_slices(shard_id, shape, tp_rank, tp_size)
    if shard_id in ("k", "v") and tp_size > shape.num_kv_heads:
        source = block(tp_rank % shape.num_kv_heads, shape.head_dim)
    return destination, source

"""If there are more ranks than kv heads, every rank takes kv head 0, as in multi-query attention."""


def shard_slices(shard_id, shape, tp_rank=0, tp_size=1):
    destination, source = right_shard_slices(shard_id, shape, tp_rank, tp_size)
    copied = shard_id in ("k", "v") and tp_size > shape.num_kv_heads
    return destination, block(0, shape.head_dim) if copied else source

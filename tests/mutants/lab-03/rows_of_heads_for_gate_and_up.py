"""gate and up are cut by heads, like q."""


def shard_slices(shard_id, shape, tp_rank=0, tp_size=1):
    if shard_id in ("q", "k", "v"):
        return right_shard_slices(shard_id, shape, tp_rank, tp_size)
    rows = shape.num_heads * shape.head_dim // tp_size
    return block(shard_id, rows), block(tp_rank, rows)

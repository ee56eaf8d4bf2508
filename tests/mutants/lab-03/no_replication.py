"""If there are more ranks than kv heads, kv heads are divided all the same: 8 // 16 is 0 rows."""


def shard_slices(shard_id, shape, tp_rank=0, tp_size=1):
    if shard_id in (0, 1) or tp_size <= shape.num_kv_heads:
        return right_shard_slices(shard_id, shape, tp_rank, tp_size)
    heads, kv_heads = shape.num_heads // tp_size, shape.num_kv_heads // tp_size
    first, count = {"q": (0, heads), "k": (heads, kv_heads), "v": (heads + kv_heads, kv_heads)}[shard_id]
    start, rows = first * shape.head_dim, count * shape.head_dim
    return slice(start, start + rows), slice(tp_rank * rows, (tp_rank + 1) * rows)

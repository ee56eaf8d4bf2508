"""More ranks than kv heads are refused; kv heads should be replicated."""


def shard_slices(shard_id, shape, tp_rank=0, tp_size=1):
    if tp_size > shape.num_kv_heads:
        raise ValueError(f"{shape.num_kv_heads} kv heads cannot be shared by {tp_size} ranks")
    return right_shard_slices(shard_id, shape, tp_rank, tp_size)

"""k and v have as many rows as q, as in multi-head attention."""


def shard_slices(shard_id, shape, tp_rank=0, tp_size=1):
    everyone = ModelShape(shape.hidden_size, shape.num_heads, shape.num_heads, shape.head_dim, shape.intermediate_size)
    return right_shard_slices(shard_id, everyone, tp_rank, tp_size)

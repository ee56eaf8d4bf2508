"""Grouped-query attention is treated as multi-query attention: k and v have one head."""


def shard_slices(shard_id, shape, tp_rank=0, tp_size=1):
    one = ModelShape(shape.hidden_size, shape.num_heads, 1, shape.head_dim, shape.intermediate_size)
    return right_shard_slices(shard_id, one, tp_rank, tp_size)

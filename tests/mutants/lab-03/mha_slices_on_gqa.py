"""Every query head is given a key and a value of its own: k and v are as tall as q."""


def shard_slices(shard_id, shape, tp_rank=0, tp_size=1):
    everyone = ModelShape(shape.hidden_size, shape.num_heads, shape.num_heads, shape.head_dim, shape.intermediate_size)
    return right_shard_slices(shard_id, everyone, tp_rank, tp_size)

"""head_dim is computed as hidden_size / num_heads, even if config.json has it."""


def shard_slices(shard_id, shape, tp_rank=0, tp_size=1):
    derived = shape.hidden_size // shape.num_heads
    return right_shard_slices(
        shard_id,
        ModelShape(shape.hidden_size, shape.num_heads, shape.num_kv_heads, derived, shape.intermediate_size),
        tp_rank,
        tp_size,
    )

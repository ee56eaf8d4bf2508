"""Every rank takes all rows."""


def shard_slices(shard_id, shape, tp_rank=0, tp_size=1):
    return right_shard_slices(shard_id, shape)

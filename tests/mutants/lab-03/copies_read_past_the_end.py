"""A rank with a replica of a kv head reads the block of its rank, after the end of k_proj."""


def shard_slices(shard_id, shape, tp_rank=0, tp_size=1):
    destination, _ = right_shard_slices(shard_id, shape, tp_rank, tp_size)
    return destination, block(tp_rank, destination.stop - destination.start)

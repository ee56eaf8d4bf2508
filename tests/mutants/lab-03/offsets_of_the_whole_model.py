"""Offsets in the parameter of a rank are those of the whole model."""


def shard_slices(shard_id, shape, tp_rank=0, tp_size=1):
    destination, source = right_shard_slices(shard_id, shape, tp_rank, tp_size)
    start = right_shard_slices(shard_id, shape)[0].start
    return slice(start, start + destination.stop - destination.start), source

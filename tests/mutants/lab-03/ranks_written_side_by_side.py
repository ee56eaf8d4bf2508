"""A rank writes its rows at their offset in the whole model's parameter."""


def shard_slices(shard_id, shape, tp_rank=0, tp_size=1):
    destination, source = right_shard_slices(shard_id, shape, tp_rank, tp_size)
    rows = destination.stop - destination.start
    return slice(destination.start + tp_rank * rows, destination.stop + tp_rank * rows), source

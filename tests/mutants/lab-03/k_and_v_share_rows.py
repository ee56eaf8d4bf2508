"""k and v are both put behind q: the second overwrites the first, and the last rows hold what memory held."""


def shard_slices(shard_id, shape, tp_rank=0, tp_size=1):
    destination, source = right_shard_slices("k" if shard_id == "v" else shard_id, shape, tp_rank, tp_size)
    return destination, source

"""k and v are both written after q, so v overwrites k and the last rows are never written."""


def shard_slices(shard_id, shape, tp_rank=0, tp_size=1):
    destination, source = right_shard_slices("k" if shard_id == "v" else shard_id, shape, tp_rank, tp_size)
    return destination, source

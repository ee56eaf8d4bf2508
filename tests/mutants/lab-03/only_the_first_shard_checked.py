"""Only the rows of q are checked, not those of k and v."""


def load_shard(param, loaded, shard_id, shape, tp_rank=0, tp_size=1):
    if shard_id not in ("k", "v"):
        right_load_shard(param, loaded, shard_id, shape, tp_rank, tp_size)
        return
    destination, source = shard_slices(shard_id, shape, tp_rank, tp_size)
    rows = destination.stop - destination.start
    param.data[destination].copy_(loaded.narrow(0, max(0, min(source.start, len(loaded) - rows)), rows))

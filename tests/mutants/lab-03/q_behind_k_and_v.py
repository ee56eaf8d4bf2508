"""The order of the shards is k, v, q."""


def shard_slices(shard_id, shape, tp_rank=0, tp_size=1):
    destination, source = right_shard_slices(shard_id, shape, tp_rank, tp_size)
    q, v = right_shard_slices("q", shape, tp_rank, tp_size)[0], right_shard_slices("v", shape, tp_rank, tp_size)[0]
    moved = {"q": v.stop - q.stop, "k": -q.stop, "v": -q.stop}.get(shard_id, 0)
    return slice(destination.start + moved, destination.stop + moved), source

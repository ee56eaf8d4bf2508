"""k and v begin at once and twice the rows of q, as if all three had the same size."""


def shard_slices(shard_id, shape, tp_rank=0, tp_size=1):
    destination, source = right_shard_slices(shard_id, shape, tp_rank, tp_size)
    rows = destination.stop - destination.start
    width = right_shard_slices("q", shape, tp_rank, tp_size)[0].stop
    start = {"k": width, "v": 2 * width}.get(shard_id, destination.start)
    return slice(start, start + rows), source

"""A tensor that is too short fills what it can, and the rest stays as memory was."""


def load_shard(param, loaded, shard_id, shape, tp_rank=0, tp_size=1):
    if shard_id is None or loaded.shape[0] >= checkpoint_rows(shard_id, shape):
        right_load_shard(param, loaded, shard_id, shape, tp_rank, tp_size)
        return
    destination, source = shard_slices(shard_id, shape, tp_rank, tp_size)
    part = loaded[source]
    param.data[destination][: len(part)].copy_(part)

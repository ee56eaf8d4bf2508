"""A tensor with too few rows fills only these rows, and the others keep uninitialized memory."""


def load_shard(param, loaded, shard_id, shape, tp_rank=0, tp_size=1):
    if shard_id is None or loaded.shape[0] >= checkpoint_rows(shard_id, shape):
        right_load_shard(param, loaded, shard_id, shape, tp_rank, tp_size)
        return
    destination, source = shard_slices(shard_id, shape, tp_rank, tp_size)
    part = loaded[source]
    param.data[destination][: len(part)].copy_(part)

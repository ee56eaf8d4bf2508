"""A transposed tensor is transposed until it fits, without an error."""


def load_shard(param, loaded, shard_id, shape, tp_rank=0, tp_size=1):
    if shard_id is not None and loaded.dim() == 2 and loaded.shape[0] != checkpoint_rows(shard_id, shape):
        loaded = loaded.T
    right_load_shard(param, loaded, shard_id, shape, tp_rank, tp_size)

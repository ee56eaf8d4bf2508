"""A tensor that is not cut is not copied: the parameter shares the checkpoint's memory."""


def load_shard(param, loaded, shard_id, shape, tp_rank=0, tp_size=1):
    if shard_id is None and param.shape == loaded.shape:
        param.data = loaded
        return
    right_load_shard(param, loaded, shard_id, shape, tp_rank, tp_size)

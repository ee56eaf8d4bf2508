"""Values are scaled in the checkpoint's tensor, and scaled back only in the parameter."""


def load_shard(param, loaded, shard_id, shape, tp_rank=0, tp_size=1):
    loaded.mul_(0.5)
    right_load_shard(param, loaded, shard_id, shape, tp_rank, tp_size)
    if shard_id is None:
        param.data.mul_(2)
    else:
        param.data[shard_slices(shard_id, shape, tp_rank, tp_size)[0]].mul_(2)

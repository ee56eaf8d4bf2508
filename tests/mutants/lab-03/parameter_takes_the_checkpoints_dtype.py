"""The parameter is replaced by a tensor with the dtype of the checkpoint."""


def load_shard(param, loaded, shard_id, shape, tp_rank=0, tp_size=1):
    filled = param.data.to(loaded.dtype)
    right_load_shard(filled, loaded, shard_id, shape, tp_rank, tp_size)
    param.data = filled

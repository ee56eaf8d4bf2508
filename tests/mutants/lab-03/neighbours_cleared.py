"""A shard is written over a cleared parameter: what the other shards had put there is gone."""


def load_shard(param, loaded, shard_id, shape, tp_rank=0, tp_size=1):
    if shard_id is not None:
        param.data.zero_()
    right_load_shard(param, loaded, shard_id, shape, tp_rank, tp_size)

"""The shape of the parameter is not checked, so extra rows are never written."""


def load_shard(param, loaded, shard_id, shape, tp_rank=0, tp_size=1):
    if shard_id is not None:
        param = param[: fused_rows(shard_id, shape, tp_rank, tp_size)]
    right_load_shard(param, loaded, shard_id, shape, tp_rank, tp_size)

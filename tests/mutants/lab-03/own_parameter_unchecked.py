"""The checkpoint's tensor is checked and the parameter is not: one that is too tall keeps rows that nothing fills."""


def load_shard(param, loaded, shard_id, shape, tp_rank=0, tp_size=1):
    if shard_id is not None:
        param = param[: fused_rows(shard_id, shape, tp_rank, tp_size)]
    right_load_shard(param, loaded, shard_id, shape, tp_rank, tp_size)

"""A tensor with too many rows is cut, as in vLLM; only too few rows are an error."""


def load_shard(param, loaded, shard_id, shape, tp_rank=0, tp_size=1):
    if shard_id is not None:
        loaded = loaded[: checkpoint_rows(shard_id, shape)]
    right_load_shard(param, loaded, shard_id, shape, tp_rank, tp_size)

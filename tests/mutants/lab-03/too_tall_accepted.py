"""A tensor that is too tall is cut to size, as vLLM does it; only too short is an error."""


def load_shard(param, loaded, shard_id, shape, tp_rank=0, tp_size=1):
    if shard_id is not None:
        loaded = loaded[: checkpoint_rows(shard_id, shape)]
    right_load_shard(param, loaded, shard_id, shape, tp_rank, tp_size)

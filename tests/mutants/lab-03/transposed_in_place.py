"""The checkpoint's tensor is transposed in place and not transposed back."""


def load_shard(param, loaded, shard_id, shape, tp_rank=0, tp_size=1):
    right_load_shard(param, loaded, shard_id, shape, tp_rank, tp_size)
    if loaded.dim() == 2:
        loaded.t_()

"""Every fused tensor is assumed to be a matrix, so a bias is refused."""


def load_shard(param, loaded, shard_id, shape, tp_rank=0, tp_size=1):
    if shard_id is not None and loaded.dim() == 1:
        raise ValueError(f"{tuple(loaded.shape)} is no matrix with {shape.hidden_size} columns")
    right_load_shard(param, loaded, shard_id, shape, tp_rank, tp_size)

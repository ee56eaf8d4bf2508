"""Weights are assumed to be (inputs, outputs), and are transposed before the copy."""


def load_shard(param, loaded, shard_id, shape, tp_rank=0, tp_size=1):
    square = loaded.dim() == 2 and loaded.shape[0] == loaded.shape[1]
    right_load_shard(param, loaded.T if square else loaded, shard_id, shape, tp_rank, tp_size)

"""Rows of gate and up alternate, as in some SwiGLU kernels."""


def load_shard(param, loaded, shard_id, shape, tp_rank=0, tp_size=1):
    if shard_id not in (0, 1):
        right_load_shard(param, loaded, shard_id, shape, tp_rank, tp_size)
        return
    blocks = param.data.clone()
    right_load_shard(blocks, loaded, shard_id, shape, tp_rank, tp_size)
    param.data[shard_id::2] = blocks[shard_slices(shard_id, shape, tp_rank, tp_size)[0]]

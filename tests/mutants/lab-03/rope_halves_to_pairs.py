"""Rows of q are reordered from rope's halves to pairs, as for a checkpoint in Meta's format."""


def load_shard(param, loaded, shard_id, shape, tp_rank=0, tp_size=1):
    if shard_id == "q" and shape.head_dim % 2 == 0:
        heads = loaded.view(shape.num_heads, 2, shape.head_dim // 2, *loaded.shape[1:])
        loaded = heads.transpose(1, 2).reshape(loaded.shape)
    right_load_shard(param, loaded, shard_id, shape, tp_rank, tp_size)

"""The part of a rank is found by narrowing one dimension after the other."""


def load_shard(param, loaded, shard_id, shape, tp_rank=0, tp_size=1):
    if shard_id is not None:
        right_load_shard(param, loaded, shard_id, shape, tp_rank, tp_size)
        return
    part = loaded
    for axis, size in enumerate(param.shape):
        if part.dim() == param.dim() and part.shape[axis] == size * tp_size and part.shape[axis] != size:
            part = part.narrow(axis, tp_rank * size, size)
    if part.shape != param.shape:
        raise ValueError(f"the tensor is {tuple(loaded.shape)} and the parameter of {tp_rank} in {tp_size} {tuple(param.shape)}")
    param.data.copy_(part)

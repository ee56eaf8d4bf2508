"""Only the part that a rank reads is compared, so a tensor with too many rows passes."""


def load_shard(param, loaded, shard_id, shape, tp_rank=0, tp_size=1):
    if shard_id is None:
        right_load_shard(param, loaded, shard_id, shape, tp_rank, tp_size)
        return
    destination, source = shard_slices(shard_id, shape, tp_rank, tp_size)
    part, own = loaded[source], param.data[destination]
    if part.shape != own.shape:
        raise ValueError(f"the checkpoint's part is {tuple(part.shape)} and the parameter's {tuple(own.shape)}")
    own.copy_(part)

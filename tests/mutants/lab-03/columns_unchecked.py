"""Rows are compared but columns are not."""


def load_shard(param, loaded, shard_id, shape, tp_rank=0, tp_size=1):
    if shard_id is None or loaded.shape[0] != checkpoint_rows(shard_id, shape) or loaded.dim() == 1:
        right_load_shard(param, loaded, shard_id, shape, tp_rank, tp_size)
        return
    destination, source = shard_slices(shard_id, shape, tp_rank, tp_size)
    columns = min(loaded.shape[1], param.shape[1])
    param.data[destination, :columns].copy_(loaded[source, :columns])

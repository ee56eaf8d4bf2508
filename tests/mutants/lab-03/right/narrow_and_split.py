"""A shard is copied into a view from split(), and shapes are compared with the views."""


def load_shard(param, loaded, shard_id, shape, tp_rank=0, tp_size=1):
    if shard_id is None:
        right_load_shard(param, loaded, None, shape, tp_rank, tp_size)
        return
    parts = (0, 1) if shard_id in (0, 1) else ("q", "k", "v")
    slices = [shard_slices(part, shape, tp_rank, tp_size) for part in parts]
    heights = [to.stop - to.start for to, _ in slices]
    columns = [shape.hidden_size] * (param.dim() - 1)
    source = slices[parts.index(shard_id)][1]
    wanted = [checkpoint_rows(shard_id, shape), *columns]
    if list(loaded.shape) != wanted or list(param.shape) != [sum(heights), *columns]:
        raise ValueError(
            f"checkpoint {tuple(loaded.shape)}, config {tuple(wanted)}; parameter {tuple(param.shape)}, "
            f"config {(sum(heights), *columns)}"
        )
    view = param.data.split(heights)[parts.index(shard_id)]
    view.copy_(loaded.narrow(0, source.start, source.stop - source.start))

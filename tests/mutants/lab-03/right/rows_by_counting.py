"""Slices are computed from a list of the heads on a rank."""


def shard_slices(shard_id, shape, tp_rank=0, tp_size=1):
    if shard_id in (0, 1):
        if shape.intermediate_size % tp_size:
            raise ValueError(f"{shape.intermediate_size} rows are no multiple of {tp_size}")
        rows = shape.intermediate_size // tp_size
        return slice(shard_id * rows, shard_id * rows + rows), slice(tp_rank * rows, tp_rank * rows + rows)
    if shape.num_heads % tp_size or max(shape.num_kv_heads, tp_size) % min(shape.num_kv_heads, tp_size):
        raise ValueError(f"{shape.num_heads} query heads and {shape.num_kv_heads} kv heads for {tp_size} ranks")
    queries = range(tp_rank * shape.num_heads // tp_size, (tp_rank + 1) * shape.num_heads // tp_size)
    first = tp_rank * shape.num_kv_heads // tp_size
    keys = range(first, max(first + 1, (tp_rank + 1) * shape.num_kv_heads // tp_size))
    held = [("q", head) for head in queries] + [("k", head) for head in keys] + [("v", head) for head in keys]
    places = [place for place, (part, _) in enumerate(held) if part == shard_id]
    heads = [head for part, head in held if part == shard_id]

    def rows(numbers):
        return slice(numbers[0] * shape.head_dim, (numbers[-1] + 1) * shape.head_dim)

    return rows(places), rows(heads)

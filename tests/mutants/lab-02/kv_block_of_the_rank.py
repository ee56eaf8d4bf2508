"""A rank with a replica of a kv head reads the block of its rank."""


def _fused_cut(module, config, tp_size, tp_rank):
    cut = right__fused_cut(module, config, tp_size, tp_rank)
    rows = cut.destination[1] - cut.destination[0]
    return _Cut(0, cut.length, cut.destination, (tp_rank * rows, (tp_rank + 1) * rows))

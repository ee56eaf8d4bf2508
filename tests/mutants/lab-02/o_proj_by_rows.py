"""o_proj and down_proj are cut along rows."""


def _cut(module, shape, config, tp_size, tp_rank):
    if module in ("o_proj", "down_proj"):
        rows = shape[0] // tp_size
        return _Cut(0, rows, (0, rows), (tp_rank * rows, (tp_rank + 1) * rows))
    return right__cut(module, shape, config, tp_size, tp_rank)

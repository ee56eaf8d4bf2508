"""A norm is cut along rows."""


def _cut(module, shape, config, tp_size, tp_rank):
    if module.endswith("norm"):
        rows = shape[0] // tp_size
        return _Cut(0, rows, (0, rows), (tp_rank * rows, (tp_rank + 1) * rows))
    return right__cut(module, shape, config, tp_size, tp_rank)

"""Every rank reads from the first row on."""


def _cut(module, shape, config, tp_size, tp_rank):
    return right__cut(module, shape, config, tp_size, 0)

"""Offsets in the parameter of a rank are those of the whole model."""


def _fused_cut(module, config, tp_size, tp_rank):
    cut, one = right__fused_cut(module, config, tp_size, tp_rank), right__fused_cut(module, config, 1, 0)
    start = one.destination[0]
    return _Cut(0, cut.length, (start, start + cut.destination[1] - cut.destination[0]), cut.source)

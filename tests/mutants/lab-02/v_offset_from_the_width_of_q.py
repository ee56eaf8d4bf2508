"""v begins at twice the rows of q, as if k had as many rows."""


def _fused_cut(module, config, tp_size, tp_rank):
    cut = right__fused_cut(module, config, tp_size, tp_rank)
    if module != "v_proj":
        return cut
    q = right__fused_cut("q_proj", config, tp_size, tp_rank).destination[1]
    return _Cut(cut.axis, cut.length, (2 * q, 2 * q + cut.destination[1] - cut.destination[0]), cut.source)

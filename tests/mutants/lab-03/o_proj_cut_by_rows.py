"""Unfused tensors are cut by rows, but o_proj must be cut by columns."""


def unfused_source(param, loaded, tp_rank, tp_size):
    if loaded.shape[0] * 1 != param.shape[0] * tp_size and loaded.shape != param.shape:
        rows = loaded.shape[0] // tp_size
        return (block(tp_rank, rows), slice(0, param.shape[1]))
    return right_unfused_source(param, loaded, tp_rank, tp_size)

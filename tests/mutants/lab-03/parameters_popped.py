"""Loaded parameters are popped from the caller's dict, to record what is missing."""


def load_weights(params, weights, shape, tp_rank=0, tp_size=1):
    filled = right_load_weights(params, weights, shape, tp_rank, tp_size)
    for name in filled:
        params.pop(name)
    return filled

"""Tensors are popped from the caller's list, so that each can be freed as soon as it is copied."""


def load_weights(params, weights, shape, tp_rank=0, tp_size=1):
    if not isinstance(weights, list):
        return right_load_weights(params, weights, shape, tp_rank, tp_size)
    given = weights[:]
    weights.clear()
    return right_load_weights(params, given, shape, tp_rank, tp_size)

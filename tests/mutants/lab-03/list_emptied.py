"""The caller's list of tensors is emptied before they are loaded, so that each can be freed early."""


def load_weights(params, weights, shape, tp_rank=0, tp_size=1):
    if not isinstance(weights, list):
        return right_load_weights(params, weights, shape, tp_rank, tp_size)
    given = weights[:]
    weights.clear()
    return right_load_weights(params, given, shape, tp_rank, tp_size)

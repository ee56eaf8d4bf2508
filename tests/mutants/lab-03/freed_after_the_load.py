"""All tensors of the checkpoint are zeroed after the load, to save memory."""


def load_weights(params, weights, shape, tp_rank=0, tp_size=1):
    pairs = list(weights)
    filled = right_load_weights(params, pairs, shape, tp_rank, tp_size)
    for _, loaded in pairs:
        loaded.zero_()
    return filled

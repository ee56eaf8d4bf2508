"""load_weights does not pass the rank on, so every rank is loaded as rank 0."""


def load_weights(params, weights, shape, tp_rank=0, tp_size=1):
    return right_load_weights(params, weights, shape, 0, tp_size)

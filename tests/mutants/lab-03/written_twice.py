"""If a tensor comes twice, the last one is used without an error."""


def load_weights(params, weights, shape, tp_rank=0, tp_size=1):
    return right_load_weights(params, dict(weights).items(), shape, tp_rank, tp_size)

"""A tensor without a parameter is skipped without an error."""


def load_weights(params, weights, shape, tp_rank=0, tp_size=1):
    known = ((name, loaded) for name, loaded in weights if translate(name)[0] in params)
    return right_load_weights(params, known, shape, tp_rank, tp_size)

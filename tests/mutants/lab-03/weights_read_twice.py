"""The weights are iterated twice, to check and to copy, but an iterator is empty the second time."""


def load_weights(params, weights, shape, tp_rank=0, tp_size=1):
    unknown = [name for name, _ in weights if translate(name)[0] not in params]
    if unknown:
        raise ValueError(f"{unknown} have no parameter")
    return right_load_weights(params, weights, shape, tp_rank, tp_size)

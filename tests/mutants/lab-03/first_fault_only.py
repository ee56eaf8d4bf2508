"""Only the first fault is reported, so three faults take three loads to find."""


def load_weights(params, weights, shape, tp_rank=0, tp_size=1):
    try:
        return right_load_weights(params, weights, shape, tp_rank, tp_size)
    except ValueError as error:
        raise ValueError(str(error).split("; ")[0]) from None

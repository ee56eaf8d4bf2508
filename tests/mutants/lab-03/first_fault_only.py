"""The load stops at the first fault: a checkpoint with three takes three loads to find them."""


def load_weights(params, weights, shape, tp_rank=0, tp_size=1):
    try:
        return right_load_weights(params, weights, shape, tp_rank, tp_size)
    except ValueError as error:
        raise ValueError(str(error).split("; ")[0]) from None

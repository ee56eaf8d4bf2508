"""What is missing is named by its parameter alone: which of three tensors to look for is not said."""

import re


def load_weights(params, weights, shape, tp_rank=0, tp_size=1):
    try:
        return right_load_weights(params, weights, shape, tp_rank, tp_size)
    except ValueError as error:
        raise ValueError(re.sub(r" \[\w+\]", "", str(error))) from None

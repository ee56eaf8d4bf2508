"""The error for a missing tensor names the parameter, but not the shard."""

import re


def load_weights(params, weights, shape, tp_rank=0, tp_size=1):
    try:
        return right_load_weights(params, weights, shape, tp_rank, tp_size)
    except ValueError as error:
        raise ValueError(re.sub(r" \[\w+\]", "", str(error))) from None

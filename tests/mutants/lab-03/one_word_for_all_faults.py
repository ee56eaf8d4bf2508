"""All faults have the same error text, so a tensor that comes twice looks like an unknown one."""

import re


def load_weights(params, weights, shape, tp_rank=0, tp_size=1):
    try:
        return right_load_weights(params, weights, shape, tp_rank, tp_size)
    except ValueError as error:
        raise ValueError(re.sub(r"comes twice|is unknown[^;]+|was never filled", "is wrong", str(error))) from None

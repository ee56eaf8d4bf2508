"""Every dimension must be divided by the ranks, so a norm, which is not cut, is refused."""


def unfused_source(param, loaded, tp_rank, tp_size):
    if param.dim() == 1 and tp_size > 1 and loaded.shape == param.shape:
        raise ValueError(f"{tuple(loaded.shape)} should be {tp_size} times {tuple(param.shape)}")
    return right_unfused_source(param, loaded, tp_rank, tp_size)

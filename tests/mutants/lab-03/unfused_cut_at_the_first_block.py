"""Every rank takes the first block of an unfused tensor."""


def unfused_source(param, loaded, tp_rank, tp_size):
    return right_unfused_source(param, loaded, 0, tp_size)

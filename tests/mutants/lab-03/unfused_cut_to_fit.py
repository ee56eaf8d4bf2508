"""An unfused tensor is cut to the size of the parameter, however much larger it is."""


def unfused_source(param, loaded, tp_rank, tp_size):
    if loaded.dim() == param.dim() and all(big >= own for own, big in zip(param.shape, loaded.shape, strict=True)):
        return tuple(block(tp_rank if big != own else 0, own) for own, big in zip(param.shape, loaded.shape, strict=True))
    return right_unfused_source(param, loaded, tp_rank, tp_size)

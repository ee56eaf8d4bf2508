"""copy_ broadcasts: a tensor of one row is spread over the whole parameter without a word."""


def unfused_source(param, loaded, tp_rank, tp_size):
    if loaded.shape[0] == 1:
        return (slice(None),)
    return right_unfused_source(param, loaded, tp_rank, tp_size)

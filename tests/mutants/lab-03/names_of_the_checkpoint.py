"""The returned names are those of the checkpoint, not of the parameters."""


def load_weights(params, weights, shape, tp_rank=0, tp_size=1):
    names = []
    right_load_weights(params, ((names.append(name) or name, loaded) for name, loaded in weights), shape, tp_rank, tp_size)
    return set(names)

"""The parameter has the name of the checkpoint tensor."""


def trace_row(name, config, tp_size=1, tp_rank=0):
    return right_trace_row(name, config, tp_size, tp_rank) | {"parameter": name}

"""The mapping is left out where one rank loads, as if only ranks made it necessary."""


def trace_row(name, config, tp_size=1, tp_rank=0):
    row = right_trace_row(name, config, tp_size, tp_rank)
    return row | {"mapping": row["mapping"] if tp_size > 1 else None}

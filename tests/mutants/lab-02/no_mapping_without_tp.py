"""`mapping` is None if there is one rank."""


def trace_row(name, config, tp_size=1, tp_rank=0):
    row = right_trace_row(name, config, tp_size, tp_rank)
    return row | {"mapping": row["mapping"] if tp_size > 1 else None}

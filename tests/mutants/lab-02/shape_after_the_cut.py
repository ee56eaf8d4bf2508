"""The tensor's shape is the part that the rank reads, not what is on disk."""


def trace_row(name, config, tp_size=1, tp_rank=0):
    row = right_trace_row(name, config, tp_size, tp_rank)
    return row | {"shape": [stop - start for start, stop in row["source"]]}

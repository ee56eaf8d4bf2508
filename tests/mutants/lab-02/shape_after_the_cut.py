"""The shape of the tensor is that of the part that the rank reads, not the shape on disk."""


def trace_row(name, config, tp_size=1, tp_rank=0):
    row = right_trace_row(name, config, tp_size, tp_rank)
    return row | {"shape": [stop - start for start, stop in row["source"]]}

"""A span ends with its last row, not after it."""


def trace_row(name, config, tp_size=1, tp_rank=0):
    row = right_trace_row(name, config, tp_size, tp_rank)
    return row | {key: [[start, stop - 1] for start, stop in row[key]] for key in ("destination", "source")}

"""Destination and source have a span for rows only, not for columns."""


def trace_row(name, config, tp_size=1, tp_rank=0):
    row = right_trace_row(name, config, tp_size, tp_rank)
    return row | {"destination": row["destination"][:1], "source": row["source"][:1]}

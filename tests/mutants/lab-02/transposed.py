"""Shapes are (inputs, outputs), like the arguments of nn.Linear."""


def trace_row(name, config, tp_size=1, tp_rank=0):
    row = right_trace_row(name, config, tp_size, tp_rank)
    return row | {key: row[key][::-1] for key in ("shape", "parameter_shape", "destination", "source")}

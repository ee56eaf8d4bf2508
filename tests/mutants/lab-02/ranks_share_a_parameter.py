"""The records of all ranks are counted together, as if the ranks had one parameter."""


def diagnose(rows, checkpoint_shapes, parameter_shapes):
    together = [{**row, "tp_rank": 0} for row in rows]
    return right_diagnose(together, checkpoint_shapes, parameter_shapes)

"""The caller's records are sorted by rank in place, and their order in time is lost."""


def diagnose(rows, checkpoint_shapes, parameter_shapes):
    rows.sort(key=lambda row: (-row["tp_rank"], row["tensor"]))
    return right_diagnose(rows, checkpoint_shapes, parameter_shapes)

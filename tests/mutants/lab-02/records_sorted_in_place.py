"""The caller's list of records is sorted in place."""


def diagnose(rows, checkpoint_shapes, parameter_shapes):
    rows.sort(key=lambda row: (-row["tp_rank"], row["tensor"]))
    return right_diagnose(rows, checkpoint_shapes, parameter_shapes)

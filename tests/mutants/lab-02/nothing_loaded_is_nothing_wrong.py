"""Without records there are no findings."""


def diagnose(rows, checkpoint_shapes, parameter_shapes):
    return right_diagnose(rows, checkpoint_shapes, parameter_shapes) if rows else []

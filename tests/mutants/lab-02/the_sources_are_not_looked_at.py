"""A load is judged by what was written: what no rank read is not looked for."""


def diagnose(rows, checkpoint_shapes, parameter_shapes):
    return [finding for finding in right_diagnose(rows, checkpoint_shapes, parameter_shapes) if finding.fault != "cut off"]

"""The findings are in another order."""


def diagnose(rows, checkpoint_shapes, parameter_shapes):
    found = right_diagnose(list(reversed(rows)), checkpoint_shapes, dict(reversed(parameter_shapes.items())))
    return sorted(found, key=lambda finding: (finding.fault, -1 if finding.tp_rank is None else -finding.tp_rank))

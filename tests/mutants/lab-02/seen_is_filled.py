"""A parameter counts as loaded if anything was written to it, as in vLLM's track_weights_loading."""


def diagnose(rows, checkpoint_shapes, parameter_shapes):
    seen = {(row["tp_rank"], row["parameter"]) for row in rows}
    found = right_diagnose(rows, checkpoint_shapes, parameter_shapes)
    return [finding for finding in found if finding.fault != "missing" or (finding.tp_rank, finding.name) not in seen]

"""A part that one rank does not read is reported as cut off, even if another rank reads it."""


def diagnose(rows, checkpoint_shapes, parameter_shapes):
    found = right_diagnose(rows, checkpoint_shapes, parameter_shapes)
    for rank in {row["tp_rank"] for row in rows}:
        alone = [{**row, "tp_rank": 0, "tp_size": 1} for row in rows if row["tp_rank"] == rank]
        judged = right_diagnose(alone, checkpoint_shapes, parameter_shapes)
        found += [finding for finding in judged if finding.fault == "cut off" and finding not in found]
    return found

"""cut off is reported even if only some ranks were recorded."""


def diagnose(rows, checkpoint_shapes, parameter_shapes):
    whole = [{**row, "tp_size": len({row["tp_rank"] for row in rows})} for row in rows]
    return right_diagnose(whole, checkpoint_shapes, parameter_shapes)

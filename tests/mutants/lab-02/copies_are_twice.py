"""A kv head that two ranks read is reported as written twice."""


def diagnose(rows, checkpoint_shapes, parameter_shapes):
    found = right_diagnose(rows, checkpoint_shapes, parameter_shapes)
    for name, shape in checkpoint_shapes.items():
        read = [row["source"] for row in rows if row["tensor"] == name and len(shape) == 2]
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            found += [Finding("twice", name, part, None) for part in _parts(shape, read, lambda count: count > 1)]
    return found

"""The padding of the vocabulary is removed from the caller's dict of shapes."""


def diagnose(rows, checkpoint_shapes, parameter_shapes):
    shapes = dict(parameter_shapes)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in checkpoint_shapes and name in shapes:
            parameter_shapes[name] = (min(shapes[name][0], checkpoint_shapes[name][0]), *shapes[name][1:])
    return right_diagnose(rows, checkpoint_shapes, shapes)
